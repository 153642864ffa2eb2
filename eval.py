"""Audit a trained model: a run of train.py again, or any model for one user's mark record.

Again:    python eval.py --checkpoint saved_res/cifar100-wideresnet284-singleTarget-17 --instance_mi 1
One user: python eval.py --record photos_record/record.json --originals photos --checkpoint MODEL --label LABEL
Replay:   python eval.py --replay evidence.zip

MODEL for one user: a run or checkpoint of train.py; a state dict (.pt, .pth, .safetensors) with --net_type; an ONNX
file; or http(s)://host:port/v2/models/NAME, a server that speaks the Open Inference Protocol. The exact p is valid for
every model; exit code 0 whatever the verdict. Without --record, --checkpoint is a run of train.py (or is found by the
flags that named it), the training's settings come from inside it, and --data_root has to be given again.
"""

import json
import textwrap
from pathlib import Path

import torch

from attacks import exact
from dataset import load_dataset
from experiment import flags, folder, report, setup
from experiment.audit import ask_users, conclude
from experiment.flags import data_fingerprint, resolve_settings, tagged_paths, with_stored
from experiment.training import load_trained
from kit import cli, files
from kit.errors import UserError, run_script
from provenance import case, evidence, protect
from provenance import grid as user_audit
from provenance import record as records
from provenance.report import show_verdict
from suspects.suspect import Preprocessing
from utils import choose_device


def make_parser():
    parser = flags.make_parser(__doc__)
    parser.add_argument("--checkpoint", help="the model: run folder, file, or address of a server")
    number = cli.number
    user = parser.add_argument_group("verdict for one user")
    user.add_argument("--record", help="record.json of data_marking.py")
    user.add_argument("--originals", nargs="+", default=[], help="folders with the unmarked photos")
    user.add_argument(
        "--label",
        default=exact.AUTO,
        help="the photos' class: number, name, or auto (default: what the model says most often)",
    )
    user.add_argument("--keys", type=number(int, 0), help="fresh keys L (default 19; without hold-out as alpha needs)")
    user.add_argument("--selections", type=number(int, 0), help="fresh selections m (default 999 with a hold-out)")
    user.add_argument(
        "--alpha",
        type=number(float, above=0, high=0.5),
        default=1e-3,
        help="accused wrongly with at most this probability (default 0.001)",
    )
    user.add_argument("--max_queries", type=number(int, 1), help="plan the grid for at most so many queries")
    user.add_argument("--audit_seed", default="", help="a text that the other side adds to the draw of keys")
    user.add_argument("--label_only", action="store_true", help="look at the top class alone")
    user.add_argument("--top_k", type=number(int, 1), help="look at the k largest probabilities alone")
    user.add_argument("--non_member_folder", help="strangers' images: adds Algorithm 1's verdict (or give --dataset)")
    user.add_argument("--dry_run", action="store_true", help="say how many queries would be asked, ask none")
    user.add_argument("--replay", metavar="BUNDLE", help="recompute p from an evidence bundle, without the model")
    model = parser.add_argument_group("model under audit")
    model.add_argument(
        "--input_size", nargs="+", type=number(int, 1, 4096), help="side, or height and width, in pixels"
    )
    model.add_argument("--resize", type=number(int, 1, 8192), help="shorter side before the centre crop")
    model.add_argument("--mean", nargs=3, type=number(float), help="of each channel, where white is 1")
    model.add_argument("--std", nargs=3, type=number(float, above=0))
    model.add_argument("--white", type=number(float, above=0), help="what white is before --mean and --std (default 1)")
    model.add_argument("--interpolation", choices=("nearest", "bilinear", "bicubic", "lanczos"))
    model.add_argument("--query_batch", type=number(int, 1, 4096), default=64, help="images a query (default 64)")
    model.add_argument("--header", action="append", default=[], help="'Name: $VARIABLE' for the server, repeatable")
    model.add_argument("--rate_limit", type=number(float, above=0), help="requests a second")
    model.add_argument("--timeout", type=number(float, above=0), default=30.0, help="seconds to wait for an answer")
    model.add_argument("--retries", type=number(int, 0, 100), default=6, help="of a request that failed")
    return parser


def main():
    args = make_parser().parse_args()
    if args.replay:
        return replay(args)
    if args.record:
        return audit_user(args)
    return audit_run(args)


def audit_run(args):
    """The audit of train.py again, with the same or other audit settings."""
    device = choose_device(args.device)
    model = find_model(args)
    precision = None if args.precision == "auto" else args.precision
    query, record = load_trained(model.model, device, precision=precision)
    stored = record["settings"]
    data = load_dataset(stored["dataset"], args.data_root, stored["image_size"])
    args = with_stored(args, {**stored_audit(model), **stored})
    training, audit = resolve_settings(args, data, device)
    files.check_same_settings(stored, training, model.model, but=("device", "precision", "pretrained_weights"))
    paths = folder.RunPaths.of_folder(args.out or model.folder / "eval")
    if paths.config.exists():
        raise UserError(
            f"--out {paths.folder} is the folder of a training run, whose results would be lost",
            advice="choose another one",
        )
    experiment = setup.prepare(stored, audit, data, args.data_root)
    setup.check_marks(experiment, model)
    with paths.lock():
        paths.result.unlink(missing_ok=True)  # it would not fit the new losses, if this audit is interrupted
        answers = ask_users(experiment, query, audit, paths, device)
        result = conclude(experiment, query, record, answers, device)
        report.draw(experiment, answers, result, paths)
        files.write_json(paths.result, result)
    report.show(result, paths)


def stored_audit(model):
    """The audit settings that the run was made with, for the flags that are not given now."""
    return files.read_json(model.config).get("audit") or {} if model.config.exists() else {}


def find_model(args):
    """The files of the run that --checkpoint, or the flags of its training, name."""
    if args.checkpoint is None:
        data = load_dataset(args.dataset or "cifar100", args.data_root, args.image_size)
        return tagged_paths(args, data.name, args.net_type or data.recipe.net_type)
    path = Path(args.checkpoint)
    if path.is_dir():
        return folder.RunPaths.existing(path)
    # A model in a folder of many models gets a folder of its own for the results.
    own = folder.RunPaths.of_folder(path.parent)
    return own if own.config.exists() and own.model == path else folder.RunPaths(path.with_suffix(""), path)


def audit_user(args):
    """The exact verdict for one user's record, and Algorithm 1's beside it where there is an out-world."""
    case.read_finished(args.record)  # before a model is opened, or a server asked
    suspect = open_suspect(args)
    given = {name: getattr(args, name) for name in case.Options.__dataclass_fields__}
    options = case.Options(**{name: value for name, value in given.items() if value is not None})
    planned = case.open_case(
        args.record, args.originals, suspect, options, find_out_world(args, suspect), args.out, args.data_root
    )
    print(planned.describe())
    if args.dry_run:
        print("dry run: nothing was asked")
        return
    show_verdict(planned.run(), planned.folder)
    if not planned.record.evidence:
        print("note: the key of this record comes from --seed, so the audit is an experiment and no evidence")


def open_suspect(args):
    """The model that --checkpoint names."""
    size = args.input_size and tuple(args.input_size * 2 if len(args.input_size) == 1 else args.input_size)
    if size and len(size) != 2:
        raise UserError("--input_size takes one number, or height and width")
    chosen = {
        "size": size,
        "resize": args.resize,
        "mean": args.mean,
        "std": args.std,
        "white": args.white,
        "interpolation": args.interpolation,
    }
    overrides = {
        name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items() if value is not None
    }
    server = {"headers": args.header, "rate_limit": args.rate_limit, "timeout": args.timeout, "retries": args.retries}
    return case.open_suspect(
        args.checkpoint, args.net_type, choose_device(args.device), args.precision, overrides, args.query_batch, server
    )


def find_out_world(args, suspect):
    """Strangers' images: --non_member_folder, or the images of --dataset that the model was not trained on."""
    if args.non_member_folder:
        return user_audit.out_world_of_folder(args.non_member_folder, suspect)
    if args.dataset is None:
        return None
    data = load_dataset(args.dataset, args.data_root, args.image_size)
    if suspect.classes not in (None, len(data.class_names)):
        raise UserError(
            f"--dataset {args.dataset} has {len(data.class_names)} classes and the model {suspect.classes}",
            advice="give strangers' images with --non_member_folder",
        )
    rows = torch.nonzero(data.is_test).ravel()
    settings = getattr(suspect, "training_settings", None) or {}
    if settings.get("data") == data_fingerprint(data):
        rows = setup.make_splits(
            data.labels, data.is_test, settings["train_size"], settings["val_portion"], settings["seed"]
        ).non_member
    if len(rows) == 0:
        raise UserError(
            f"--dataset {args.dataset}: it is not known which of its images the model has not seen",
            advice="give strangers' images with --non_member_folder",
        )
    return user_audit.out_world_of_data(data, rows)


def replay(args):
    """Recompute p from a bundle; with --record and --originals also every image that was sent."""
    document, order, digests, answers = evidence.read_bundle(args.replay)
    public, audit = evidence.check_document(document, len(answers), args.replay)
    result, _, _ = user_audit.judge(
        public["batches"], document["selection_key"], audit, order, answers, document.get("classes")
    )
    claimed = {name: value for name, value in document["result"].items() if name != "algorithm_1"}
    same = json.loads(json.dumps(result)) == claimed
    table = [
        ("commitment", f"{document['commitment']} (fits the record's public part)"),
        ("selection", "follows from the committed key"),
        ("answers", f"{len(answers)}"),
        ("p recomputed", f"{result['p_value']:.6g}"),
    ]
    right = len(order)
    if args.record:
        record = records.read_record(args.record)
        if record.commitments[-1] != document["commitment"]:
            raise UserError(f"{args.record} is not the record of this bundle: its commitment is another")
        shape = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in document["preprocessing"].items()
        }
        preprocessing = Preprocessing(**shape)
        photos = user_audit.Photos(records.locate_originals(record, args.originals, args.record), preprocessing.size)
        right = user_audit.check_queries(
            record, photos, preprocessing, audit, order, digests, protect.load_bank(record.settings, args.data_root)
        )
        table.append(
            (
                "images sent",
                f"{right} of {len(order)} are bit for bit those of record and originals"
                + (
                    ""
                    if right == len(order)
                    else " (another kind of processor rounds marks differently; on the audit's own machine all must be)"
                ),
            )
        )
    for name, value in table:
        print(f"{name:<14}{value}")
    print(textwrap.fill(result["sentences"], 118))
    if args.out:
        files.write_json(
            Path(args.out) / "result.json",
            {**result, "audit": audit, "model": document["model"], "commitment": document["commitment"]},
        )
    if not same:
        raise UserError(
            f"{args.replay}: its answers give p = {result['p_value']:.6g}, and its result says "
            f"{claimed.get('p_value')} or differs elsewhere",
            advice="somebody changed it",
        )
    return 0 if right == len(order) else 1


if __name__ == "__main__":
    run_script(main)

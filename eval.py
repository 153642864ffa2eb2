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
import sys
import textwrap
from pathlib import Path

import torch

import arguments
import experiment as stages
import report
import runs
from dataset import load_dataset
from provenance import audit as user_audit
from provenance import evidence, models, protect, protocol, verdict
from provenance import record as records
from provenance.suspect import Preprocessing
from utils import choose_device


def make_parser():
    parser = arguments.make_parser(__doc__)
    parser.add_argument("--checkpoint", help="the model: run folder, file, or address of a server")
    number = arguments.number
    user = parser.add_argument_group("verdict for one user")
    user.add_argument("--record", help="record.json of data_marking.py")
    user.add_argument("--originals", nargs="+", default=[], help="folders with the unmarked photos")
    user.add_argument("--label", default=verdict.AUTO,
                      help="the photos' class: number, name, or auto (default: what the model says most often)")
    user.add_argument("--keys", type=number(int, 0), help="fresh keys L (default 19; without hold-out as alpha needs)")
    user.add_argument("--selections", type=number(int, 0), help="fresh selections m (default 999 with a hold-out)")
    user.add_argument("--alpha", type=number(float, above=0, high=0.5), default=1e-3,
                      help="accused wrongly with at most this probability (default 0.001)")
    user.add_argument("--max_queries", type=number(int, 1), help="plan the grid for at most so many queries")
    user.add_argument("--audit_seed", default="", help="a text that the other side adds to the draw of keys")
    user.add_argument("--label_only", action="store_true", help="look at the top class alone")
    user.add_argument("--top_k", type=number(int, 1), help="look at the k largest probabilities alone")
    user.add_argument("--non_member_folder", help="strangers' images: adds Algorithm 1's verdict (or give --dataset)")
    user.add_argument("--dry_run", action="store_true", help="say how many queries would be asked, ask none")
    user.add_argument("--replay", metavar="BUNDLE", help="recompute p from an evidence bundle, without the model")
    model = parser.add_argument_group("model under audit")
    model.add_argument("--input_size", nargs="+", type=number(int, 1, 4096),
                       help="side, or height and width, in pixels")
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
    query, record = stages.load_trained(model.model, device, precision=precision)
    stored = record["settings"]
    data = load_dataset(stored["dataset"], args.data_root, stored["image_size"])
    args = arguments.with_stored(args, {**stored_audit(model), **stored})
    training, audit = arguments.resolve_settings(args, data, device)
    runs.check_same_settings(stored, training, model.model, but=("device", "precision", "pretrained_weights"))
    paths = runs.RunPaths.of_folder(args.out or model.folder / "eval")
    if paths.config.exists():
        raise runs.UserError(f"--out {paths.folder} is the folder of a training run, whose results would be lost; "
                             "choose another one")
    experiment = stages.prepare(stored, audit, data, args.data_root)
    stages.check_marks(experiment, model)
    with paths.lock():
        paths.result.unlink(missing_ok=True)  # it would not fit the new losses, if this audit is interrupted
        answers = stages.audit(experiment, query, audit, paths, device)
        result = stages.conclude(experiment, query, record, answers, device)
        report.draw(experiment, answers, result, paths)
        runs.write_json(paths.result, result)
    report.show(result, paths)


def stored_audit(model):
    """The audit settings that the run was made with, for the flags that are not given now."""
    return runs.read_json(model.config).get("audit") or {} if model.config.exists() else {}


def find_model(args):
    """The files of the run that --checkpoint, or the flags of its training, name."""
    if args.checkpoint is None:
        data = load_dataset(args.dataset or "cifar100", args.data_root, args.image_size)
        return arguments.tagged_paths(args, data.name, args.net_type or data.recipe.net_type)
    path = Path(args.checkpoint)
    if path.is_dir():
        return runs.RunPaths.existing(path)
    # A model in a folder of many models gets a folder of its own for the results.
    own = runs.RunPaths.of_folder(path.parent)
    return own if own.config.exists() and own.model == path else runs.RunPaths(path.with_suffix(""), path)


def audit_user(args):
    """The exact verdict for one user's record, and Algorithm 1's beside it where there is an out-world."""
    record = records.read_record(args.record)
    if not record.finished:
        raise runs.UserError(f"{args.record} is of an interrupted run; run data_marking.py again, first")
    originals = records.locate_originals(record, args.originals, args.record)
    bank = protect.load_bank(record.settings, args.data_root)
    suspect = open_suspect(args)
    label = resolve_label(args.label, suspect)
    out_world = find_out_world(args, suspect)
    count = (args.num_of_non_member_user or 1000) if out_world else 0
    aside = count * int(record.published.sum())
    if args.max_queries is not None and args.max_queries <= aside:
        raise runs.UserError(f"Algorithm 1 alone needs {aside} queries ({count} strangers x "
                             f"{int(record.published.sum())} images), and --max_queries allows {args.max_queries}; "
                             "lower --num_of_non_member_user, or allow more")
    plan = verdict.plan_grid(len(originals), [(batch.published, batch.photos) for batch in record.batches], args.alpha,
                             args.keys, args.selections, args.max_queries and args.max_queries - aside)
    print(f"model: {suspect.name}, {suspect.classes or 'unknown number of'} classes; "
          f"{suspect.preprocessing.describe()}")
    print(f"queries: {plan.queries} ({plan.photos} photos x {plan.keys + 1} keys)"
          + (f" + {aside} for Algorithm 1" if aside else "") + f"; smallest p that can come out: {plan.smallest_p:.2g}")
    if args.dry_run:
        print("dry run: nothing was asked")
        return
    name = "".join(letter if letter.isalnum() else "-" for letter in suspect.name).strip("-")
    strangers = user_audit.draw_out_world(out_world, record, count, label) if out_world else None
    folder = Path(args.out or records.record_file(args.record).resolve().parent / f"audit-{name}")
    if (folder / "config.json").exists() or (folder / "record.json").exists():
        raise runs.UserError(f"--out {folder} has another run's or a record's files; choose another folder")
    audit = {"keys": plan.keys, "selections": plan.selections, "alpha": args.alpha, "audit_seed": args.audit_seed,
             "label": label, "label_only": args.label_only, "top_k": args.top_k}
    photos = user_audit.Photos(originals, suspect.preprocessing.size)
    with runs.lock_folder(folder):
        order, digests, answers = user_audit.ask_grid(record, photos, suspect, plan.keys, args.audit_seed, folder, bank)
        result, grid, _ = user_audit.judge(record.batches, record.selection_key, audit, order, answers,
                                                suspect.classes)
        if out_world:
            result["algorithm_1"] = beside(args, record, photos, suspect, out_world, strangers, label, folder, bank,
                                           order, answers, plan)
        write_verdict(folder, record, suspect, photos, audit, result, order, digests, answers, grid)
    report.show_verdict(result, folder)
    if not record.evidence:
        print("note: the key of this record comes from --seed, so the audit is an experiment and no evidence")


def open_suspect(args):
    """The model that --checkpoint names."""
    if args.checkpoint is None:
        raise runs.UserError("--checkpoint is missing; give the model: a run folder, a file, or "
                             "http(s)://host/v2/models/NAME")
    size = args.input_size and tuple(args.input_size * 2 if len(args.input_size) == 1 else args.input_size)
    if size and len(size) != 2:
        raise runs.UserError("--input_size takes one number, or height and width")
    flags = {"size": size, "resize": args.resize, "mean": args.mean, "std": args.std, "white": args.white,
             "interpolation": args.interpolation}
    overrides = {name: tuple(value) if isinstance(value, list) else value
                 for name, value in flags.items() if value is not None}
    if args.checkpoint.startswith(("http://", "https://")):
        return protocol.open_server(args.checkpoint, args.header, args.rate_limit, args.timeout, args.retries,
                                    overrides, args.query_batch)
    return models.open_model(args.checkpoint, net_type=args.net_type, device=choose_device(args.device),
                             precision=args.precision, overrides=overrides, batch_size=args.query_batch)


def resolve_label(text, suspect):
    """A class number, or verdict.AUTO, out of --label."""
    if text == verdict.AUTO:
        return text
    if text in (suspect.class_names or ()):
        return suspect.class_names.index(text)
    if text.isdecimal() and (suspect.classes is None or int(text) < suspect.classes):
        return int(text)
    known = f"classes 0 to {suspect.classes - 1}" if suspect.classes else "numbered classes"
    names = f", named {', '.join(suspect.class_names[:5])}, ..." if suspect.class_names else " and no names for them"
    raise runs.UserError(f"--label {text}: the model has {known}{names}; give one of them, or auto")


def find_out_world(args, suspect):
    """Strangers' images: --non_member_folder, or the images of --dataset that the model was not trained on."""
    if args.non_member_folder:
        return user_audit.out_world_of_folder(args.non_member_folder, suspect)
    if args.dataset is None:
        return None
    data = load_dataset(args.dataset, args.data_root, args.image_size)
    if suspect.classes not in (None, len(data.class_names)):
        raise runs.UserError(f"--dataset {args.dataset} has {len(data.class_names)} classes and the model "
                             f"{suspect.classes}; give strangers' images with --non_member_folder")
    rows = torch.nonzero(data.is_test).ravel()
    settings = getattr(suspect, "training_settings", None) or {}
    if settings.get("data") == arguments.data_fingerprint(data):
        rows = stages.make_splits(data.labels, data.is_test, settings["train_size"], settings["val_portion"],
                                  settings["seed"]).non_member
    if len(rows) == 0:
        raise runs.UserError(f"--dataset {args.dataset}: it is not known which of its images the model has not seen; "
                             "give strangers' images with --non_member_folder")
    return user_audit.out_world_of_data(data, rows)


def beside(args, record, photos, suspect, out_world, strangers, label, folder, bank, order, answers, plan):
    """Algorithm 1's verdict for the user's published photos under the user's own key."""
    others = user_audit.ask_out_world(out_world, strangers, record, suspect, folder / "out_world", bank)
    own_queries = [photo.number * (plan.keys + 1) for photo in record.photos if photo.published]
    own = user_audit.rows_of(answers, order, own_queries)
    found = user_audit.algorithm_1(*(user_audit.limit_answers(some, args.label_only, args.top_k)
                                     for some in (own, others)), strangers, label,
                                   1e-3 if args.verdict_fpr is None else args.verdict_fpr, suspect.classes,
                                   args.label_only)
    found["near_duplicates"] = user_audit.near_duplicates(photos, out_world)
    if found["near_duplicates"]:
        print(f"warning: {found['near_duplicates']} of the user's photos have near-duplicates among the strangers' "
              "images, so that Algorithm 1's verdict can't be trusted; remove them", file=sys.stderr)
    return found


def write_verdict(folder, record, suspect, photos, audit, result, order, digests, answers, grid):
    """Plot, evidence bundle and result.json, the last."""
    public = records.public_part(record, len(record.batches))
    document = {"record": public, "commitment": record.commitments[-1], "selection_key": record.selection_key,
                "audit": audit, "classes": suspect.classes, "model": suspect.identity,
                "preprocessing": {name: getattr(suspect.preprocessing, name) for name in
                                  ("size", "resize", "mean", "std", "white", "interpolation", "source")},
                "result": result, "versions": records.software_versions()}
    report.draw_grid(grid, result, folder / "grid.png")
    evidence.write_bundle(folder / "evidence.zip", document, order, digests, answers)
    runs.write_json(folder / "result.json", {**result, "audit": audit, "model": suspect.identity,
                                             "commitment": record.commitments[-1], "evidence": record.evidence,
                                             "working_size": photos.side, "versions": document["versions"]})


def replay(args):
    """Recompute p from a bundle; with --record and --originals also every image that was sent."""
    document, order, digests, answers = evidence.read_bundle(args.replay)
    public, audit = evidence.check_document(document, len(answers), args.replay)
    result, _, _ = user_audit.judge(public["batches"], document["selection_key"], audit, order, answers,
                                    document.get("classes"))
    claimed = {name: value for name, value in document["result"].items() if name != "algorithm_1"}
    same = json.loads(json.dumps(result)) == claimed
    table = [("commitment", f"{document['commitment']} (fits the record's public part)"),
             ("selection", "follows from the committed key"), ("answers", f"{len(answers)}"),
             ("p recomputed", f"{result['p_value']:.6g}")]
    right = len(order)
    if args.record:
        record = records.read_record(args.record)
        if record.commitments[-1] != document["commitment"]:
            raise runs.UserError(f"{args.record} is not the record of this bundle: its commitment is another")
        shape = {name: tuple(value) if isinstance(value, list) else value
                 for name, value in document["preprocessing"].items()}
        preprocessing = Preprocessing(**shape)
        photos = user_audit.Photos(records.locate_originals(record, args.originals, args.record), preprocessing.size)
        right = user_audit.check_queries(record, photos, preprocessing, audit, order, digests,
                                         protect.load_bank(record.settings, args.data_root))
        table.append(("images sent", f"{right} of {len(order)} are bit for bit those of record and originals"
                                     + ("" if right == len(order) else " (another kind of processor rounds marks "
                                        "differently; on the audit's own machine all must be)")))
    for name, value in table:
        print(f"{name:<14}{value}")
    print(textwrap.fill(result["sentences"], 118))
    if args.out:
        runs.write_json(Path(args.out) / "result.json", {**result, "audit": audit, "model": document["model"],
                                                         "commitment": document["commitment"]})
    if not same:
        raise runs.UserError(f"{args.replay}: its answers give p = {result['p_value']:.6g}, and its result says "
                             f"{claimed.get('p_value')} or differs elsewhere; somebody changed it")
    return 0 if right == len(order) else 1


if __name__ == "__main__":
    runs.run_script(main)

"""Audit a trained model: a run of train.py again, or any model for one user's mark record.

Again:    python eval.py --checkpoint saved_res/cifar100-wideresnet284-singleTarget-17 --instance_mi 1
One user: python eval.py --record photos_record/record.json --originals photos --checkpoint MODEL --label LABEL
Replay:   python eval.py --replay evidence.zip

MODEL for one user: a run or checkpoint of train.py; a state dict (.pt, .pth, .safetensors) with --net_type; an ONNX
file; or http(s)://host:port/v2/models/NAME, a server that speaks the Open Inference Protocol. The exact p is valid for
every model; exit code 0 whatever the verdict (with --strict 1 where something is left to be believed). Without
--record, --checkpoint is a run of train.py (or is found by the flags that named it), the training's settings come from
inside it, and --data_root has to be given again.
"""

import textwrap
from pathlib import Path

from dataset import load_dataset
from experiment import flags, folder, report, setup
from experiment.audit import ask_users, conclude
from experiment.flags import resolve_settings, tagged_paths, with_stored
from experiment.training import load_trained
from kit import cli, files
from kit.errors import UserError, run_script
from provenance import beacon, case, replay, strangers, witness
from provenance import record as records
from provenance.report import show_verdict, show_weaknesses
from suspects.flags import add_preprocessing_flags, preprocessing_of
from utils import choose_device


def make_parser():
    parser = flags.make_parser(__doc__)
    parser.add_argument("--checkpoint", help="the model: run folder, file, or address of a server")
    number = cli.number
    user = parser.add_argument_group(
        "verdict for one user", "What is not given is as it was committed before the draw."
    )
    user.add_argument("--record", help="record.json of data_marking.py")
    user.add_argument("--originals", nargs="+", default=[], help="folders with the unmarked photos")
    user.add_argument("--label", help="the photos' class: number, name, or auto (what the model says most often)")
    user.add_argument("--keys", type=number(int, 0), help="other patterns to compare with (fresh keys L)")
    user.add_argument("--selections", type=number(int, 0), help="other halves to compare with (fresh selections m)")
    user.add_argument("--alpha", type=number(float, above=0, high=0.5), help="accused wrongly at most this often")
    user.add_argument("--max_queries", type=number(int, 1), help="plan the grid for at most so many queries")
    user.add_argument("--audit_seed", help="a text that the other side adds to the draw of the audit")
    user.add_argument("--label_only", action="store_true", help="look at the top class alone")
    user.add_argument("--top_k", type=number(int, 1), help="look at the k largest probabilities alone")
    user.add_argument("--non_member_folder", help="strangers' images: adds Algorithm 1's verdict (or give --dataset)")
    user.add_argument("--publication", action="append", default=[], help="where the photos were published, repeatable")
    user.add_argument("--witness", metavar="KEYFILE", help="sign all requests and replies with this Ed25519 key")
    user.add_argument("--dry_run", action="store_true", help="say how many queries would be asked, ask none")
    check = parser.add_argument_group("check of somebody else's evidence")
    check.add_argument(
        "--replay",
        metavar="BUNDLE",
        help="check an evidence bundle; with --record and --originals also "
        "what was asked, with --checkpoint also what was answered",
    )
    check.add_argument("--strict", action="store_true", help="exit code 1 unless nothing is left to be believed")
    check.add_argument("--beacon_chain", metavar="FILE", help="facts of another beacon than drand's quicknet (JSON)")
    check.add_argument("--timestamp_roots", metavar="FILE", help="certificates of the time-stamping authority (PEM)")
    model = parser.add_argument_group("model under audit")
    add_preprocessing_flags(model)
    model.add_argument("--query_batch", type=number(int, 1, 4096), default=64, help="images a query (default 64)")
    model.add_argument("--header", action="append", default=[], help="'Name: $VARIABLE' for the server, repeatable")
    model.add_argument("--rate_limit", type=number(float, above=0), help="requests a second")
    model.add_argument("--timeout", type=number(float, above=0), default=30.0, help="seconds to wait for an answer")
    model.add_argument("--retries", type=number(int, 0, 100), default=6, help="of a request that failed")
    return parser


def main():
    args = make_parser().parse_args()
    if args.replay:
        return check_evidence(args)
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
    records.read_finished(args.record)  # before a model is opened, or a server asked
    suspect = open_suspect(args)
    given = {name: getattr(args, name, None) for name in case.Options.__dataclass_fields__}
    given["publications"] = tuple(args.publication)
    options = case.Options(**{name: value for name, value in given.items() if value is not None})
    planned = case.open_case(
        args.record, args.originals, suspect, options, find_out_world(args, suspect), args.out, args.data_root
    )
    print(planned.describe())
    if args.dry_run:
        print("dry run: nothing was asked, no plan was fixed")
        return 0
    result = planned.run(witness.read_key(args.witness) if args.witness else None)
    show_verdict(result, planned.folder)
    return 1 if args.strict and result["weaknesses"] else 0


def open_suspect(args):
    """The model that --checkpoint names."""
    server = {"headers": args.header, "rate_limit": args.rate_limit, "timeout": args.timeout, "retries": args.retries}
    return case.open_suspect(
        args.checkpoint,
        args.net_type,
        choose_device(args.device),
        args.precision,
        preprocessing_of(args),
        args.query_batch,
        server,
    )


def find_out_world(args, suspect):
    """Strangers' images: --non_member_folder, or the images of --dataset that the model was not trained on."""
    if args.non_member_folder:
        return strangers.out_world_of_folder(args.non_member_folder, suspect)
    if args.dataset is None:
        return None
    return strangers.out_world_of_dataset(args.dataset, args.data_root, args.image_size, suspect)


def check_evidence(args):
    """Check an evidence bundle; with --record and --originals also the questions, with --checkpoint also the
    answers.
    """
    chain = beacon.read_chain(args.beacon_chain) if args.beacon_chain else None
    suspect = open_suspect(args) if args.checkpoint else None
    found = replay.replay(
        args.replay,
        args.record,
        args.originals,
        suspect,
        args.out,
        args.data_root,
        roots=args.timestamp_roots,
        chain=chain,
    )
    show_weaknesses(found.weaknesses)
    cli.show_rows(found.rows, 14)
    print(textwrap.fill(found.result["sentences"], 118))
    if args.out:
        files.write_json(
            Path(args.out) / "result.json",
            {**found.result, "weaknesses": found.weaknesses, "model": found.document["model"], "right": found.right},
        )
    return 0 if found.right and not (args.strict and found.weaknesses) else 1


if __name__ == "__main__":
    run_script(main)

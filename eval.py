"""Audit a trained model: a run of train.py again, or any model for one user's mark record.

Again:    python eval.py --checkpoint saved_res/cifar100-wideresnet284-25000-singleTarget-17 --instance_mi 1
One user: python eval.py --record photos_record/record.json --originals photos --checkpoint MODEL --label LABEL
Replay:   python eval.py --replay evidence.zip

MODEL for one user: a run or checkpoint of train.py; a state dict (.pt, .pth, .safetensors) with --net_type; an ONNX
file; a diffusion model (a pipeline's folder, a .safetensors checkpoint, or a LoRA with --base_model); an encoder or a
captioner (a folder of transformers or open_clip); or http(s)://host:port/v2/models/NAME, a server that speaks the Open
Inference Protocol. The exact p is valid for every model; exit code 0 whatever the verdict (with --strict 1 where
something is left to be believed). Without --record, --checkpoint is a run of train.py (or is found by the flags that
named it), the training's settings come from inside it, and --data_root has to be given again.
"""

from kit.errors import UserError, run_script

RECORD, CHECK, MODEL, RUN = "audit of a record", "check of evidence", "model under audit", "audit of a run"
# Of the flags of a run, those that mean something for a record as well; and what others are called there.
SHARED = ("--dataset", "--data_root", "--image_size", "--num_of_non_member_user", "--verdict_fpr", "--out")
SHARED += ("--base_model",)
REPLAYED = ("--record", "--originals", "--reference", "--reference_net_type", "--model_config")
INSTEAD = {
    "--batch_size": "--query_batch",
    "--exact_keys": "--keys",
    "--seed": "--audit_seed",
    "--calibrate": "--reference",
}


def make_parser():
    from experiment.flags import add_run_flags
    from kit import cli
    from kit.names import MOST_VIEWS, SIGNALS
    from provenance.flags import add_trust_flags
    from suspects.flags import add_preprocessing_flags, add_server_flags

    usage = "%(prog)s [--record RECORD | --replay BUNDLE] --checkpoint MODEL [more flags]"
    parser, number = cli.Parser(__doc__, usage=usage), cli.number
    user = parser.add_argument_group(
        RECORD, "Was a model trained on my photos? What is not given is as it was fixed when they were marked."
    )
    add = user.add_argument
    add("--record", help="record.json of data_marking.py (default: none, and a run of train.py is audited)")
    add("--originals", nargs="+", default=[], help="folders with the unmarked photos (default: where they were)")
    add(
        "--label",
        help="what the photos show, as the model calls it: name or number of the class, or auto, what it says most "
        "often (default: as fixed, auto)",
    )
    add(
        "--reference",
        action="append",
        metavar="MODEL",
        help="a model that has not seen the photos, asked the same: what it finds difficult is no memory; repeatable, "
        "best fixed with the photos (default: none; none: without those that were fixed)",
    )
    add(
        "--model_config",
        metavar="FOLDER",
        help="pipeline's folder that says what a single .safetensors checkpoint is (default: --base_model)",
    )
    add("--reference_net_type", help="network of a reference that is a file of weights alone (no default)")
    add(
        "--query_augmentations",
        type=number(int, 0, MOST_VIEWS),
        help=f"show each marked photo so many times, mirrored and shifted as in training, at most {MOST_VIEWS}; 0: as "
        "it is alone (default: as fixed, 2)",
    )
    add("--keys", type=number(int, 0), help="other patterns to compare with (fresh keys; default: as fixed, 19)")
    add(
        "--selections",
        type=number(int, 0),
        help="other halves of the photos to compare with (fresh selections; default: as fixed, 9,999)",
    )
    add(
        "--alpha",
        type=number(float, above=0, high=0.5),
        help="an innocent model is accused at most this often (default: as fixed, 0.001)",
    )
    add("--max_queries", type=number(int, 1), help="show the model at most so many pictures (default: no limit)")
    add(
        "--sequential",
        nargs="?",
        const="yes",
        choices=("yes", "no"),
        help="ask photo by photo, and stop as soon as the evidence is there; no: all at once (default: as fixed)",
    )
    add(
        "--caption",
        metavar="TEXT",
        help="what a generator is told that every photo shows (default: as fixed, what the .txt beside each said)",
    )
    add("--audit_seed", help="a text that the other side adds to the draw of the comparisons (default: none)")
    add("--label_only", action="store_true", help="use its first answer alone (default: as fixed, all it says)")
    add(
        "--top_k",
        type=number(int, 1),
        help="use its first k answers and how sure it is of each (default: as fixed, all it says)",
    )
    add(
        "--non_member_folder",
        help="strangers' photos: adds the paper's own comparison, Algorithm 1, as --dataset does (default: none)",
    )
    add("--publication", action="append", default=[], help="where they were published, repeatable (default: not said)")
    add("--witness", metavar="KEYFILE", help="sign what was asked and answered with this Ed25519 key (default: don't)")
    add("--dry_run", action="store_true", help="say how many pictures would be shown, show none (default: show them)")
    check = parser.add_argument_group(CHECK, "Is somebody else's evidence right?")
    add = check.add_argument
    add(
        "--replay",
        metavar="BUNDLE",
        help="the evidence; with --record and --originals also what was asked is checked, with --checkpoint also what "
        "was answered (default: nothing is checked)",
    )
    add(
        "--strict",
        action="store_true",
        help="exit code 1 unless nothing is left to be believed; for --record, too (default: 0 if it is right)",
    )
    add("--witness_key", metavar="HEX", help="public key of a witness whom you trust (default: nobody is trusted)")
    add_trust_flags(check)
    model = parser.add_argument_group(
        MODEL, "How it is asked; by default as it says itself. A file of weights alone needs --net_type."
    )
    add = model.add_argument
    add("--checkpoint", help="run folder, file, or address of a server (default: the run that its flags name)")
    add_preprocessing_flags(model)
    add_server_flags(model)
    model.add_argument(
        "--signal",
        choices=SIGNALS,
        help="what a diffusion model is asked: its denoising error, or a signal of the literature (default: as fixed, "
        "error)",
    )
    run = parser.add_argument_group(
        RUN,
        "What a run of train.py gives away, asked again. The settings of its training come from inside\n"
        "it; those that are given find it, or are compared with them.",
    )
    add_run_flags(lambda name: model if name == "model" else run)
    return parser


def main():
    parser = make_parser()
    args = parser.parse_args()
    check_flags(parser, args)
    if args.replay:
        return check_evidence(args)
    if args.record:
        return audit_user(args)
    from experiment.run import audit_again
    from suspects.opened import open_model

    return audit_again(args, open_model)


def check_flags(parser, args):
    """Raise UserError for a flag of the other kind of audit, which would be ignored."""
    from kit.cli import given_flags

    if not (args.record or args.replay):
        if others := given_flags(parser, args, RECORD):
            raise UserError(f"{others[0]} is for the audit of a record", advice="give --record, or leave it out")
        if args.signal:
            raise UserError("--signal is for diffusion models", advice="leave it out", flag="--signal")
        return
    said = [flag for flag in given_flags(parser, args, RECORD) if flag not in REPLAYED] if args.replay else []
    if said:
        raise UserError(f"{said[0]} is for an audit", advice="leave it out: the evidence says what was asked")
    others = [flag for flag in given_flags(parser, args, RUN) if flag not in SHARED]
    if others:
        instead = INSTEAD.get(others[0])
        raise UserError(
            f"{others[0]} is for runs of train.py",
            advice=f"use {instead}" if instead else "leave it out: the record knows how its photos were marked",
            flag=others[0],
        )


def audit_user(args):
    """The exact verdict for one user's record, and Algorithm 1's beside it where there is an out-world."""
    from provenance import case, witness
    from provenance import record as records
    from provenance.report import show_verdict

    record = records.read_finished(args.record)  # before a model is opened, or a server asked
    suspect = open_suspect(args, record)
    given = {name: getattr(args, name, None) for name in case.Options.__dataclass_fields__}
    given["publications"] = tuple(args.publication)
    given["sequential"] = args.sequential and args.sequential == "yes"
    options = case.Options(**{name: value for name, value in given.items() if value is not None})
    planned = case.open_case(
        args.record,
        args.originals,
        suspect,
        options,
        find_out_world(args, suspect),
        args.out,
        args.data_root,
        roots=args.timestamp_roots,
        chain=find_chain(args),
        references=open_references(args),
    )
    print(planned.describe())
    if args.dry_run:
        print("dry run: nothing was asked, no plan was fixed")
        return 0
    result = planned.run(witness.read_key(args.witness) if args.witness else None)
    show_verdict(result, planned.folder)
    return 1 if args.strict and result["weaknesses"] else 0


def open_suspect(args, record=None):
    """The model that --checkpoint names; record: the one whose plan says what it is asked."""
    from provenance import opening
    from suspects.embeddings import EmbeddingSuspect
    from suspects.flags import preprocessing_of
    from utils import choose_device

    found = opening.open_suspect(
        args.checkpoint,
        server_options(args),
        net_type=args.net_type,
        device=choose_device(args.device),
        precision=args.precision,
        overrides=preprocessing_of(args),
        batch_size=args.query_batch,
        base=args.base_model,
        config=args.model_config,
        signal=args.signal or (record.plan.signal if record else "error"),
    )
    if args.signal and "signal" not in found.identity.get("score", {}):
        raise UserError("--signal is for diffusion models", advice="leave it out", flag="--signal")
    return EmbeddingSuspect(found) if args.answers == "embeddings" else found


def open_references(args):
    """The models that --reference names; None where none is spoken of, [] for "none"."""
    from provenance import references

    return references.open_models(args.reference, args.reference_net_type, args.device, args.query_batch)


def server_options(args):
    """What opening a server takes beside its address."""
    from provenance import opening
    from suspects.flags import server_options_of
    from suspects.server import is_address

    options, place, name = server_options_of(args), args.calibration, args.confirm_preprocessing
    if not (args.checkpoint and is_address(args.checkpoint)):
        if place or name:
            raise UserError(
                "--calibration is for servers", advice="a file needs --mean and --std", flag="--calibration"
            )
        return options
    if place and args.answers == "embeddings":
        raise UserError(
            "--calibration looks at how sure of a class a model is, and embeddings name none",
            advice="give --mean and --std as in its training",
            flag="--calibration",
        )
    stored = opening.stored_input(args.record, args.checkpoint, args.out) if args.record and not args.replay else None
    found = (stored or {}).get("calibration")
    if stored and (name is None or not found or found["chosen"] == name):
        return {**options, "stored": stored}
    if place and args.dry_run:
        raise UserError("--calibration shows the model photos, and --dry_run none", advice="leave one of them out")
    return {**options, "calibration": opening.calibration_of(place, name, args.record, args.originals)}


def find_out_world(args, suspect):
    """Strangers' images: --non_member_folder, or the images of --dataset that the model was not trained on."""
    from provenance import strangers

    if args.non_member_folder:
        return strangers.out_world_of_folder(args.non_member_folder, suspect)
    if args.dataset is None:
        return None
    return strangers.out_world_of_dataset(args.dataset, args.data_root, args.image_size, suspect)


def find_chain(args):
    """The beacon's Chain in --beacon_chain, None for the pinned one."""
    from provenance import beacon

    return beacon.read_chain(args.beacon_chain) if args.beacon_chain else None


def check_evidence(args):
    """Check an evidence bundle; with --record and --originals also the questions, with --checkpoint also the
    answers.
    """
    import textwrap
    from pathlib import Path

    from kit import cli, files
    from provenance import record as records
    from provenance import replay
    from provenance.report import show_weaknesses

    record = records.read_finished(args.record) if args.record and args.checkpoint else None
    suspect = open_suspect(args, record) if args.checkpoint else None
    found = replay.replay(
        args.replay,
        args.record,
        args.originals,
        suspect,
        args.out,
        args.data_root,
        roots=args.timestamp_roots,
        chain=find_chain(args),
        witness_key=args.witness_key,
        references=open_references(args) or (),
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

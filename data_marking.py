r"""Mark the photos of a folder: a marked folder to publish, and a private record to prove with.

Example: python data_marking.py --data_folder path/to/user_x_data --holdout 0.5 \
             --img_blending_ratio .7 --noise_injection_type perlin --noise_norm 8
Writes path/to/user_x_data_marked (publish it) and path/to/user_x_data_record (keep it secret: record.json with the key,
the photos held out, a contact sheet, result.json). The photos themselves are never changed. The marked copies carry no
EXIF or GPS data. Exit code 1: some files could not be marked; they are named.
"""

import sys

from kit.errors import UserError, run_script

MOST_NAMED = 10  # files that are named one by one


def make_parser():
    from experiment.flags import add_marking_flags
    from kit import cli
    from kit.names import MOST_VIEWS, SIGNALS, VISIBILITIES
    from provenance.flags import add_trust_flags

    parser, number = cli.Parser(__doc__), cli.number
    parser.add_argument("--data_folder", help="folder with the photos, searched with its sub-folders (no default)")
    marking = parser.add_argument_group("data marking")
    marking.add_argument(
        "--visibility",
        choices=tuple(VISIBILITIES),
        help="clear (default, the paper's mark), faint (hardly seen), or none: photos are published as they are, and "
        "the secret is which half of them it was; a flag of its own goes before what the name stands for",
    )
    add_marking_flags(marking)
    marking.add_argument("--data_root", help="where --ood_pattern tinyimagenet or celeba lies (default ./dataset)")
    output = parser.add_argument_group("output")
    output.add_argument("--format", choices=("png", "jpeg"), help="png (default, lossless) or jpeg")
    output.add_argument(
        "--metadata",
        choices=("drop", "keep"),
        help="drop (default: the published files hold pixels alone) or keep: with --visibility none, publish the very "
        "files, EXIF and GPS data included",
    )
    output.add_argument(
        "--layout",
        choices=("kohya", "imagefolder"),
        help="copy the published photos and their captions into a folder for a trainer of diffusion models, too "
        "(default: don't)",
    )
    output.add_argument("--repeats", type=number(int, 1, 10_000), default=10, help="of --layout kohya (default 10)")
    output.add_argument("--concept", help="what --layout kohya calls the photos (default: the folder's name)")
    output.add_argument("--quality", type=number(int, 1, 100), help="of JPEG files (default 95)")
    output.add_argument(
        "--overwrite",
        action="store_true",
        help="replace marked photos; a new draw keeps the old record under another name, and counts it (default: "
        "refuse)",
    )
    output.add_argument(
        "--out",
        help="folder for the marked photos and the record, where none can be made beside the photos (default: beside)",
    )
    output.add_argument(
        "--keep_originals",
        choices=("yes", "no"),
        default="yes",
        help="keep copies of all originals with the record, because phones and clouds encode their libraries anew and "
        "the proof needs them to the byte (default yes; takes as much space as the photos)",
    )
    output.add_argument("--dry_run", action="store_true", help="say what would be done, write nothing (default: do it)")
    secret = parser.add_argument_group("record")
    secret.add_argument(
        "--holdout",
        type=number(float, 0, 0.9),
        help="share of the photos, chosen at random, that is not published (0.5 gives the strongest proof; default 0, "
        "with --visibility none 0.5)",
    )
    secret.add_argument(
        "--record",
        help="record.json of an earlier call: mark further photos, in a batch of their own (default: a new record)",
    )
    secret.add_argument(
        "--seed",
        type=number(int, 0),
        help="draw the secret from a number, for experiments: such a record is no evidence (default: from the system)",
    )
    secret.add_argument(
        "--verify", metavar="RECORD", help="recompute all marks of a record and check it (default: mark photos)"
    )
    secret.add_argument(
        "--originals",
        nargs="+",
        default=[],
        help="for --verify: where the unmarked photos are now (default: where they were)",
    )
    secret.add_argument(
        "--marked_folder", help="for --verify: where the marked photos are now (default: where they were)"
    )
    public = parser.add_argument_group(
        "public randomness",
        "Nobody can say that you chose key and photos: a public beacon draws them after the commitment.",
    )
    public.add_argument(
        "--beacon",
        default="drand",
        help="drand (default: wait for its round, about a minute, and fetch it), none (the proof then holds if you are "
        "honest), or the round that somebody fetched: a file with its JSON, or ROUND:SIGNATURE",
    )
    public.add_argument(
        "--timestamp",
        metavar="URL|FILE",
        help="have the commitment dated by a time-stamping service, RFC 3161 (default: it is not)",
    )
    add_trust_flags(public)
    plan = parser.add_argument_group(
        "plan of the audit", "Fixed with the photos: what is chosen later weakens the proof."
    )
    plan.add_argument(
        "--label", help="class of the photos, as the model will call it (default auto: what it says most)"
    )
    plan.add_argument(
        "--label_only", action="store_true", help="use the model's top class alone (default: all it says)"
    )
    plan.add_argument("--top_k", type=number(int, 1), help="use its k largest probabilities alone (default: all)")
    plan.add_argument(
        "--reference",
        action="append",
        metavar="MODEL",
        help="a model that has not seen the photos, which the audit will ask, too: what it finds difficult is no "
        "memory; repeatable; train: make one of --dataset, without what looks like the photos (default: none)",
    )
    plan.add_argument(
        "--dataset", help="for --reference train: labelled public images, imagefolder or another (no default)"
    )
    plan.add_argument("--image_size", type=number(int, 8, 4096), help="their side in pixels (default: their own)")
    plan.add_argument("--reference_net_type", help="network of a reference that is a file of weights (no default)")
    plan.add_argument("--device", default="auto", help="where references are opened (default auto)")
    plan.add_argument(
        "--caption",
        metavar="TEXT",
        help="what a generator that is told captions is told of every photo (default: what the .txt beside each says, "
        "if any)",
    )
    plan.add_argument(
        "--base_model",
        metavar="MODEL",
        help="what a LoRA, a generator or an encoder under audit will be said to be made of: a folder, or a file with "
        "--model_config (default: none; one that is named later has to be believed in)",
    )
    plan.add_argument(
        "--model_config", metavar="FOLDER", help="pipeline's folder that says what a single file is (default: none)"
    )
    plan.add_argument(
        "--signal", choices=SIGNALS, help="what a diffusion model will be asked (default error, its denoising error)"
    )
    plan.add_argument(
        "--query_augmentations",
        type=number(int, 0, MOST_VIEWS),
        help=f"show the model each photo so many times, mirrored and shifted, at most {MOST_VIEWS} (default 2, "
        f"without marks {MOST_VIEWS}); 0: as it is alone",
    )
    plan.add_argument(
        "--keys", type=number(int, 0), help="other patterns to compare with (default 19, without marks 0)"
    )
    plan.add_argument(
        "--selections",
        type=number(int, 0),
        help="other halves to compare with (default 9,999, without marks 99,999)",
    )
    plan.add_argument(
        "--sequential",
        action="store_true",
        help="ask photo by photo, and stop as soon as the evidence is there: few queries where a service has to be "
        "paid, a little less power (default: all at once); needs a hold-out and no photos that look alike",
    )
    plan.add_argument(
        "--plain_arm",
        action="store_true",
        help="ask about the photos as they are, too: a second test, which an owner who removes marks does not escape; "
        "both tests have half of alpha (default: marked photos alone); needs a hold-out",
    )
    plan.add_argument(
        "--alpha", type=number(float, above=0, high=0.5), help="accused wrongly at most this often (default 0.001)"
    )
    return parser


def main():
    args = make_parser().parse_args()
    import torch

    torch.set_num_threads(1)  # photos are spread over the cores, one each
    if args.verify:
        return verify(args)
    if args.data_folder is None:
        raise UserError(
            "--data_folder is missing", advice="give the folder with the photos to mark, or --verify RECORD"
        )
    if args.record and args.seed is not None:
        raise UserError("--record has a secret already", advice="leave --seed out")
    from provenance import commit, protect
    from provenance.folder import inspect_folder

    public = commit.parse_beacon(args.beacon, args.beacon_chain, args.timestamp, args.timestamp_roots)
    settings, bank = protect.resolve_settings(vars(args), args.record, args.data_root)
    if args.holdout is None:
        args.holdout = 0.5 if settings.unmarked else 0.0
    if settings.unmarked and not args.holdout:
        raise UserError(
            "--holdout 0 with --visibility none leaves no secret: all photos would be published as they are",
            advice="give --holdout 0.5",
            flag="--holdout",
        )
    folder = inspect_folder(args.data_folder, settings.format)
    asked = (folder, settings, args.holdout, args.seed, args.record, args.overwrite)
    rest = (public, args.out, args.keep_originals == "yes")
    if "train" in (args.reference or ()):
        protect.open_record(*asked, None, *rest)  # what can't be marked is refused before a reference is trained
    trained = train_reference(folder, args)
    job = protect.open_record(*asked, plan_of(args, settings), *rest)
    if trained:
        print(f"reference: {trained}; keep it, the audit will need it (--reference)")
    if args.dry_run:
        return show(folder, job, None, args)
    record, rows = protect.run(job, bank, args.overwrite)
    if args.layout:
        from provenance import layouts

        concept = args.concept or folder.path.resolve().name
        place, count = layouts.export(record, job.marked_folder, args.layout, concept, args.repeats, args.caption)
        print(f"for a trainer: {count} photos in {place}")
    return show(folder, job, rows, args, record)


def train_reference(folder, args):
    """Where --reference train left its model, which then stands in its place among the references; None without."""
    if "train" not in (args.reference or ()):
        return None
    from provenance import protect, trained_reference
    from utils import choose_device

    if args.dry_run:
        raise UserError("--reference train takes a while, and --dry_run writes nothing", advice="leave one of them out")
    if not args.dataset:
        raise UserError(
            "--reference train needs labelled public images",
            advice="give --dataset, such as imagefolder, and --data_root",
            flag="--dataset",
        )
    path = protect.places_of(args.data_folder, args.out)[1] / trained_reference.REFERENCE_FILE
    path, images, alike = trained_reference.train(
        args.dataset, args.data_root, folder, path, choose_device(args.device), args.image_size
    )
    args.reference = [str(path) if one == "train" else one for one in args.reference]
    left = f", {alike} that look like your photos left out" if alike else ""
    return f"{path}, trained on {images:,} images{left}"


def plan_of(args, settings):
    """The AuditPlan of the flags, None where none of them was given."""
    from provenance import references
    from provenance.plan import AuditPlan
    from suspects.opened import base_digest

    if args.sequential and args.plain_arm:
        raise UserError(
            "--plain_arm does not go with --sequential: each takes half of alpha",
            "leave one of them out",
            flag="--plain_arm",
        )
    chosen = {
        name: getattr(args, name) for name in ("label", "top_k", "keys", "selections", "alpha", "caption", "signal")
    }
    if args.label_only:
        chosen["answers"] = "label only"
    if args.base_model:
        chosen["base"] = base_digest(args.base_model, args.model_config)
    elif args.model_config:
        raise UserError("--model_config goes with --base_model", advice="leave it out", flag="--model_config")
    for name in ("sequential", "plain_arm"):
        if getattr(args, name):
            chosen[name] = True
    if args.query_augmentations is not None:
        chosen["views"] = max(1, args.query_augmentations)
    if models := references.open_models(args.reference, args.reference_net_type, args.device):
        chosen["references"] = sorted(map(references.digest_of, models))
    if all(value is None for value in chosen.values()):
        return None
    return AuditPlan.usual(args.holdout > 0, not settings.unmarked, **chosen)


def show(folder, job, rows, args, record=None):
    """The short table at the end; returns the exit code."""
    import numpy as np

    from kit.cli import show_rows
    from provenance import disclosed
    from provenance import record as records
    from provenance.folder import half_captioned
    from provenance.report import show_weaknesses

    told = [photo.get("caption") for photo in folder.photos]
    if some := half_captioned(told):
        print(f"captions: {some}", file=sys.stderr)
    for name, reason in folder.skipped:
        print(f"skipped: {name}: {reason}", file=sys.stderr)
    count, published = len(job.numbers), job.published
    table = [("photos", f"{count} ({job.note})"), ("to publish", f"{published}, in {job.marked_folder}")]
    originals, held_out = (job.record_folder / records.COPIES[is_published] for is_published in (True, False))
    if kept := [path.stat().st_size for path in originals.rglob("*") if path.is_file()]:
        table.append(("their originals, kept", f"{len(kept)}, {sum(kept) / 1e6:,.1f} MB in {originals}"))
    if published < count:
        table.append(("held out, never publish them", f"{count - published}, copies in {held_out}"))
    if folder.skipped:
        table.append(("skipped, unreadable", len(folder.skipped)))
    if folder.duplicates:
        table.append(("skipped, same file twice", f"{len(folder.duplicates)}, such as {folder.duplicates[0][0]}"))
    if folder.ignored:
        table.append(("ignored, no photos", named(folder.ignored)))
    if captions := sum(one is not None for one in told):
        table.append(("captions beside them", captions))
    if folder.alike:
        together = ", drawn together" if job.record.batches[-1].grouped else ""
        table.append((f"look alike{together}", named([" = ".join(names) for names in folder.alike], "; ")))
    if rows is None:
        table.append(("dry run", "nothing was written"))
    elif job.record.settings.unmarked:
        table.append(("marks", "none: nothing was changed, and which half is published is the secret"))
    elif rows:
        table += [
            (name, f"{np.mean(values):.2f} on average, lowest {min(values):.2f}")
            for name, values in (
                ("PSNR in dB", [row["psnr"] for row in rows if row["psnr"] is not None]),
                ("SSIM", [row["ssim"] for row in rows if row["ssim"] is not None]),
            )
            if values
        ]
    if rows:
        table.append(("contact sheet", job.record_folder / "contact_sheet.png"))
    if rows is not None:
        table += [("record, keep it secret", job.record_path), ("commitment", record.commitments[-1])]
    show_rows(table)
    if published < count:
        show_plan(count, job.record.settings)
    if rows is not None:
        show_weaknesses(disclosed.weaknesses(record, job.record_path, args.timestamp_roots, job.public.chain))
        print(
            "If the commitment is not posted yet, do it at once, where its date can be checked later (a public\n"
            "post, an e-mail to several people, a time-stamping service): it reveals nothing, and has to be older\n"
            "than the draw."
        )
        if published == count and not args.record:
            print("note: --holdout 0.5 would give a much stronger proof from the same number of queries")
    return 1 if folder.skipped else 0


def show_plan(photos, settings):
    """What so many photos could show, as far as that was measured."""
    import textwrap

    from kit.names import VISIBILITIES
    from provenance import planner

    clear = settings.img_blending_ratio <= VISIBILITIES["clear"]["img_blending_ratio"]
    lines = planner.sentences(photos, "unchanged" if settings.unmarked else "marked" if clear else "faint")
    if lines:
        print("What so many photos could show; users found in an experiment:", *lines, sep="\n  ")
        print(textwrap.fill(planner.LIMITS, 118))


def named(names, between=", "):
    """Up to ten names, and how many more there are."""
    more = f"{between}and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{len(names)}: {between.join(names[:MOST_NAMED])}{more}"


def verify(args):
    """Check a record against the originals and the marked files; exit code 1 when something does not fit."""
    from kit.cli import show_rows
    from provenance import beacon, disclosed, protect
    from provenance import record as records
    from provenance.report import show_weaknesses

    record = records.read_record(args.verify)
    if not record.finished:
        raise UserError(f"{args.verify} is of an interrupted run", advice="give the same command as then again, first")
    bank = protect.load_bank(record.settings, args.data_root)
    originals = records.locate_originals(record, args.originals, args.verify)
    folders = [args.marked_folder or batch.marked_folder for batch in record.batches]
    rows = protect.verify(record, originals, folders, bank)
    bad = [row for row in rows if row["problem"]]
    for row in bad:
        print(f"wrong: {row['name']}: {row['problem']}", file=sys.stderr)
    exact = sum(row["differing"] == 0 for row in rows)
    chain = beacon.read_chain(args.beacon_chain) if args.beacon_chain else None
    show_rows(
        [
            ("commitment", f"{record.commitments[-1]} (opened by this record)"),
            ("draw", "key and published photos follow from it"),
            ("originals", f"{len(originals)} of {len(originals)} as recorded"),
            ("marked files", f"{len(rows) - len(bad)} of {len(rows)} as recorded, {exact} of them bit for bit"),
        ],
        14,
    )
    show_weaknesses(disclosed.weaknesses(record, args.verify, args.timestamp_roots, chain))
    print("The record is right." if not bad else "The record does not fit these files.")
    return 1 if bad else 0


if __name__ == "__main__":
    run_script(main)

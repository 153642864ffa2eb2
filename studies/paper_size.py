"""The paper's own experiment in one model: 100 users x 25 of 25,000 images, 5,000 non-member users, 100 classes.

Example: python -m studies.paper_size --data_root TINYIMAGENET32 --net_type smallnet --out results/paper-size/smallnet
TINYIMAGENET32 has 200 classes of 32 px; 100 of them have the shape of CIFAR-100, and are not CIFAR-100. train.py trains
three models: on marked images, on the same images unmarked (for the drop of the accuracy), and a reference on other
images; eval.py audits the first one with the reference beside. Then both models are asked for the exact test, in views,
about users of three groups, each with as many photos held out as published:

    marked      the target users of the first model
    unchanged   as many users whose photos it was trained on as they are
    innocent    as many users whose photos neither model has seen, marked, and once more unchanged

Every stage is skipped when its output is there; a training that was interrupted goes on. --runs trains some models
only, so that several can be trained side by side. --clean 0 leaves the unmarked model out, and what is said of it.

Public: make_parser, write_data, make_users, exact_p, RUNS, GROUPS, TESTS.
"""

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp

import utils
from attacks import exact
from attacks.difficulty import taken_out
from dataset import load_dataset
from experiment import setup, training
from experiment.folder import RunPaths
from kit import files, plots
from kit.errors import UserError, run_script
from kit.names import MOST_VIEWS
from kit.progress import Progress
from kit.tables import markdown
from paper import reported
from provenance.plan import VIEWS
from studies import common

RUNS = {"marked": (), "reference": ("--clean_train", 1, "--other_images", 1), "clean": ("--clean_train", 1)}
ALPHAS = (0.05, 0.01, 0.001)
VAL_PORTION = 0.2  # the paper's


@dataclass(frozen=True)
class Group:
    """Users of one kind, whether the model was trained on their photos, and how these are asked about. `of` names the
    photos; selections: so many that p can be below alpha / 10 also without other keys."""

    of: str
    trained_on: bool
    marked: bool
    views: int
    selections: int


GROUPS = {
    "marked": Group("marked", True, True, VIEWS, exact.SELECTIONS),
    "unchanged": Group("unchanged", True, False, MOST_VIEWS, 99_999),
    "innocent, marked": Group("innocent", False, True, VIEWS, exact.SELECTIONS),
    "innocent, unchanged": Group("innocent", False, False, MOST_VIEWS, 99_999),
}
# (name, the model judged, views, the model taken out, by_key of `taken_out`); None: all views that were asked.
TESTS = (
    ("one view, no reference", "suspect", 1, None, True),
    ("views, no reference", "suspect", None, None, True),
    ("views, reference", "suspect", None, "reference", True),
    # Version 2 of the statistic.
    ("views, reference, alike for all keys", "suspect", None, "reference", False),
    # It has seen nobody's photos, so that everybody is innocent.
    ("the reference in the model's place", "reference", None, None, True),
)


def make_parser():
    """The flags; the defaults are the paper's sizes."""
    flags = common.parser(
        __doc__,
        net_type="wideresnet284",
        epoch=100,
        seeds=[1],
        classes=100,
        train_size=25_000,
        users=100,
        samples=25,
        non_members=5000,
        keys=19,
        reference_epoch=40,
    )
    flags.add_argument("--reference_net_type", help="network of the reference (default: --net_type)")
    flags.add_argument(
        "--clean", type=int, choices=(0, 1), default=1, help="1: also on unmarked images; 0: not (default %(default)s)"
    )
    flags.add_argument("--runs", nargs="+", choices=tuple(RUNS), help="train these alone, no audit (default: all)")
    return flags


def write_data(args):
    """The folder with --classes of the classes in --data_root, spread evenly over their names."""
    source, folder = Path(args.data_root or "."), Path(args.work) / f"classes-{args.classes}"
    if (folder / "done").exists():
        return folder
    names = sorted(path.name for path in (source / "train").glob("*") if path.is_dir())
    if len(names) < args.classes:
        raise UserError(
            f"{source / 'train'} has {len(names)} classes, fewer than --classes {args.classes}",
            advice="give a folder with train/CLASS and test/CLASS with --data_root, or fewer classes",
        )
    for part, place in itertools.product(("train", "test"), range(args.classes)):
        name = names[place * len(names) // args.classes]
        shutil.copytree(source / part / name, folder / part / name, dirs_exist_ok=True)
    (folder / "done").touch()
    return folder


def reference_size(args, root):
    """(train_size, val_portion) that make train.py's --other_images 1 train on as many images as the suspect is
    trained on, but for 2 x --samples a class that neither sees: these are held out.

    Without validation images: it would choose its best epoch by photos that are held out.
    """
    available = sum(1 for _ in (root / "train").glob("*/*"))
    trained = args.train_size - round(args.train_size * VAL_PORTION)
    count = min(trained, available - args.train_size - 2 * args.samples * args.classes)
    if count < args.classes:
        raise UserError(
            f"--train_size {args.train_size} leaves too few of {available} images for a reference", advice="lower it"
        )
    return available - count, 0


def train(args, root, folder, seed, name):
    """One run of train.py, which goes on where it stopped; a finished one is only shown."""
    reference, net_type = name == "reference", args.net_type
    size, portion = reference_size(args, root) if reference else (args.train_size, VAL_PORTION)
    common.call(
        "train.py",
        *("--dataset", "imagefolder", "--data_root", root, "--device", args.device, "--seed", seed),
        *("--net_type", (args.reference_net_type or net_type) if reference else net_type),
        *("--epoch", args.reference_epoch if reference else args.epoch),
        *("--train_size", size, "--val_portion", portion),
        *("--num_of_multiTarget_diffCls", args.users, "--marked_samples_per_user", args.samples),
        *("--num_of_non_member_user", 100 if reference else args.non_members),
        *("--exact_keys", 0 if reference else args.keys),
        *RUNS[name],
        *("--out", folder / name),
    )


def calibrate(args, root, folder):
    """The audit of the marked run once more by eval.py, with the reference beside."""
    if not (folder / "calibrated" / "result.json").exists():
        common.call(
            "eval.py",
            *("--checkpoint", folder / "marked", "--calibrate", folder / "reference", "--exact_keys", 0),
            *("--data_root", root, "--device", args.device, "--out", folder / "calibrated"),
        )


def make_users(experiment, unseen):
    """{name of `Group.of`: `utils.Users`, one for each target user and in its class}: the first half of each one's
    samples is published, the second held out.

    unseen: rows that the reference was not trained on, int64 (n,). Nobody's held-out photos, and no photo of an
    innocent user, was seen by either model. Published and held-out photos of one user are of one kind, training images
    or test images of the data set.
    """
    targets, labels, is_test = experiment.users, experiment.data.labels.numpy(), experiment.data.is_test.numpy()
    samples, splits = targets.samples.shape[1], experiment.splits
    pool = np.intersect1d(splits.non_member.numpy(), unseen)
    draws, rows = utils.key_generator(targets.key, "paper size"), {"marked": [], "unchanged": [], "innocent": []}
    for own, label in zip(targets.samples, targets.classes, strict=True):
        of_class = pool[labels[pool] == label]
        held_out, strangers = (draws.permutation(of_class[is_test[of_class] == side]) for side in (False, True))
        left = np.setdiff1d(splits.train[labels[splits.train] == label].numpy(), own)
        rows["marked"].append([*own, *held_out[:samples]])
        rows["unchanged"].append([*draws.permutation(left)[:samples], *held_out[samples : 2 * samples]])
        rows["innocent"].append(strangers[: 2 * samples])
    if len(np.unique(targets.classes)) < len(targets) or {len(row) for each in rows.values() for row in each} != {
        2 * samples
    }:
        raise UserError(
            f"the images have no room for {len(targets)} users of {samples} samples, and as many held out",
            advice="give at most as many --users as --classes, and fewer --samples or a lower --train_size",
        )
    return {
        name: utils.Users(
            np.array(each), targets.classes, targets.key if name == "marked" else utils.derive_key(targets.key, name)
        )
        for name, each in rows.items()
    }


def ask(args, root, folder):
    """The cross-entropies of both models about the users of all groups, float32 (users, 2 x samples, keys + 1, views)
    by (group, model). A group that was asked about is read from its file."""
    missing = [name for name in GROUPS if not (folder / f"{name}.npz").exists()]
    if missing:
        data, device = load_dataset("imagefolder", root), utils.choose_device(args.device)
        stored, run = files.read_json(folder / "marked" / "config.json"), RunPaths.of_folder(folder / "marked")
        experiment = setup.prepare(stored["training"], stored["audit"], data)
        setup.check_marks(experiment, run)
        queries = {"suspect": training.load_trained(run.model, device)[0]}
        queries["reference"], record = training.load_trained(folder / "reference" / "model.safetensors", device)
        users = make_users(experiment, setup.unseen_rows(record["settings"], data).numpy())
        for name in missing:
            losses = ask_group(queries, data, users[GROUPS[name].of], GROUPS[name], args.keys, name)
            files.write_arrays(folder / f"{name}.npz", classes=users[GROUPS[name].of].classes, **losses)
    found = {name: files.read_arrays(folder / f"{name}.npz") for name in GROUPS}
    return {(name, model): arrays[model] for name, arrays in found.items() for model in ("suspect", "reference")}


def ask_group(queries, data, users, group, keys, name="users"):
    """{model: float32 (users, photos, keys + 1, views)}: cross-entropies of the users' own class. Column 0 is under the
    own key; unchanged photos have no other."""
    fresh = [utils.derive_key(users.key, "fresh key", number + 1) for number in range(keys if group.marked else 0)]
    found = {model: [] for model in queries}
    for user, (rows, label) in enumerate(Progress(list(zip(users.samples, users.classes, strict=True)), name)):
        originals = data.images[torch.from_numpy(rows)]
        kind = common.Kind(common.SETTINGS if group.marked else common.UNCHANGED, views=group.views, user=user)
        for model, logits in common.ask_views(queries, originals, [users.key, *fresh], kind).items():
            logits = logits.astype(np.float64)
            found[model].append((logsumexp(logits, axis=-1) - logits[..., label]).astype(np.float32))
    return {model: np.stack(losses) for model, losses in found.items()}


def exact_p(losses, reference, views, selections, by_key=True):
    """p of each user: float64 (users,). losses: (users, photos, keys + 1, views), the first half of the photos
    published; reference: the same of a model that explains difficulty, or None; views: how many count, None for all;
    selections: bool (m + 1, photos); by_key: of `taken_out`."""
    scores, beside = (
        None if values is None else exact.score(-values[..., :views].astype(np.float64)).mean(axis=3)
        for values in (losses, reference)
    )
    found = []
    for user, own in enumerate(scores):
        left = taken_out(own[:, :, None], () if beside is None else beside[user : user + 1], by_key)
        found.append(exact.p_value(exact.statistic_grid(left, selections, 0)[0]))
    return np.array(found)


def p_values(losses, seed):
    """A row for each user and test: {"seed", "group", "test", "trained_on", "user", "p"}."""
    for name, group in GROUPS.items():
        photos = losses[name, "suspect"].shape[1]
        draws = utils.key_generator("paper size", "selections", seed, name)
        selections = exact.random_selections(draws, photos, photos // 2, group.selections)
        for test, model, views, reference, by_key in TESTS:
            beside = losses[name, reference] if reference else None
            found = exact_p(losses[name, model], beside, views, selections, by_key)
            guilty = group.trained_on and model == "suspect"
            for user, p in enumerate(found):
                yield {"seed": seed, "group": name, "test": test, "trained_on": guilty, "user": user, "p": float(p)}


def exact_rows(table):
    """[{"group", "test", "trained_on", "found": {alpha: rate}, ...}], one for each group of users and test."""
    return [
        {
            "group": group,
            "test": test,
            "trained_on": bool(part.trained_on.iloc[0]),
            "found": {str(alpha): common.rate((part.p <= alpha).sum(), len(part)) for alpha in ALPHAS},
            "geometric_mean_p": float(np.exp(np.log(part.p).mean())),
            "median_p": float(part.p.median()),
            "largest_p": float(part.p.max()),
        }
        for (group, test), part in table.groupby(["group", "test"], sort=False)
    ]


def pooled(runs, kind):
    """One rate of false positives out of several runs' `utils.membership_inference`, and its parts."""
    parts = [run[kind] for run in runs]
    hits, of = (sum(part[name] for part in parts) for name in ("false_positives", "non_members"))
    return {
        "fpr_at_100_tpr": common.rate(hits, of),
        "each": [part["fpr_at_100_tpr"] for part in parts],
        "tpr_at_fpr": [part["tpr_at_fpr"] for part in parts],
        "auc": [part["auc"] for part in parts],
    }


def conclude(results):
    """What the runs of train.py and eval.py say, over all seeds (a JSON-ready dict). results: {run: their
    result.json}, one for each seed."""
    marked, clean, beside = (
        [seed[name] for seed in results if name in seed] for name in ("marked", "clean", "calibrated")
    )
    audits = {
        "marked": [run["audit"] for run in marked],
        "clean": [run["audit"] for run in clean],
        "calibrated": [run["calibrated"]["audit"] for run in beside],
        "not calibrated, the same non-members": [run["calibrated"]["plain"] for run in beside],
    }
    found = {name: {kind: pooled(runs, kind) for kind in ("set", "instance")} for name, runs in audits.items() if runs}
    verdicts = {}
    for group in ("target", "control"):
        users = [row for run in marked for row in run["verdict"]["users"] if row["user"].startswith(group)]
        p = np.array([row["exact_p"] for row in users])
        verdicts[group] = {
            "algorithm_1": common.rate(sum(row["used"] for row in users), len(users)),
            "exact_p": {str(alpha): common.rate((p <= alpha).sum(), len(p)) for alpha in ALPHAS},
        }
    return {"audit": found, "train.py": verdicts, "accuracy": _accuracies(marked, clean)}


def _accuracies(marked, clean):
    def tested(runs):
        of = [run["accuracy"]["test_images"] for run in runs]
        hits = [round(run["accuracy"]["test"] * count) for run, count in zip(runs, of, strict=True)]
        return common.rate(sum(hits), sum(of))

    unmarked = (
        {
            "clean": tested(clean),
            "change": [
                100 * (one["accuracy"]["test"] - other["accuracy"]["test"])
                for one, other in zip(marked, clean, strict=True)
            ],
        }
        if clean
        else {}
    )
    return {
        "marked": tested(marked),
        **unmarked,
        "train": [run["accuracy"]["train"] for run in marked],
        "target users' marked images": [run["accuracy"]["marked"] for run in marked],
    }


def audit_table(args, found):
    """Table 2, Table 9 and the accuracies beside the paper's, as Markdown."""
    audit, accuracy, verdicts = found["audit"], found["accuracy"], found["train.py"]
    paper_drop = reported.MAIN["Table 2"].get(args.users, (None, None, None))

    def rate(one):
        return plots.percent(one["share"], one["interval"])

    def cell(value):
        return "" if value is None else f"{value:.2f}"

    def fpr(name, kind):
        return rate(audit[name][kind]["fpr_at_100_tpr"])

    def each(values, digits=4):
        return ", ".join(f"{value:.{digits}f}" for value in values)

    def auc(name):
        return "; ".join(each(audit[name][kind]["auc"]) for kind in ("set", "instance"))

    instance = reported.COMPONENTS.get((args.samples, True), (None, None))[1]
    unmarked = reported.COMPONENTS.get((args.samples, False), (None, None))[1]
    audit_without_marks, accuracy_without_marks = [], []
    if "clean" in audit:
        audit_without_marks = [
            ["unmarked: FPR@100%TPR, set-based", fpr("clean", "set"), ""],
            ["unmarked: FPR@100%TPR, instance-based (Table 10)", fpr("clean", "instance"), cell(unmarked)],
            ["unmarked: AUC, set-based; instance-based", auc("clean"), ""],
        ]
        accuracy_without_marks = [
            ["test accuracy, unmarked", rate(accuracy["clean"]), ""],
            ["change of the accuracy by marking, points", each(accuracy["change"], 2), cell(paper_drop[2])],
        ]
    at = [
        [
            f"TPR@{100 * points[0]['fpr']:g}%FPR, set-based; instance-based",
            "; ".join(
                ", ".join(plots.percent(one["tpr"], one["interval"]) for one in side) for side in (points, other)
            ),
            "",
        ]
        for points, other in zip(
            zip(*audit["marked"]["set"]["tpr_at_fpr"], strict=True),
            zip(*audit["marked"]["instance"]["tpr_at_fpr"], strict=True),
            strict=True,
        )
    ]
    return markdown(
        ["figure", "ours", "paper"],
        [
            [f"FPR@100%TPR, set-based, {args.users} users (Table 2)", fpr("marked", "set"), cell(paper_drop[0])],
            ["FPR@100%TPR, instance-based (Table 9)", fpr("marked", "instance"), cell(instance)],
            *at,
            ["AUC, set-based; instance-based", auc("marked"), ""],
            *audit_without_marks,
            *(
                [
                    f"{name}: FPR@100%TPR, set-based; instance-based",
                    "; ".join(fpr(name, kind) for kind in ("set", "instance")),
                    "",
                ]
                for name in ("calibrated", "not calibrated, the same non-members")
            ),
            ["Algorithm 1 at 0.1 % FPR: target users found", rate(verdicts["target"]["algorithm_1"]), ""],
            ["Algorithm 1 at 0.1 % FPR: innocent users accused", rate(verdicts["control"]["algorithm_1"]), ""],
            ["exact p of train.py at most 0.001: target users", rate(verdicts["target"]["exact_p"]["0.001"]), ""],
            ["exact p of train.py at most 0.001: innocent users", rate(verdicts["control"]["exact_p"]["0.001"]), ""],
            ["test accuracy", rate(accuracy["marked"]), cell(reported.MAIN["Table 1"]["cifar100"][1]) + " (Table 1)"],
            *accuracy_without_marks,
            ["accuracy on all training images", each(accuracy["train"]), ""],
            ["accuracy on the target users' marked images", each(accuracy["target users' marked images"]), ""],
        ],
    )


def exact_table(rows):
    """The exact test by group and statistic, as Markdown."""
    return markdown(
        ["users", "test", "trained on", *(f"p <= {alpha:g}" for alpha in ALPHAS), "geometric mean of p", "largest p"],
        [
            [
                row["group"],
                row["test"],
                "yes" if row["trained_on"] else "no",
                *(
                    f"{one['hits']} of {one['of']} ({100 * one['interval'][0]:.1f}-{100 * one['interval'][1]:.1f} %)"
                    for one in row["found"].values()
                ),
                f"{row['geometric_mean_p']:.6f}",
                f"{row['largest_p']:.4f}",
            ]
            for row in rows
        ],
    )


def draw_p(table, path):
    """The share of users with a p of at most x, by group and test: innocent users keep to the dotted line."""
    figure, axes = plots.figure_of(1, len(GROUPS), (4 * len(GROUPS), 4.2))
    for axis, (name, part) in zip(axes[0], table.groupby("group", sort=False), strict=True):
        lowest = table.p.min()
        for test, rows in part.groupby("test", sort=False):
            steps = [*np.arange(len(rows) + 1) / len(rows), 1]
            axis.step([lowest / 2, *np.sort(rows.p), 1], steps, where="post", label=test)
        chance = np.geomspace(lowest / 2, 1, 200)
        axis.plot(chance, chance, color="grey", linewidth=0.8, linestyle=":", label="by chance")
        axis.set(
            xscale="log", xlim=(lowest / 2, 1), ylim=(0, 1.02), title=name, xlabel="exact p", ylabel="share of users"
        )
        axis.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9)
    plots.save_figure(figure, path)


def main():
    args = make_parser().parse_args()
    root, out = write_data(args), Path(args.out)
    rows, results = [], []
    for seed in args.seeds:
        folder = Path(args.work) / f"{args.net_type}-{args.train_size}-{args.epoch}-seed{seed}"
        trained = [name for name in RUNS if args.clean or name != "clean"]
        for name in args.runs or trained:
            train(args, root, folder, seed, name)
        if args.runs:
            continue
        calibrate(args, root, folder)
        rows += p_values(ask(args, root, folder), seed)
        results.append({name: files.read_json(folder / name / "result.json") for name in (*trained, "calibrated")})
        for plot in ("losses.png", "roc.png", "marks.png"):
            (out / f"seed{seed}").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / "marked" / plot, out / f"seed{seed}" / plot)
    if results:
        report(args, results, pd.DataFrame(rows))


def report(args, results, table):
    """Write result.json, paper-size.md and p.png; print the tables."""
    found, verdicts = conclude(results), exact_rows(table)
    runs = {name: run["settings"]["training"] for name, run in results[0].items() if name in RUNS}
    text = (
        f"{args.net_type}, {args.train_size:,} images of {args.classes} classes, {args.epoch} epochs, {args.users} "
        f"users x {args.samples}, {len(results)} model{'s' if len(results) > 1 else ''}\n\n"
        f"{audit_table(args, found)}\n{exact_table(verdicts)}"
    )
    print(text)
    out = Path(args.out)
    with files.atomic_path(out / "paper-size.md") as path:
        path.write_text(text)
    draw_p(table, out / "p.png")
    common.write_study(
        out,
        {
            "settings": {"seeds": args.seeds, "runs": runs, "keys": args.keys},
            **found,
            "seconds": [{name: seed[name]["seconds"] for name in runs} for seed in results],
            "exact": verdicts,
            "users": table.to_dict("records"),
        },
        utils.choose_device(args.device),
    )


if __name__ == "__main__":
    run_script(main)

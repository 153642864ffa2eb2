"""Table 4's row: what DP-SGD promises, costs, hides, and what one run proves about its epsilon.

Example: python -m studies.private_runs --data_root CIFAR10_FOLDER --runs saved_res --out results/dp-sgd
--runs holds finished runs of train.py, with --countermeasure dp_sgd:... and without. For each of them: the accountant's
epsilon; and a lower bound from that one run (`attacks.epsilon`, LOSS). Its canaries are training images that are no
target user's, --canaries at most, and as many drawn from those that the same draw left out: which of them were trained
on was a draw of half of them, as in privacy-audit.py.
Public: canaries, rows_of, table_of.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

import utils
from attacks import epsilon
from dataset import load_dataset
from experiment import setup, training
from experiment.folder import RunPaths
from kit import files, tables
from kit.errors import UserError, run_script
from kit.progress import Progress
from studies import common

DELTA, ALPHA = 1e-5, 1e-3


def main():
    parser = common.parser(__doc__, canaries=5000)
    parser.add_argument("--runs", required=True, help="folder of the runs' folders (train.py --res_folder)")
    args = parser.parse_args()
    data, device = common.load(args)
    folders = sorted(path.parent for path in Path(args.runs).glob("*/result.json"))
    if not folders:
        raise UserError(
            f"{args.runs} holds no finished run of train.py", advice="give the folder that --res_folder named"
        )
    runs = [one_run(folder, data, args, device) for folder in Progress(folders, "runs")]
    rows = rows_of(runs)
    common.write_study(args.out, {"rows": rows, "runs": runs}, device)
    with files.atomic_path(Path(args.out) / "table.md") as temporary:
        temporary.write_text(tables.markdown(*table_of(rows)), encoding="utf-8")
    print(tables.markdown(*table_of(rows), aligned=True), end="")


def one_run(folder, data, args, device):
    """What one finished run says, and the lower bound on its epsilon: a JSON-ready dict."""
    paths = RunPaths.existing(folder)
    query, record = training.load_trained(paths.model, device)
    settings, result = record["settings"], files.read_json(paths.result)
    if settings["dataset"] != data.name:
        data = load_dataset(settings["dataset"], args.data_root, settings["image_size"])
    experiment = setup.prepare(settings, result["settings"]["audit"], data, args.data_root)
    rows, inside = canaries(experiment, args.canaries)
    losses = [
        utils.sample_signals(query(data.images[part]).cpu(), data.labels[part])["cross_entropy"]
        for part in torch.from_numpy(rows).split(setup.batch_size_of(data))
    ]
    users = result["verdict"]["users"]
    return {
        "countermeasure": settings.get("countermeasure"),
        "images": len(experiment.splits.train),
        "seed": settings["seed"],
        "accuracy": result["accuracy"]["test"],
        "false_positives": result["audit"]["set"]["false_positives"],
        "non_members": result["audit"]["set"]["non_members"],
        "auc": result["audit"]["set"]["auc"],
        **{name: [user["exact_p"] for user in users if user["trained_on"] == there] for name, there in SIDES.items()},
        "promised": record["countermeasure"].get("epsilon"),
        "proved": epsilon.audit(-torch.cat(losses).numpy(), inside, DELTA, seed=settings["seed"]),
    }


SIDES = {"target_p": True, "control_p": False}


def canaries(experiment, most):
    """Rows int64 (2n,) of an Experiment's data, n <= most, and whether the model was trained on each, bool.

    The target users' own are none, because they were not drawn like others.
    """
    splits, data = experiment.splits, experiment.data
    inside = np.setdiff1d(splits.train.numpy(), experiment.users.samples)
    others = splits.non_member[~data.is_test[splits.non_member]].numpy()
    count = min(len(inside), len(others), most)
    draws = utils.key_generator(experiment.settings["seed"], "canaries")
    chosen = [draws.permutation(rows)[:count] for rows in (inside, others)]
    return np.concatenate(chosen), np.arange(2 * count) < count


def rows_of(runs):
    """One row for each number of training images and countermeasure, over its runs, the unprotected first."""
    groups = defaultdict(list)
    for run in runs:
        groups[run["images"], run["countermeasure"]].append(run)
    rows = []
    for (images, name), group in groups.items():
        false, others = (sum(run[key] for run in group) for key in ("false_positives", "non_members"))
        found, accused = (np.array([p for run in group for p in run[key]]) for key in SIDES)
        rows.append(
            {
                "images": images,
                "countermeasure": name,
                "runs": len(group),
                "promised": group[0]["promised"],
                "accuracy": float(np.mean([run["accuracy"] for run in group])),
                "fpr": common.rate(false, others),
                "auc": float(np.mean([run["auc"] for run in group])),
                "found": common.rate((found <= ALPHA).sum(), len(found)),
                "median_p": float(np.median(found)),
                "accused": common.rate((accused <= ALPHA).sum(), len(accused)),
                "proved": [run["proved"]["epsilon"] for run in group],
                "provable": group[0]["proved"]["provable"],
            }
        )
    return sorted(rows, key=lambda row: (row["images"], row["promised"] is not None, -(row["promised"] or 0)))


def table_of(rows):
    """(head, lines) of the table that is printed and written."""
    head = [
        "images",
        "countermeasure",
        "runs",
        "epsilon, promised",
        "epsilon, proved by one run",
        "accuracy",
        "FPR@100%TPR",
        "AUC",
        f"p <= {ALPHA:g}",
        "median p",
        "controls",
    ]
    return head, [
        [
            row["images"],
            row["countermeasure"] or "none",
            row["runs"],
            "-" if row["promised"] is None else f"{row['promised']:.4g}",
            ", ".join(f"{value:.2f}" for value in row["proved"]),
            f"{100 * row['accuracy']:.1f}",
            "{:.2f} ({:.2f}-{:.2f})".format(*(100 * value for value in (row["fpr"]["share"], *row["fpr"]["interval"]))),
            f"{row['auc']:.3f}",
            "{hits}/{of}".format(**row["found"]),
            f"{row['median_p']:.3f}",
            "{hits}/{of}".format(**row["accused"]),
        ]
        for row in rows
    ]


if __name__ == "__main__":
    run_script(main)

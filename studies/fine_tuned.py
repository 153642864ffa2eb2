"""The paper's open problem (section 5.2.5): fine-tuning of a model with many users. Which statistic finds them again?

Example: python -m studies.fine_tuned --choose RUN RUN --claim RUN RUN RUN --out results/fine-tuned
RUN: folders of train.py with --countermeasure fine_tuning and several target users (countermeasures.sh makes them).
Every user, member or not, is asked about K published images, K held-out ones and, for each, L fresh keys. Candidates
turn these answers into one number a user, low for members; the best on the runs of --choose, by AUC, is named there,
and everything is reported for the runs of --claim.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

import utils
from dataset import load_dataset
from experiment import setup, training
from experiment.audit import exact_losses
from experiment.folder import RunPaths
from kit import cli, files, plots
from kit.errors import UserError, run_script
from kit.tables import markdown
from studies import common

# Fields of a user's answers: own key on published images, fresh keys on them, own key on held-out ones, fresh on those.
STATISTICS = {
    "mean loss (the paper's)": lambda own, fresh, held, held_fresh: own.mean(1),
    "mean square root of the loss": lambda own, fresh, held, held_fresh: np.sqrt(own).mean(1),
    "mean of min(loss, 2)": lambda own, fresh, held, held_fresh: np.minimum(own, 2).mean(1),
    "median loss": lambda own, fresh, held, held_fresh: np.median(own, axis=1),
    "mean logit-scaled loss": lambda own, fresh, held, held_fresh: scaled(own).mean(1),
    "own key minus fresh keys, root": lambda own, fresh, held, held_fresh: difference(np.sqrt, own, fresh),
    "own key minus fresh keys, logit-scaled": lambda own, fresh, held, held_fresh: difference(scaled, own, fresh),
    "the same in the images' standard deviations": lambda own, fresh, held, held_fresh: standardised(own, fresh),
    "own key minus fresh keys, weighted": lambda own, fresh, held, held_fresh: weighted(own, fresh),
    "published minus held out, root": lambda own, fresh, held, held_fresh: np.sqrt(own).mean(1) - np.sqrt(held).mean(1),
    "both differences, root": lambda own, fresh, held, held_fresh: (
        difference(np.sqrt, own, fresh) - difference(np.sqrt, held, held_fresh)
    ),
    "published under all keys, root": lambda own, fresh, held, held_fresh: np.sqrt(
        np.concatenate([own[:, :, None], fresh], 2)
    ).mean((1, 2)),
    "all of it, root": lambda own, fresh, held, held_fresh: (
        np.sqrt(own).mean(1)
        + 0.5 * np.sqrt(fresh).mean((1, 2))
        - 0.75 * (np.sqrt(held).mean(1) + np.sqrt(held_fresh).mean((1, 2)))
    ),
    "images and mark, logit-scaled": lambda own, fresh, held, held_fresh: (
        difference(scaled, own, fresh) + scaled(fresh).mean((1, 2)) - scaled(held_fresh).mean((1, 2))
    ),
}


def scaled(loss):
    """log(1 - p) - log p out of -log p, float64 of any shape; a loss of 0 counts as 1e-12."""
    loss = np.maximum(loss, 1e-12)
    return np.log(-np.expm1(-loss)) + loss


def difference(score, own, fresh):
    """How much lower the score is under the user's own key than under fresh ones on the same image: (users,)."""
    return (score(own) - score(fresh).mean(2)).mean(1)


def standardised(own, fresh):
    """The difference of each image in standard deviations over its fresh keys, all images' pooled with its own."""
    value, others = scaled(own), scaled(fresh)
    spread = np.sqrt((others.var(2, ddof=1) + others.var(2, ddof=1).mean(1, keepdims=True)) / 2)
    return ((value - others.mean(2)) / spread).mean(1)


def weighted(own, fresh):
    """The difference, with images that strangers' marks make hard counting more: they have more to remember."""
    hard = np.sqrt(fresh).mean(2)
    weights = hard / hard.sum(1, keepdims=True)
    return ((np.sqrt(own) - hard) * weights).sum(1)


def answers_of(folder, data_root, keys, device):
    """(target users' and non-members' answers as in STATISTICS, the run's settings)."""
    paths = RunPaths.existing(folder)
    query, record = training.load_trained(paths.model, device)
    settings = record["settings"]
    data = load_dataset(settings["dataset"], data_root, settings["image_size"])
    audit = files.read_json(paths.config)["audit"]
    made = setup.prepare(settings, audit, data, data_root)
    found, size = {}, settings["marked_samples_per_user"]
    for group in ("target", "non_member"):
        grid = exact_losses(made, query, group, keys, device)
        found[group] = (grid[:, :size, 0], grid[:, :size, 1:], grid[:, size:, 0], grid[:, size:, 1:])
    return found, settings


def judge(found):
    """One dict for each statistic: FPR@100%TPR, TPR at 0.1 % FPR, AUC of one model."""
    rows = []
    for name, statistic in STATISTICS.items():
        member, other = (statistic(*found[group])[:, None] for group in ("target", "non_member"))
        rates = utils.membership_inference(member, other, fprs=(1e-3,))
        rows.append(
            {
                "statistic": name,
                "false": rates["false_positives"],
                "others": rates["non_members"],
                "hits": round(rates["tpr_at_fpr"][0]["tpr"] * rates["members"]),
                "users": rates["members"],
                "auc": rates["auc"],
            }
        )
    return rows


def summarize(frame):
    """One row for each statistic, pooled over models."""
    rows = []
    for name, group in frame.groupby("statistic", sort=False):
        rows.append(
            {
                "statistic": name,
                "models": len(group),
                "fpr": common.rate(group["false"].sum(), group["others"].sum()),
                "fprs": (group["false"] / group["others"]).round(4).tolist(),
                "tpr": common.rate(group["hits"].sum(), group["users"].sum()),
                "auc": group["auc"].mean(),
                # How far apart the two groups are, in standard deviations of equal normal ones with this AUC.
                "distance": float(np.sqrt(2) * norm.ppf(min(group["auc"].mean(), 1 - 1e-9))),
            }
        )
    return rows


def main():
    parser = cli.Parser(__doc__)
    parser.add_argument("--choose", nargs="+", required=True, help="run folders on which the statistic is chosen")
    parser.add_argument("--claim", nargs="+", required=True, help="other run folders, for which it is reported")
    parser.add_argument("--data_root", help="folder of the data set")
    parser.add_argument("--keys", type=cli.number(int, 2), default=9, help="fresh keys an image (default 9)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    device, found = utils.choose_device(args.device), {}
    if Path(args.choose[0]).resolve() in [Path(folder).resolve() for folder in args.claim]:
        raise UserError("a run of --choose is among those of --claim", advice="the claim would be about the choice")
    for part, folders in (("choose", args.choose), ("claim", args.claim)):
        rows = []
        for folder in folders:
            answers, settings = answers_of(folder, args.data_root, args.keys, device)
            rows += [
                {"run": Path(folder).name, "countermeasure": settings["countermeasure"], **row}
                for row in judge(answers)
            ]
            print(f"{part}: {folder}", flush=True)
        found[part] = pd.DataFrame(rows)
    conclude(args, found, device)


def conclude(args, found, device):
    """result.json, a table and a plot."""
    tables = {part: summarize(frame) for part, frame in found.items()}
    chosen = max(tables["choose"], key=lambda row: row["auc"])["statistic"]
    rows = []
    for before, row in zip(tables["choose"], tables["claim"], strict=True):
        low, high = row["fpr"]["interval"]
        rows.append(
            [
                row["statistic"] + (" (chosen)" if row["statistic"] == chosen else ""),
                f"{before['auc']:.4f}",
                f"{100 * before['fpr']['share']:.2f}",
                f"{row['auc']:.4f}",
                f"{100 * row['fpr']['share']:.2f} ({100 * low:.2f}-{100 * high:.2f})",
                f"{100 * min(row['fprs']):.2f}-{100 * max(row['fprs']):.2f}",
                f"{row['tpr']['hits']}/{row['tpr']['of']}",
            ]
        )
    text = markdown(
        [
            "statistic",
            "AUC, choice",
            "FPR@100%TPR, choice",
            "AUC, claim",
            "FPR@100%TPR, claim",
            "models from-to",
            "TPR@0.1%FPR",
        ],
        rows,
    )
    out = Path(args.out)
    common.write_study(
        out,
        {
            "settings": {
                "keys": args.keys,
                "choose": [Path(run).name for run in args.choose],
                "claim": [Path(run).name for run in args.claim],
            },
            "chosen": chosen,
            **tables,
        },
        device,
    )
    with files.atomic_path(out / "table.md") as path:
        path.write_text(text, encoding="utf-8")
    draw(tables["claim"], chosen, out / "statistics.png")
    print(text)


def draw(rows, chosen, path):
    """FPR@100%TPR of every statistic on the claimed models, with intervals."""
    figure, axes = plots.figure_of(1, 1, (9, 5))
    axis = axes[0, 0]
    for place, row in enumerate(reversed(rows)):
        share, (low, high) = row["fpr"]["share"], row["fpr"]["interval"]
        axis.errorbar(
            100 * share,
            place,
            xerr=[[100 * (share - low)], [100 * (high - share)]],
            marker="o",
            capsize=3,
            color=plots.MEMBER_COLOR if row["statistic"] == chosen else "#555555",
        )
        axis.plot(100 * np.array(row["fprs"]), [place] * len(row["fprs"]), ".", color="#bbbbbb", zorder=0)
    axis.set_yticks(range(len(rows)), [row["statistic"] for row in reversed(rows)], fontsize=8)
    axis.set(xlabel="FPR@100%TPR (%), pooled (with 95 % interval) and of every model (small dots)")
    axis.set_xlim(0, 100)
    axis.grid(alpha=0.3)
    plots.save_figure(figure, path)


if __name__ == "__main__":
    run_script(main)

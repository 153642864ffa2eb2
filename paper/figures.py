"""Draw the paper's figures from stored results, in the paper's axes, and the picture of the README.

Examples: python -m paper.figures marking                                        what a mark consists of
          python -m paper.figures 7 --res_folder saved_res                       fine-tuning and pruning, from a sweep
          python -m paper.figures 17 --runs saved_res/RUN saved_res/NOISY_RUN    losses without and with output noise
5 (one run), 10 (runs with fewer and fewer samples) and 17 take --runs; 7, 12 and 13 the runs below --res_folder.
Figs. 8 and 9 are drawn by detection/input_detection.py, 3, 14 and 16 by the scripts of baselines/.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps

from dataset import photos
from experiment import report
from experiment.audit import Audit
from experiment.folder import RunPaths
from kit import cli, plots
from kit.errors import UserError, run_script
from paper import ablation, tables
from utils import Marking, clopper_pearson, derive_key

SHOWN = ("astronaut", "coffee", "motorcycle", "temple", "flower")
SIZE = 224


def draw_marking(args):
    """Photographs out of the installed packages at 224 px, marked as five users would mark them."""
    chosen = [photo for photo in photos.PHOTOS if photo.name in SHOWN]
    squares = [ImageOps.fit(photos.open_photo(photo), (SIZE, SIZE), Image.Resampling.BICUBIC) for photo in chosen]
    originals = torch.stack([torch.from_numpy(np.array(square)).permute(2, 0, 1) for square in squares])
    users = range(len(chosen))
    report.draw_marks(originals, derive_key(args.seed, "picture"), users, users, Marking(), args.out)


def stored_answers(folder):
    """The stored `Audit` of a run, and the run's name."""
    paths = RunPaths.of_folder(folder)
    if not paths.losses.exists():
        raise UserError(f"{folder} has no losses.npz", advice="give the folder of a finished run with --runs")
    return Audit.load(paths.losses), Path(folder).name


def figure_5(args):
    """Single samples against users' averages, of one run."""
    answers, _ = stored_answers(args.runs[0])
    report.draw_losses(answers, args.out)


def figure_10(args):
    """ROC curves of several runs in logarithmic axes (the paper: 125, 63 and 32 samples a user on ImageNet)."""
    figure, axes = plots.figure_of(1, 1, (6, 5))
    for folder in args.runs:
        answers, name = stored_answers(folder)
        member, other = (answers.losses(group) for group in ("target", "non_member"))
        _, fpr, tpr = plots.roc_points(member.mean(axis=1), other.mean(axis=1))
        axes[0, 0].plot(fpr, tpr, label=f"{name}: {member.shape[1]} samples a user")
    axes[0, 0].plot([1e-5, 1], [1e-5, 1], color="grey", linewidth=0.8, linestyle=":")
    axes[0, 0].set(
        xscale="log",
        yscale="log",
        xlabel="false positive rate",
        ylabel="true positive rate",
        xlim=(1e-4, 1.2),
        ylim=(1e-3, 1.2),
    )
    axes[0, 0].grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    plots.save_figure(figure, args.out)


def figure_17(args):
    """The members' and non-members' losses without and with output noise, then users' averages with it."""
    (plain, _), (noisy, _) = (stored_answers(folder) for folder in args.runs[:2])
    figure, axes = plots.figure_of(1, 3, (13, 4))
    panels = (
        (plain, False, "single samples, no defence"),
        (noisy, False, "single samples, output noise"),
        (noisy, True, "users' average loss, output noise"),
    )
    for axis, (answers, averaged, title) in zip(axes[0], panels, strict=True):
        groups = [answers.losses(group) for group in ("non_member", "target")]
        groups = [values.mean(axis=1) if averaged else values.ravel() for values in groups]
        plots.draw_shares(axis, groups, title, "cross entropy")
    plots.save_figure(figure, args.out)


def pooled_points(frame, column):
    """FPR@100%TPR and accuracy of runs pooled by a column: DataFrame with value, fpr, low, high, accuracy in %."""
    rows = []
    for value, group in frame.groupby(column, sort=True):
        false, total = group["false_positives"].sum(), group["non_members"].sum()
        low, high = clopper_pearson(false, total)
        rows.append(
            {
                "value": value,
                "fpr": 100 * false / total,
                "low": 100 * low,
                "high": 100 * high,
                "accuracy": 100 * group["accuracy"].mean(),
                "runs": len(group),
            }
        )
    return pd.DataFrame(rows)


def _errors(points):
    return np.maximum([points["fpr"] - points["low"], points["high"] - points["fpr"]], 0)


def _draw_rate(axis, points, label, color=None):
    """FPR@100%TPR with intervals on an axis that shows 0 beside small rates."""
    axis.errorbar(points["value"], points["fpr"], yerr=_errors(points), marker="o", capsize=3, label=label, color=color)
    axis.set_yscale("symlog", linthresh=0.1)
    axis.set(ylabel="FPR@100%TPR (%)", ylim=(0, 130))
    axis.grid(alpha=0.3)


def _require(points, what):
    if len(points) == 0:
        raise UserError(f"no finished runs with {what} below --res_folder", advice="run the sweep first")


def figure_7(args):
    """FPR@100%TPR and accuracy by fine-tuning rate and by share of pruned weights, a line for each number of users."""
    frame = tables.collect(args.res_folder)
    named = [ablation.main_setting(text) for text in frame["countermeasure"]]
    frame["defence"], frame["setting"] = ([pair[place] for pair in named] for place in (0, 1))
    chosen = frame[frame["defence"].isin(["fine_tuning", "pruning"])]
    _require(chosen, "fine_tuning or pruning")
    figure, axes = plots.figure_of(2, 2, (10, 7))
    for column, (defence, label) in enumerate((("fine_tuning", "fine-tuning rate"), ("pruning", "pruned share"))):
        for users, some in chosen[chosen["defence"] == defence].groupby("users"):
            points = pooled_points(some, "setting")
            _draw_rate(axes[0, column], points, f"{users} user{'s' if users > 1 else ''} a model")
            axes[1, column].plot(points["value"], points["accuracy"], marker="o")
            undefended = frame[(frame["countermeasure"] == "none") & (frame["users"] == users)]["accuracy"]
            if len(undefended):
                axes[1, column].axhline(100 * undefended.mean(), color="grey", linestyle="--", linewidth=0.8)
        for axis in axes[:, column]:
            axis.set(xlabel=label, xscale="log" if defence == "fine_tuning" else "linear")
        axes[1, column].set(ylabel="test accuracy (%); dashed: no defence")
        axes[1, column].grid(alpha=0.3)
    if handles := axes[0, 0].get_legend_handles_labels()[0]:
        axes[0, 0].legend(handles=handles, fontsize=8)
    plots.save_figure(figure, args.out)


def figure_12(args):
    """FPR@100%TPR by blending ratio and by noise norm."""
    frame = tables.collect(args.res_folder)
    figure, axes = plots.figure_of(1, 2, (10, 4.2))
    drawn = 0
    for axis, (column, label) in zip(
        axes[0],
        (("img_blending_ratio", "image blending ratio m (1: no blend)"), ("noise_norm", "noise norm (1/255)")),
        strict=True,
    ):
        for samples, some in ablation.marking_varied(frame, column).groupby("marked_samples_per_user"):
            _draw_rate(axis, pooled_points(some, column), f"{samples} samples a user")
            drawn += 1
        axis.set(xlabel=label)
        if axis.lines:
            axis.legend(fontsize=8)
    _require(range(drawn), "varied --img_blending_ratio or --noise_norm")
    plots.save_figure(figure, args.out)


def figure_13(args):
    """FPR@100%TPR by samples a user, for each source of outlier features."""
    chosen = ablation.marking_varied(tables.collect(args.res_folder), "ood_pattern")
    _require(chosen, "several --ood_pattern")
    figure, axes = plots.figure_of(1, 1, (6, 4.4))
    for source, some in chosen.groupby("ood_pattern"):
        _draw_rate(axes[0, 0], pooled_points(some, "marked_samples_per_user"), ablation.outlier_name(source))
    axes[0, 0].set(xlabel="samples a user")
    axes[0, 0].legend(fontsize=8)
    plots.save_figure(figure, args.out)


FIGURES = {
    "marking": draw_marking,
    "5": figure_5,
    "7": figure_7,
    "10": figure_10,
    "12": figure_12,
    "13": figure_13,
    "17": figure_17,
}
NEEDED_RUNS = {"5": 1, "10": 1, "17": 2}


def main():
    parser = cli.Parser(__doc__)
    parser.add_argument("figure", nargs="?", default="marking", choices=list(FIGURES))
    parser.add_argument("--out", help="the picture to write (default: results/marking.png, or figure-N.png)")
    parser.add_argument("--res_folder", default="./saved_res", help="where the runs of a sweep are")
    parser.add_argument("--runs", nargs="+", default=[], help="folders of finished runs")
    parser.add_argument("--seed", type=int, default=1, help="decides the users' keys of the picture of marks")
    args = parser.parse_args()
    if len(args.runs) < NEEDED_RUNS.get(args.figure, 0):
        raise UserError(
            f"figure {args.figure} needs {NEEDED_RUNS[args.figure]} folder(s)", advice="name them with --runs"
        )
    default = "results/marking.png" if args.figure == "marking" else f"figure-{args.figure}.png"
    args.out = Path(args.out or default)
    FIGURES[args.figure](args)
    print(args.out)


if __name__ == "__main__":
    run_script(main)

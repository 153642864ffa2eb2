"""What the audit of one user shows to people: the table and the plot of the grid.

Public: show_verdict, show_weaknesses, draw_grid.
"""

import sys
import textwrap

import numpy as np

from attacks.exact import one_in
from kit.cli import show_rows
from kit.plots import MEMBER_COLOR, NON_MEMBER_COLOR, figure_of, percent, save_figure

WIDTH = 118


def show_weaknesses(weaknesses):
    """Print first, and in red on a terminal, what a verdict rests on beside the answers."""
    red, plain = ("\033[31m", "\033[0m") if sys.stdout.isatty() else ("", "")
    for sentence in weaknesses:
        text = textwrap.fill(f"! {sentence}", WIDTH, subsequent_indent="  ")
        print(f"{red}{text}{plain}")


def show_verdict(result, folder):
    """Print the verdict in sentences, and the short table of one user's audit."""
    print("")
    show_weaknesses(result["weaknesses"])
    print(textwrap.fill(result["sentences"], WIDTH), "", sep="\n")
    judgement = result["judgement"]
    rows = [
        (
            "result",
            f"{one_in(result['p_value'])}: {result['at_most']} of {result['pairs']} pairs are as low as the user's own "
            f"(exact p {result['p_value']:.3g})",
        ),
        (
            "verdict",
            f"{'USED' if result['detected'] else 'not shown'} (p is compared with {result['alpha']:.2g}: alpha "
            f"{judgement['plan']['alpha']:g}, judgement {judgement['number']} of this model)",
        ),
        ("photos", f"{result['published']} published, {result['photos'] - result['published']} held out"),
        ("class", result["label"]),
        ("queries", f"{result['queries']}" + (f", {result['missing']} unanswered" if result["missing"] else "")),
    ]
    if result["key_p_value"] is not None:
        keys = judgement["plan"]["keys"] + 1
        rows.append(
            (
                "marks",
                f"the own pattern ranks {round(result['key_p_value'] * keys)} of {keys}, p {result['key_p_value']:.2g}",
            )
        )
    if result["refusal_p_value"] is not None:
        rows.append(
            (
                "refusals",
                f"{result['missing']} questions were not answered; that the published marked photos are among them as "
                f"often has p {result['refusal_p_value']:.3g}",
            )
        )
    beside = result.get("algorithm_1")
    if beside:
        rows.append(
            (
                "Algorithm 1",
                f"{'USED' if beside['used'] else 'not used'} (mean loss {beside['mean_loss']:.4g}, "
                f"threshold {beside['threshold']:.4g} at {percent(beside['fpr'])} FPR); "
                f"{beside['below_user']} of {beside['non_member_users']} strangers as low: "
                f"{percent(beside['fpr_at_user'], beside['fpr_interval'])}",
            )
        )
    rows += [
        (name, folder / file)
        for name, file in (("result.json", "result.json"), ("plot", "grid.png"), ("evidence", "evidence.zip"))
    ]
    show_rows(rows, 13)


def draw_grid(grid, result, path):
    """T(0, 0) against the grid: histograms of the pairs that share the user's key, the selection, or nothing."""
    figure, axes = figure_of(1, 1, (8, 4.4))
    axis = axes[0, 0]
    groups = [
        ("other selection, other key", grid[1:, 1:], "#999999"),
        ("published selection, other key", grid[0, 1:], NON_MEMBER_COLOR),
        ("other selection, the user's key", grid[1:, 0], MEMBER_COLOR),
    ]
    bins = np.histogram_bin_edges(grid.ravel(), 60)
    for name, values, color in groups:
        if values.size:
            axis.hist(
                values.ravel(),
                bins,
                weights=np.full(values.size, 1 / values.size),
                color=color,
                alpha=0.6,
                label=f"{name} ({values.size})",
            )
    axis.axvline(grid[0, 0], color="black", linewidth=1.6, label="the user's own pair")
    axis.set(
        xlabel="T: mean score of the selected photos under the key (low: the model is sure of the label)",
        ylabel="share of its group",
        title=f"p = {result['p_value']:.3g}: {result['at_most']} of {result['pairs']} pairs are as low as the "
        "user's own",
    )
    axis.legend(fontsize=8)
    save_figure(figure, path)

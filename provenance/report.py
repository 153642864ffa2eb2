"""What the audit of one user shows to people: the table and the plot of the grid."""

import textwrap

import numpy as np

from kit.plots import MEMBER_COLOR, NON_MEMBER_COLOR, figure_of, percent, save_figure


def show_verdict(result, folder):
    """Print the short table of one user's audit and, before it, the verdict in two sentences."""
    print("", textwrap.fill(result["sentences"], 118), "", sep="\n")
    rows = [
        (
            "exact p",
            f"{result['p_value']:.3g} ({result['at_most']} of {result['pairs']} pairs of the grid), alpha "
            f"{result['alpha']:g}",
        ),
        ("verdict", "USED" if result["detected"] else "not shown"),
        ("photos", f"{result['published']} published, {result['photos'] - result['published']} held out"),
        ("class", result["label"]),
        ("queries", result["queries"]),
    ]
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
        for name, file in (("result", "result.json"), ("plot", "grid.png"), ("evidence", "evidence.zip"))
    ]
    for name, value in rows:
        print(f"{name:<13}{value}")


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

"""What the audit of one user shows to people: the table and the plot of the grid.

Public: show_verdict, show_weaknesses, draw_grid, draw_wealth.
"""

import sys
import textwrap

import numpy as np

from attacks.exact import one_in
from kit.cli import show_rows
from kit.plots import MEMBER_COLOR, NON_MEMBER_COLOR, draw_share, figure_of, percent, save_figure

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
    judgement, each = result["judgement"], result["model"].get("pictures_a_query", 1)
    rows = [
        *_results(result),
        (
            "verdict",
            f"{'USED' if result['detected'] else 'not shown'} (p is compared with {result['alpha']:.2g}: alpha "
            f"{judgement['plan']['alpha']:g}, judgement {judgement['number']} of this model)",
        ),
        ("photos", f"{result['published']} published, {result['photos'] - result['published']} held out"),
        *([] if result["label"] is None else [("class", result["label"])]),
        (
            "queries",
            f"{result['queries']}"
            + (f" of {each} pictures each" if each > 1 else "")
            + (f", {result['missing']} unanswered" if result["missing"] else ""),
        ),
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
        for name, file in (
            ("result.json", "result.json"),
            ("plot", "grid.png"),
            ("evidence so far", "wealth.png"),
            ("evidence", "evidence.zip"),
        )
        if file in ("result.json", "evidence.zip") or _drawn(result, file)
    ]
    show_rows(rows, 17 if "sequential" in result else 13)


def _drawn(result, file):
    return result["pairs"] is not None if file == "grid.png" else "sequential" in result


def _results(result):
    """What came out, as rows: the exact test's alone, or that of the bets beside it."""
    pairs = f"{result['at_most']} of {result['pairs']} pairs are as low as the user's own"
    bets, arms = result.get("sequential"), result.get("arms")
    if arms:
        unanswered = f", {arms['plain_refused']} unanswered" if arms["plain_refused"] else ""
        return [
            ("result", f"{one_in(result['p_value'])} (p {result['p_value']:.3g}, twice the smaller of both tests')"),
            ("marked photos", f"exact p {arms['marked']:.3g}: {pairs}"),
            ("unmarked ones", f"exact p {arms['plain']:.3g}, by which half was published alone{unanswered}"),
        ]
    if bets is None:
        return [("result", f"{one_in(result['p_value'])}: {pairs} (exact p {result['p_value']:.3g})")]
    rows = [
        ("result", f"{one_in(result['p_value'])} (p {result['p_value']:.3g}, twice the smaller of both tests')"),
        (
            "photo by photo",
            f"p {bets['p_value']:.3g} after {bets['photos']} of {result['photos']} photos, {bets['queries']} queries",
        ),
    ]
    if bets["exact_p_value"] is not None:
        rows.append(("all at once", f"exact p {bets['exact_p_value']:.3g}: {pairs}"))
    return rows


def draw_wealth(result, path):
    """The evidence of a sequential audit after each photo, and the line that it has to cross."""
    bets = result["sequential"]
    figure, axes = figure_of(1, 1, (8, 4.4))
    axis, wealth = axes[0, 0], [1.0, *bets["wealth"]]
    axis.plot(range(len(wealth)), wealth, color=MEMBER_COLOR, marker="o", markersize=3, label="evidence so far")
    axis.axhline(bets["bound"], color="black", linestyle="--", label=f"enough: {bets['bound']:,.0f}")
    axis.axhline(1, color="#999999", linewidth=0.8, label="no evidence")
    axis.set(
        xlim=(0, result["photos"]),
        yscale="log",
        xlabel="photos that the model was asked about",
        ylabel="what one has made out of 1 by betting\nthat it knows the published ones",
        title=f"If the model never saw the photos, the line is reached in at most {one_in(1 / bets['bound'])} audits",
    )
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.legend(fontsize=8)
    save_figure(figure, path)


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
            draw_share(axis, values, bins, color, name)
    axis.axvline(grid[0, 0], color="black", linewidth=1.6, label="the user's own pair")
    exact_p = (
        result["arms"]["marked"]
        if "arms" in result
        else result.get("sequential", {}).get("exact_p_value") or result["p_value"]
    )
    axis.set(
        xlabel="T: mean score of the selected photos under the key (low: the model "
        + ("knows them)" if result["label"] is None else "is sure of the label)"),
        ylabel="share of its group",
        title=f"p = {exact_p:.3g}: {result['at_most']} of {result['pairs']} pairs are as low as the user's own",
    )
    axis.legend(fontsize=8)
    save_figure(figure, path)

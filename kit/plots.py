"""Plots: figures that become PNG files whole or not at all, and what several reports draw.

Public: percent, figure_of, save_figure, png_of, roc_points, draw_share, draw_shares, MEMBER_COLOR, NON_MEMBER_COLOR.
"""

import io

import matplotlib.figure
import numpy as np
from sklearn.metrics import roc_curve

from kit.files import atomic_path

MEMBER_COLOR, NON_MEMBER_COLOR = "#1f77b4", "#d95f02"


def percent(rate, interval=None):
    """ "0.02 % (0.00-0.07)" out of a rate and its interval."""
    text = f"{100 * rate:.2f} %"
    return f"{text} (95 % interval {100 * interval[0]:.2f}-{100 * interval[1]:.2f})" if interval else text


def figure_of(rows, columns, size):
    """(figure, axes (rows, columns)) of a size in inches."""
    # Agg draws without a display; the caller's own backend, say in a notebook, stays as it is.
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure, path):
    """Write a figure as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def png_of(figure):
    """A figure as the bytes of a PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def roc_points(member, other):
    """(false positive rates, the same for a logarithmic axis, true positive rates) of losses, which are lower for
    members: float64 arrays. On a logarithmic axis 0 has no place; it becomes half of one false positive."""
    truth = np.concatenate([np.ones(len(member)), np.zeros(len(other))])
    fpr, tpr, _ = roc_curve(truth, -np.concatenate([member, other]), drop_intermediate=True)
    return fpr, np.maximum(fpr, 0.5 / len(other)), tpr


def draw_share(axis, values, bins, color, name):
    """One histogram of shares of an array, whatever its shape."""
    values = np.ravel(values)
    axis.hist(
        values,
        bins,
        histtype="stepfilled",  # one shape and not one a bin: twice as fast to draw
        weights=np.full(len(values), 1 / len(values)),
        color=color,
        alpha=0.6,
        label=f"{name} ({len(values)})",
    )


def draw_shares(axis, groups, title, label):
    """Histograms of non-members and members (two arrays) as shares, so that 5 members stand beside 5,000 others."""
    bins = np.histogram_bin_edges(np.concatenate(groups), 60)
    for values, color, name in zip(groups, (NON_MEMBER_COLOR, MEMBER_COLOR), ("non-members", "members"), strict=True):
        draw_share(axis, values, bins, color, name)
    axis.set(title=title, xlabel=label, ylabel="share")
    axis.legend(fontsize=8)

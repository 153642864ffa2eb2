"""Numbers of the privacy report as its readers see them: text, or what stands in a table's cell.

Public: percent, between, interval, per, mean, rate, auc, number, span, plain, folded.
"""

from kit.markup import element, join


def percent(share, digits=2):
    """A share as 12.34 %."""
    text = f"{100 * share:.{digits}f}"
    # No line break between number and sign.
    text = text.rstrip("0").rstrip(".") if "." in text and share in (0, 1, 0.1, 0.01, 0.001) else text
    return f"{text}\N{NO-BREAK SPACE}%"


def between(ends, factor=100, digits=2):
    """The ends of an interval, without a sign."""
    return f"{factor * ends[0]:.{digits}f}–{factor * ends[1]:.{digits}f}"


def interval(ends):
    """The same of shares."""
    return f"{between(ends)} %"


def per(share, base):
    """How many of `base`: "3.7", "120"."""
    count = share * base
    return f"{count:.0f}" if count >= 10 or abs(count - round(count)) < 1e-9 else f"{count:.1f}"


def mean(spread, factor=100, digits=2):
    """A mean and its spread over models. spread: {"mean", "std" or None}."""
    either_way = "" if spread["std"] is None else f" ± {factor * spread['std']:.{digits}f}"
    return f"{factor * spread['mean']:.{digits}f}{either_way}{' %' if factor == 100 else ''}"


def rate(share, ends):
    """A rate with its interval in a second line, so that tables stay narrow."""
    return "-" if share is None else join(percent(share), element("small", between(ends)))


def auc(found):
    """An AUC with its interval in a second line."""
    if found["auc"] is None:
        return "-"
    return join(f"{found['auc']:.4f}", element("small", between(found["auc_interval"], 1, 4)))


def number(value):
    """Three digits."""
    return "-" if value is None else f"{value:.3g}"


def span(values):
    """Of whole numbers: "5" or "3 to 9"."""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def plain(value):
    """Nested settings as one line of text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return str(value)


def folded(count, content):
    """A table of `count` rows that is opened on demand when it is long."""
    return content if count <= 8 else element("details", element("summary", f"Show all {count} rows"), content)

"""Command lines: flags that are wrong are one line on stderr, and the table that a script prints last.

Public: Parser, number, show_rows.
"""

import argparse
import math

from kit.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse, but bad flags are UserErrors: one line, exit code 2."""

    def error(self, message):
        raise UserError(f"{message}", advice=f"run {self.prog} --help for the list of flags")


def number(kind, low=None, high=None, above=None):
    """An argparse type: a finite number of this kind within the limits."""

    def parse(text):
        value = kind(text)
        if (
            (low is not None and value < low)
            or (high is not None and value > high)
            or (above is not None and value <= above)
            or not math.isfinite(value)
        ):
            limits = [
                f"at least {low}" if low is not None else "",
                f"above {above}" if above is not None else "",
                f"at most {high}" if high is not None else "",
            ]
            raise argparse.ArgumentTypeError(f"{text} must be a number {' and '.join(filter(None, limits))}")
        return value

    parse.__name__ = kind.__name__
    return parse


def show_rows(rows, width=None):
    """Print lines `name value`. rows: (name, value of any type) pairs; width: where values begin (default: two spaces
    behind the longest name)."""
    width = max((len(name) for name, _ in rows), default=0) + 2 if width is None else width
    for name, value in rows:
        print(f"{name:<{width}}{value}")

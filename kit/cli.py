"""Command lines: flags that are wrong are one line on stderr, and the table that a script prints last.

Public: Parser, number, given_flags, show_rows.
"""

import argparse
import math

from kit.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse, but bad flags are UserErrors (one line, exit code 2), and a description keeps its lines."""

    def __init__(self, description=None, **settings):
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(description=description, **settings)

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


def given_flags(parser, args, title):
    """Flags of the group with this title that have another value than their default, in the order of --help."""
    group = next(group for group in parser._action_groups if group.title == title)
    return [
        action.option_strings[-1] for action in group._group_actions if getattr(args, action.dest) != action.default
    ]


def show_rows(rows, width=None):
    """Print lines `name value`. rows: (name, value of any type) pairs; width: where values begin (default: two spaces
    behind the longest name)."""
    width = max((len(name) for name, _ in rows), default=0) + 2 if width is None else width
    for name, value in rows:
        print(f"{name:<{width}}{value}")

"""Flags that every check of a draw has: whose beacon and whose time stamps are believed.

Public: add_trust_flags.
"""


def add_trust_flags(parser):
    """--beacon_chain and --timestamp_roots; parser: one, or a group of one."""
    parser.add_argument(
        "--beacon_chain", metavar="FILE", help="facts of the public beacon, JSON (default: drand's quicknet)"
    )
    parser.add_argument(
        "--timestamp_roots",
        metavar="FILE",
        help="certificates of the time-stamping authority, PEM (default: those that are known here)",
    )

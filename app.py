"""The page for people who never open a terminal: mark photos, check a model, look into audits.

Example: python app.py
Opens a page in the browser. Everything stays on this computer: the page answers to nobody else and counts nothing. It
fetches a public random number, and asks a time-stamping or a model server that you name; nothing else is sent. Its
address is a secret, new at every start.
Needs: pip install -r requirements/app.txt
"""

import os
from pathlib import Path

from kit.errors import UserError, optional, run_script


def make_parser():
    from kit import cli
    from provenance.flags import add_trust_flags

    parser, number = cli.Parser(__doc__), cli.number
    parser.add_argument(
        "--work_folder",
        default=str(Path.home() / "MembershipTracker"),
        help="where marked photos, records and audits are kept (default ~/MembershipTracker)",
    )
    parser.add_argument(
        "--runs_folder",
        nargs="+",
        default=["."],
        help="where the tab Audit looks for finished runs (default: the current folder)",
    )
    parser.add_argument(
        "--port",
        type=number(int, 0, 65535),
        default=7860,
        help="of the address 127.0.0.1 (default 7860, or the next one that is free; 0: any)",
    )
    parser.add_argument(
        "--max_upload",
        type=number(float, above=0),
        default=4.0,
        help="the largest file that can be handed in, in GiB (default 4); folders have no limit",
    )
    add_trust_flags(parser)
    parser.add_argument(
        "--no_browser", action="store_true", help="print the address, open no browser (default: open it)"
    )
    parser.add_argument(
        "--share",
        action="store_true",
        help="refused: your records are secrets, and whoever reached the page could take them (default: not shared)",
    )
    return parser


def main():
    args = make_parser().parse_args()
    if args.share:
        raise UserError(
            "the page is for this computer alone: it holds secret records, and whoever could reach it "
            "could take them. From another computer use a tunnel of your own, such as "
            "ssh -L 7860:127.0.0.1:7860, and leave --share out"
        )
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    optional("gradio", "the page", "-r requirements/app.txt")
    from page import server

    server.serve(
        Path(args.work_folder).expanduser(),
        args.runs_folder,
        args.port,
        args.max_upload,
        not args.no_browser,
        args.beacon_chain,
        args.timestamp_roots,
    )


if __name__ == "__main__":
    run_script(main, writes_to="--work_folder")

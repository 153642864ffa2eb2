"""Run the train.py commands of a sweep, several at once, on this machine or as tasks of a Ray cluster.

Example: python -m launch commands.txt --jobs 4     one command a line, as in a shell; without a file from stdin
         LAUNCHER=ray bash single-target.sh          the sweep scripts hand their commands to this one

A finished run is skipped, a failed one is named at the end while the others go on, and the same start goes on after an
interruption. Commands run in the repository's folder. Each has a log and a small record in --logs.
local: --jobs at once, the processor's cores shared among them, CUDA devices in turn.
ray:   needs `pip install ray`. The cluster of RAY_ADDRESS, else one started here, else a new one on this machine.
       What Ray has to say itself is in ray.log in --logs.
       Repository, data, results and --logs lie at the same path on every node. A run whose node dies is started again
       elsewhere and goes on from its progress file.
Public: main. Exit code 1: some run failed; 2: bad input; 130: interrupted.
"""

import argparse
import hashlib
import os
import shlex
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from kit import cli
from kit.errors import UserError
from kit.tables import columns
from launch.guard import REPOSITORY, digest, read_record
from launch.local import Local
from launch.on_ray import OnRay

TABLE = ("run", "seconds", "node", "tries", "state")


def main():
    if sys.platform == "win32":
        raise UserError("launch needs Linux or macOS", advice="run the commands one after the other here")
    args = _make_parser().parse_args()
    runs = read_runs(args.commands, Path(args.logs).resolve())
    _make_folder(Path(args.logs))
    waiting = [run for run in runs if not is_finished(run)]
    board = Board(runs, waiting)
    # A cluster is looked for only where there is something to do.
    if waiting:
        (OnRay if args.launcher == "ray" else Local)(args).drive(waiting, board)
    return board.conclude()


def _make_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"can't make the folder {folder} ({error.strerror})", advice="choose another with --logs"
        ) from None


def _make_parser():
    def launcher(text):  # argparse checks the choices of flags, not of defaults
        if text not in ("local", "ray"):
            raise argparse.ArgumentTypeError(f"{text!r} is neither local nor ray")
        return text

    def flag(name, variable, default, **settings):
        # An empty variable counts as none: `JOBS= bash single-target.sh`.
        parser.add_argument(name, default=os.environ.get(variable) or default, **settings)

    parser = cli.Parser(__doc__)
    parser.add_argument("commands", nargs="?", default="-", help="file with one command a line (default: stdin)")
    flag("--launcher", "LAUNCHER", "local", type=launcher, help="local or ray (default $LAUNCHER, else local)")
    flag("--jobs", "JOBS", "1", type=cli.number(int, 1), help="local: runs at once (default $JOBS, else 1)")
    flag(
        "--gpus_per_run",
        "GPUS_PER_RUN",
        None,
        type=cli.number(float, 0),
        help="ray: 0.25 puts four runs on each GPU (default $GPUS_PER_RUN, else 1 where the cluster has GPUs)",
    )
    flag(
        "--cpus_per_run",
        "CPUS_PER_RUN",
        "1",
        type=cli.number(float, above=0),
        help="ray: cores of each run (default $CPUS_PER_RUN, else 1)",
    )
    flag(
        "--retries",
        "RETRIES",
        "3",
        type=cli.number(int, 0),
        help="ray: further starts of a run whose node or worker dies (default $RETRIES, else 3)",
    )
    parser.add_argument("--logs", default="saved_res/logs", help="folder of logs and records")
    return parser


@dataclass(frozen=True)
class Run:
    """One command. result: the file that it leaves when it is finished, None where that is not known."""

    name: str
    command: tuple
    result: Path | None
    record: Path
    log: Path


def read_runs(source, logs):
    """The Runs of a file with one command a line ("-": stdin), the same command once. UserError for what is none."""
    try:
        text = os.fsdecode(sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes())
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{source} is not a file", advice="give a file with one command a line") from None
    found = {}
    for number, line in enumerate(text.split("\n"), 1):
        try:
            words = tuple(shlex.split(line, comments=True))
        except ValueError as error:
            raise UserError(
                f"line {number} of the commands can't be read ({error})", advice="quote it as for a shell"
            ) from None
        if words and words not in found:
            found[words] = _make_run(words, logs)
    if not found:
        raise UserError("there is no command", advice="give one a line, for example: python train.py --dataset photos")
    return list(found.values())


def _make_run(words, logs):
    paths = _paths_of(words)
    # Which Python starts it is not part of a run's name.
    digest = hashlib.sha256(shlex.join(words[1:] or words).encode(errors="surrogateescape")).hexdigest()[:8]
    name = paths.folder.name if paths else f"{Path(words[min(1, len(words) - 1)]).stem}-{digest}"
    key = f"{name}-{digest}" if paths else name
    return Run(name, words, paths and (REPOSITORY / paths.result), logs / f"{key}.json", logs / f"{key}.log")


def _paths_of(words):
    """RunPaths of a train.py command; None for other commands, for flags that train.py will refuse, and where only the
    images tell how many of them are trained on."""
    from dataset import recipe
    from experiment import flags, settings

    place = next((place for place, word in enumerate(words) if Path(word).name == "train.py"), None)
    if place is None:
        return None
    try:
        args = flags.make_parser("").parse_args(words[place + 1 :])
        dataset = args.dataset or "cifar100"
        if dataset == "imagefolder" and not (args.train_size or args.out):
            return None
        given = {name: getattr(args, name) or getattr(recipe(dataset), name) for name in ("net_type", "train_size")}
        return settings.run_paths(args, {"dataset": dataset, **given})
    except (UserError, SystemExit):
        return None


def is_finished(run):
    """Whether this very command has ended well before, and its result is still the one it left.

    A result.json alone says nothing about its settings. Without a record the command is started: train.py shows a
    finished run, or refuses other settings by name, within seconds.
    """
    record = read_record(run.record)
    found = digest(run.result)
    return found is not None and record.get("code") == 0 and record.get("result") == found


class Board:
    """What is known of each run: a line when it starts and ends, a table at the end."""

    def __init__(self, runs, waiting):
        # Tells this start from earlier ones in the records.
        self.start = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        self.out = sys.stdout
        skipped = set(runs) - set(waiting)
        self.rows = {
            run: {"run": run.name, "state": "finished before" if run in skipped else "not started"} for run in runs
        }
        self.total, self.ended_number, self.failed = len(waiting), 0, []
        self._say(f"{len(runs)} runs, {len(skipped)} finished before")

    def look(self, runs):
        """Say which of these runs have started since the last look."""
        for run in runs:
            record = read_record(run.record)
            row = self.rows[run]
            if record.get("start") == self.start and record["tries"] != row.get("tries"):
                row.update(node=record["node"], tries=record["tries"], state="running")
                again = f" (try {record['tries']})" if record["tries"] > 1 else ""
                self._say(f"started  {run.name} on {record['node']}{again}")

    def ended(self, run, outcome):
        """Take up how a run ended: its last record, or {"problem": why there is none}."""
        code = outcome.get("code")
        reason = outcome.get("problem") or f"exit code {code}"
        self.rows[run].update(
            {name: outcome[name] for name in ("seconds", "node", "tries") if name in outcome},
            state="done" if code == 0 else f"failed ({reason})",
        )
        self.ended_number += 1
        if code != 0:
            self.failed.append(f"{run.name} ({reason}; log: {run.log})")
        said = f", {outcome['seconds']:.0f} s" if code == 0 else f": {reason}; {outcome.get('last', '')}".rstrip("; ")
        self._say(f"{'done    ' if code == 0 else 'failed  '} {run.name}{said}  [{self.ended_number}/{self.total}]")

    def interrupted(self, pending):
        """Show how far it got, when these runs have been stopped or have not started."""
        self.look(pending)
        for run in pending:
            if self.rows[run]["state"] == "running":
                self.rows[run]["state"] = "done" if read_record(run.record).get("code") == 0 else "interrupted"
        self._show()

    def conclude(self):
        """Show the table, name what failed on stderr; the exit code."""
        self._show()
        for failed in self.failed:
            print(f"not finished: {failed}", file=sys.stderr)
        return 1 if self.failed else 0

    def _show(self):
        for line in columns([TABLE, *([_cell(row.get(name)) for name in TABLE] for row in self.rows.values())]):
            self._say(line)

    def _say(self, line):
        print(line, file=self.out, flush=True)


def _cell(value):
    return "-" if value is None else f"{value:.0f}" if isinstance(value, float) else str(value)

"""Run the train.py commands of a sweep, several at once, on this machine or as tasks of a Ray cluster.

Example: python launch.py commands.txt --jobs 4        one command a line, as in a shell; without a file from stdin
         LAUNCHER=ray bash single-target.sh            the sweep scripts hand their commands to this one

A finished run is skipped, a failed one is named at the end while the others go on, and the same start goes on after an
interruption. Commands run in the folder of this file. Each has a log and a small record in --logs.
local: --jobs at once, the processor's cores shared among them, CUDA devices in turn.
ray:   needs `pip install ray`. The cluster of RAY_ADDRESS, else one started here, else a new one on this machine.
       What Ray has to say itself is in ray.log in --logs.
       Repository, data, results and --logs lie at the same path on every node. A run whose node dies is started again
       elsewhere and goes on from its progress file.
Public: main. Exit code 1: some run failed; 2: bad input; 130: interrupted.
"""
# Nothing but the standard library up here: this file is started beside every run as its guard (`guard`), and torch
# would cost each of them seconds and 200 MB.
import argparse
import ctypes
import hashlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent
POLL_SECONDS = 0.2
STOP_SECONDS = 20  # from a polite request to end until the kill
# A run whose predecessor is just dying waits this long for its folder; Ray needs half a minute to call a node dead.
LOCK_SECONDS = 120
LOCKED = b"another process is working in"  # what runs.py says then
TABLE = ("run", "seconds", "node", "tries", "state")
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1


def main():
    if sys.platform == "win32":
        raise _user_error("launch.py needs Linux or macOS; run the commands one after the other here")
    args = _make_parser().parse_args()
    runs = read_runs(args.commands, Path(args.logs).resolve())
    _make_folder(Path(args.logs))
    waiting = [run for run in runs if not is_finished(run)]
    progress = Progress(runs, waiting)
    # A cluster is looked for only where there is something to do.
    if waiting:
        (OnRay if args.launcher == "ray" else Local)(args).drive(waiting, progress)
    return progress.conclude()


def _user_error(message):
    from runs import UserError
    return UserError(message)


def _make_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _user_error(f"can't make the folder {folder} ({error.strerror}); choose another with --logs") from None


def _make_parser():
    import arguments

    def launcher(text):  # argparse checks the choices of flags, not of defaults
        if text not in ("local", "ray"):
            raise argparse.ArgumentTypeError(f"{text!r} is neither local nor ray")
        return text

    def flag(name, variable, default, **settings):
        # An empty variable counts as none: `JOBS= bash single-target.sh`.
        parser.add_argument(name, default=os.environ.get(variable) or default, **settings)

    parser = arguments.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="?", default="-", help="file with one command a line (default: stdin)")
    flag("--launcher", "LAUNCHER", "local", type=launcher, help="local or ray (default $LAUNCHER, else local)")
    flag("--jobs", "JOBS", "1", type=arguments.number(int, 1), help="local: runs at once (default $JOBS, else 1)")
    flag("--gpus_per_run", "GPUS_PER_RUN", None, type=arguments.number(float, 0),
         help="ray: 0.25 puts four runs on each GPU (default $GPUS_PER_RUN, else 1 where the cluster has GPUs)")
    flag("--cpus_per_run", "CPUS_PER_RUN", "1", type=arguments.number(float, above=0),
         help="ray: cores of each run (default $CPUS_PER_RUN, else 1)")
    flag("--retries", "RETRIES", "3", type=arguments.number(int, 0),
         help="ray: further starts of a run whose node or worker dies (default $RETRIES, else 3)")
    parser.add_argument("--logs", default="saved_res/logs", help="folder of logs and records")
    return parser


# ----------------------------------------------------------------------------------------------------------------------
# The commands
# ----------------------------------------------------------------------------------------------------------------------

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
        raise _user_error(f"{source} is not a file; give a file with one command a line") from None
    found = {}
    for number, line in enumerate(text.split("\n"), 1):
        try:
            words = tuple(shlex.split(line, comments=True))
        except ValueError as error:
            raise _user_error(f"line {number} of the commands can't be read ({error}); quote it as for a shell") \
                from None
        if words and words not in found:
            found[words] = _make_run(words, logs)
    if not found:
        raise _user_error("there is no command; give one a line, for example: python train.py --dataset photos")
    return list(found.values())


def _make_run(words, logs):
    paths = _paths_of(words)
    # Which Python starts it is not part of a run's name.
    digest = hashlib.sha256(shlex.join(words[1:] or words).encode(errors="surrogateescape")).hexdigest()[:8]
    name = paths.folder.name if paths else f"{Path(words[min(1, len(words) - 1)]).stem}-{digest}"
    key = f"{name}-{digest}" if paths else name
    return Run(name, words, paths and (REPOSITORY / paths.result), logs / f"{key}.json", logs / f"{key}.log")


def _paths_of(words):
    """RunPaths of a train.py command; None for other commands, and for flags that train.py will refuse."""
    import arguments
    from dataset import recipe
    from runs import UserError
    place = next((place for place, word in enumerate(words) if Path(word).name == "train.py"), None)
    if place is None:
        return None
    try:
        args = arguments.make_parser("").parse_args(words[place + 1:])
        dataset = args.dataset or "cifar100"
        return arguments.run_paths(args, dataset, args.net_type or recipe(dataset).net_type)
    except (UserError, SystemExit):
        return None


def is_finished(run):
    """Whether this very command has ended well before, and its result is still the one it left.

    A result.json alone says nothing about its settings. Without a record the command is started: train.py shows a
    finished run, or refuses other settings by name, within seconds.
    """
    record = _read_record(run.record)
    found = _digest(run.result)
    return found is not None and record.get("code") == 0 and record.get("result") == found


def _digest(path):
    with suppress(OSError, TypeError):
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return None


def _read_record(path):
    with suppress(OSError, ValueError):
        record = json.loads(Path(path).read_text())
        return record if isinstance(record, dict) else {}
    return {}


def _write_record(path, record):
    # runs.write_json would need torch.
    temporary = Path(f"{path}.{os.getpid()}.part")
    temporary.write_text(json.dumps(record))
    os.replace(temporary, path)


# ----------------------------------------------------------------------------------------------------------------------
# What is said
# ----------------------------------------------------------------------------------------------------------------------

class Progress:
    """What is known of each run: a line when it starts and ends, a table at the end."""

    def __init__(self, runs, waiting):
        # Tells this start from earlier ones in the records.
        self.start = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        self.out = sys.stdout
        skipped = set(runs) - set(waiting)
        self.rows = {run: {"run": run.name, "state": "finished before" if run in skipped else "not started"}
                     for run in runs}
        self.total, self.ended_number, self.failed = len(waiting), 0, []
        self._say(f"{len(runs)} runs, {len(skipped)} finished before")

    def look(self, runs):
        """Say which of these runs have started since the last look."""
        for run in runs:
            record = _read_record(run.record)
            row = self.rows[run]
            if record.get("start") == self.start and record["tries"] != row.get("tries"):
                row.update(node=record["node"], tries=record["tries"], state="running")
                again = f" (try {record['tries']})" if record["tries"] > 1 else ""
                self._say(f"started  {run.name} on {record['node']}{again}")

    def ended(self, run, outcome):
        """Take up how a run ended: its last record, or {"problem": why there is none}."""
        code = outcome.get("code")
        reason = outcome.get("problem") or f"exit code {code}"
        self.rows[run].update({name: outcome[name] for name in ("seconds", "node", "tries") if name in outcome},
                              state="done" if code == 0 else f"failed ({reason})")
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
                self.rows[run]["state"] = "done" if _read_record(run.record).get("code") == 0 else "interrupted"
        self._show()

    def conclude(self):
        """Show the table, name what failed on stderr; the exit code."""
        self._show()
        for failed in self.failed:
            print(f"not finished: {failed}", file=sys.stderr)
        return 1 if self.failed else 0

    def _show(self):
        cells = [list(TABLE)] + [[_cell(row.get(name)) for name in TABLE] for row in self.rows.values()]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for line in cells:
            self._say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())

    def _say(self, line):
        print(line, file=self.out, flush=True)


def _cell(value):
    return "-" if value is None else f"{value:.0f}" if isinstance(value, float) else str(value)


# ----------------------------------------------------------------------------------------------------------------------
# Where it runs
# ----------------------------------------------------------------------------------------------------------------------

class Launcher:
    """Starts runs and hears how they end. Subclasses have submit, wait -> [(run, outcome)] and stop."""

    threads = 1  # of each run

    def drive(self, runs, progress):
        """Run them all; on Ctrl-C stop them politely, show how far it got, and pass the interrupt on."""
        pending = dict.fromkeys(runs)
        try:
            self.submit([(run, self._job(run, progress.start)) for run in runs])
            while pending:
                ended = self.wait()
                progress.look(pending)
                for run, outcome in ended:
                    del pending[run]
                    progress.ended(run, outcome)
        except KeyboardInterrupt:
            self.stop()
            progress.interrupted(pending)
            raise
        finally:
            self.close()

    def _job(self, run, start):
        """What `guard` has to know, ready for JSON."""
        return {"command": run.command, "result": run.result and str(run.result), "start": start,
                "record": str(run.record), "log": str(run.log),
                "environment": {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(self.threads)}}

    def close(self):
        """Give back what was opened."""


class Local(Launcher):
    """`--jobs` processes at once on this machine."""

    def __init__(self, args):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        # Processes whose threads outnumber the cores wait for each other's threads: ten times slower on two cores.
        self.threads = max(1, cores // args.jobs)
        devices = _cuda_devices()
        self.slots = [devices[slot % len(devices)] if devices else None for slot in reversed(range(args.jobs))]
        self.waiting, self.running = [], []

    def submit(self, jobs):
        self.waiting = list(reversed(jobs))

    def wait(self):
        while self.waiting and self.slots:
            (run, job), device = self.waiting.pop(), self.slots.pop()
            job["environment"] |= {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
            self.running.append((run, start_guard(job, socket.gethostname()), device))
        time.sleep(POLL_SECONDS)
        ended = [entry for entry in self.running if entry[1].poll() is not None]
        self.running = [entry for entry in self.running if entry not in ended]
        self.slots += [device for _, _, device in ended]
        return [(run, outcome_of(process)) for run, process, _ in ended]

    def stop(self):
        stop_guards([process for _, process, _ in self.running])


def _cuda_devices():
    """CUDA_VISIBLE_DEVICES of each slot in turn, where there is more than one device."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        devices = [device for device in visible.split(",") if device.strip()]
    else:
        import torch
        devices = [str(device) for device in range(torch.cuda.device_count())]
    return devices if len(devices) > 1 else []


class OnRay(Launcher):
    """Each run a task of a Ray cluster: Ray chooses the node, and starts it again where worker or node dies."""

    def __init__(self, args):
        self.opened = ExitStack()
        # Ray prints what it knows of a node that has died, up to hundreds of lines, and has no switch for that.
        chatter = Path(args.logs, "ray.log").open("a")  # noqa: SIM115  (open as long as the cluster is)
        self.opened.enter_context(redirect_stdout(self.opened.enter_context(chatter)))
        self.ray, own = _connect()
        has_gpus = self.ray.cluster_resources().get("GPU", 0) > 0
        gpus = float(has_gpus) if args.gpus_per_run is None else args.gpus_per_run
        try:
            self._check_room({"CPU": args.cpus_per_run, "GPU": gpus}, own)
            self.task = self.ray.remote(execute).options(
                num_cpus=args.cpus_per_run, num_gpus=gpus, max_retries=args.retries, scheduling_strategy="SPREAD")
        except ValueError as error:  # Ray's own limits: 1.5 GPUs is not possible
            raise _user_error(f"Ray does not accept these resources ({_first_line(error)})") from None
        self.threads = max(1, int(args.cpus_per_run))
        self.tasks = {}

    def _check_room(self, wanted, own):
        # Ray would wait for ever without a word.
        for name, amount in wanted.items():
            most = max((node["Resources"].get(name, 0) for node in self.ray.nodes() if node["Alive"]), default=0)
            if amount > most and own:
                raise _user_error(f"a run needs {amount:g} {name} and this machine has {most:g}; "
                                  f"lower {name}S_PER_RUN")
            if amount > most:
                print(f"warning: a run needs {amount:g} {name}, the largest node has {most:g}; waiting for a larger "
                      f"one (lower {name}S_PER_RUN if none will come)", file=sys.stderr)

    def submit(self, jobs):
        self.tasks = {self.task.remote(job): run for run, job in jobs}

    def wait(self):
        ready, _ = self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=5 * POLL_SECONDS)
        return [(self.tasks.pop(task), self._outcome(task)) for task in ready]

    def _outcome(self, task):
        try:
            return self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            return {"problem": _first_line(getattr(error, "cause", None) or error)}

    def stop(self):
        for task in self.tasks:
            self.ray.cancel(task)
        self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=STOP_SECONDS + 10)

    def close(self):
        self.ray.shutdown()
        self.opened.close()


def _connect():
    """(the module ray, connected; whether the cluster is our own)."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise _user_error("LAUNCHER=ray needs Ray; pip install ray, or use LAUNCHER=local") from None
    # Ray puts a handler of its own in the place of the one that ends this script politely.
    handler = signal.getsignal(signal.SIGTERM)
    address = _cluster_address()
    # The object store of a new cluster holds nothing but records of some hundred bytes.
    own = {"include_dashboard": False, "object_store_memory": 80 * 2**20} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, RuntimeError, ValueError) as error:  # for example other versions of Python or Ray there
        raise _user_error(f"can't use the Ray cluster at {address}: {_first_line(error)}") from None
    signal.signal(signal.SIGTERM, handler)
    return ray, bool(own)


def _cluster_address():
    """Where a cluster answers: RAY_ADDRESS, or what `ray start` left on this machine; else "local", a new one.

    Ray itself would try for many minutes before it calls an address dead.
    """
    asked = os.environ.get("RAY_ADDRESS")
    if asked in ("local", "auto"):
        return asked
    left = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    address = asked or (left.read_text().strip() if left.is_file() else "")
    found = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address)
    if asked and not found:
        raise _user_error(f"RAY_ADDRESS={asked} is not an address; give HOST:PORT")
    try:
        socket.create_connection((found[1], int(found[2])), timeout=10).close()
    except (OSError, OverflowError, TypeError) as error:  # TypeError: there is none
        if asked:
            raise _user_error(f"no Ray cluster answers at RAY_ADDRESS={asked} ({error})") from None
        return "local"
    return address


def _first_line(error):
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def execute(job):
    """The Ray task: one run under its guard. Returns its last record."""
    import ray
    process = start_guard(job, f"{socket.gethostname()}/{ray.get_runtime_context().get_node_id()[:6]}")
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)  # short: ray.cancel interrupts between two of them
        return outcome_of(process)
    finally:
        stop_guards([process])


# ----------------------------------------------------------------------------------------------------------------------
# The guard: a small process beside each run, so that no run outlives who started it
# ----------------------------------------------------------------------------------------------------------------------

def start_guard(job, node):
    """Start a job's guard as a child of this process. Returns its Popen, for outcome_of and stop_guards."""
    wanted = json.dumps({**job, "parent": os.getpid(), "node": node})
    # A session of its own: Ctrl-C in a terminal reaches only the launcher, which then asks politely, once.
    return subprocess.Popen([sys.executable, str(REPOSITORY / "launch.py"), "--guard", wanted], cwd=REPOSITORY,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            start_new_session=True)


def outcome_of(process):
    """The last record of a guard that has ended, or {"problem": why there is none}."""
    out, error = process.communicate()
    with suppress(ValueError):
        return json.loads(out)
    return {"problem": _first_line(error.decode(errors="replace")) if error.strip() else "its guard was killed"}


def stop_guards(processes):
    """End these guards and their runs: politely, then not."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS + 5
    for process in running:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def guard(job):
    """Run a job's command, again while its folder is locked; keep the record; print its last state as JSON.

    The command ends when this process is asked to (SIGTERM), and when its parent dies: a worker of Ray or the launcher
    that was killed would leave a training behind that holds the folder's lock and the GPU.
    """
    asked = []
    for wish in (signal.SIGTERM, signal.SIGINT):
        signal.signal(wish, lambda *_: asked.append(time.monotonic()))
    before = _read_record(job["record"])
    record = {"command": job["command"], "start": job["start"], "node": job["node"],
              "tries": before["tries"] + 1 if before.get("start") == job["start"] else 1}
    _write_record(job["record"], record)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        started = time.monotonic()
        code, said = _attempt(job, record["tries"], asked)
        if code != 2 or LOCKED not in said or asked or time.monotonic() > deadline:
            break
        time.sleep(5 * POLL_SECONDS)
    last = said.decode(errors="replace").strip().splitlines()[-1:]
    record |= {"code": code, "seconds": time.monotonic() - started, "last": "".join(last)[:300],
               "result": _digest(job["result"]) if code == 0 else None}
    _write_record(job["record"], record)
    print(json.dumps(record))


def _attempt(job, tries, asked):
    """Start the command once. Returns (exit code, the last 4 KB that it said)."""
    with open(job["log"], "ab") as log:
        log.write(f"=== try {tries} on {job['node']}, {time.strftime('%F %T')}: {shlex.join(job['command'])}\n"
                  .encode(errors="surrogateescape"))
        log.flush()
        begin = log.tell()
        me = os.getpid()
        try:
            child = subprocess.Popen(job["command"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                     env={**os.environ, **job["environment"]}, start_new_session=True,
                                     preexec_fn=lambda: _die_with(me))
            code = _watch(child, job["parent"], asked)
        except OSError as error:
            log.write(f"error: can't start {job['command'][0]}: {error.strerror}\n".encode())
            code = 127
    with open(job["log"], "rb") as log:
        log.seek(max(begin, os.path.getsize(job["log"]) - 4096))
        return code, log.read()


def _die_with(parent):
    """In the new process: be killed when the guard is, which then can't do it (Linux; elsewhere nothing does)."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before that
            os._exit(1)


def _watch(child, parent, asked):
    """Wait for the run's end; bring it about when asked, or when the parent is gone. Returns the exit code."""
    told = False
    while child.poll() is None:
        if os.getppid() != parent:
            os.killpg(child.pid, signal.SIGKILL)
            os._exit(1)  # and leave the record to the successor
        if asked and not told:
            child.terminate()
            told = True
        if asked and time.monotonic() - asked[0] > STOP_SECONDS:
            os.killpg(child.pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    if sys.argv[1:2] == ["--guard"]:
        sys.exit(guard(json.loads(sys.argv[2])))
    from runs import run_script
    run_script(main)

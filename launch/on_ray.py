"""Runs as tasks of a Ray cluster.

Public: OnRay.
"""

import os
import re
import signal
import socket
import sys
import time
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

from kit.errors import UserError
from launch.guard import POLL_SECONDS, STOP_SECONDS, first_line, outcome_of, start_guard, stop_guards
from launch.local import Launcher


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
                num_cpus=args.cpus_per_run, num_gpus=gpus, max_retries=args.retries, scheduling_strategy="SPREAD"
            )
        except ValueError as error:  # Ray's own limits: 1.5 GPUs is not possible
            raise UserError(f"Ray does not accept these resources ({first_line(error)})") from None
        self.threads = max(1, int(args.cpus_per_run))
        self.tasks = {}

    def _check_room(self, wanted, own):
        # Ray would wait for ever without a word.
        for name, amount in wanted.items():
            most = max((node["Resources"].get(name, 0) for node in self.ray.nodes() if node["Alive"]), default=0)
            if amount > most and own:
                raise UserError(
                    f"a run needs {amount:g} {name} and this machine has {most:g}", advice=f"lower {name}S_PER_RUN"
                )
            if amount > most:
                print(
                    f"warning: a run needs {amount:g} {name}, the largest node has {most:g}; waiting for a larger "
                    f"one (lower {name}S_PER_RUN if none will come)",
                    file=sys.stderr,
                )

    def submit(self, jobs):
        self.tasks = {self.task.remote(job): run for run, job in jobs}

    def wait(self):
        ready, _ = self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=5 * POLL_SECONDS)
        return [(self.tasks.pop(task), self._outcome(task)) for task in ready]

    def _outcome(self, task):
        try:
            return self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            return {"problem": first_line(getattr(error, "cause", None) or error)}

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
        raise UserError("LAUNCHER=ray needs Ray", advice="pip install ray, or use LAUNCHER=local") from None
    # Ray puts a handler of its own in the place of the one that ends this script politely.
    handler = signal.getsignal(signal.SIGTERM)
    address = _cluster_address()
    # The object store of a new cluster holds nothing but records of some hundred bytes.
    own = {"include_dashboard": False, "object_store_memory": 80 * 2**20} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, RuntimeError, ValueError) as error:  # for example other versions of Python or Ray there
        raise UserError(f"can't use the Ray cluster at {address}: {first_line(error)}") from None
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
        raise UserError(f"RAY_ADDRESS={asked} is not an address", advice="give HOST:PORT")
    try:
        socket.create_connection((found[1], int(found[2])), timeout=10).close()
    except (OSError, OverflowError, TypeError) as error:  # TypeError: there is none
        if asked:
            raise UserError(f"no Ray cluster answers at RAY_ADDRESS={asked} ({error})") from None
        return "local"
    return address


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

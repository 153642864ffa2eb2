"""Runs as processes of this machine.

Public: Launcher, Local.
"""

import os
import socket
import time

from launch.guard import POLL_SECONDS, outcome_of, start_guard, stop_guards


class Launcher:
    """Starts runs and hears how they end. Subclasses have submit, wait -> [(run, outcome)] and stop."""

    threads = 1  # of each run

    def drive(self, runs, board):
        """Run them all; board: a `pool.Board`. On Ctrl-C stop them politely, show how far it got, pass it on."""
        pending = dict.fromkeys(runs)
        try:
            self.submit([(run, self._job(run, board.start)) for run in runs])
            while pending:
                ended = self.wait()
                board.look(pending)
                for run, outcome in ended:
                    del pending[run]
                    board.ended(run, outcome)
        except KeyboardInterrupt:
            self.stop()
            board.interrupted(pending)
            raise
        finally:
            self.close()

    def _job(self, run, start):
        """What `guard` has to know, ready for JSON."""
        return {
            "command": run.command,
            "result": run.result and str(run.result),
            "start": start,
            "record": str(run.record),
            "log": str(run.log),
            "environment": {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(self.threads)},
        }

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

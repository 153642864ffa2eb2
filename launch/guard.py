"""The guard: a small process beside each run, so that no run outlives who started it.

Nothing but the standard library: this file is started as a script beside every run, and torch would cost each of them
seconds and 200 MB.

Public: start_guard, outcome_of, stop_guards, guard, read_record, digest, first_line, REPOSITORY, POLL_SECONDS,
STOP_SECONDS.
"""

import ctypes
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.2
STOP_SECONDS = 20  # from a polite request to end until the kill
# A run whose predecessor is just dying waits this long for its folder; Ray needs half a minute to call a node dead.
LOCK_SECONDS = 120
LOCKED = 75  # kit.errors.Locked ends a script with this exit code
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1


def digest(path):
    with suppress(OSError, TypeError):
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return None


def read_record(path):
    with suppress(OSError, ValueError):
        record = json.loads(Path(path).read_text())
        return record if isinstance(record, dict) else {}
    return {}


def _write_record(path, record):
    # kit.files.write_json would need torch.
    temporary = Path(f"{path}.{os.getpid()}.part")
    temporary.write_text(json.dumps(record))
    os.replace(temporary, path)


def first_line(error):
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def start_guard(job, node):
    """Start a job's guard as a child of this process. Returns its Popen, for outcome_of and stop_guards."""
    wanted = json.dumps({**job, "parent": os.getpid(), "node": node})
    # A session of its own: Ctrl-C in a terminal reaches only the launcher, which then asks politely, once.
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), wanted],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def outcome_of(process):
    """The last record of a guard that has ended, or {"problem": why there is none}."""
    out, error = process.communicate()
    with suppress(ValueError):
        return json.loads(out)
    return {"problem": first_line(error.decode(errors="replace")) if error.strip() else "its guard was killed"}


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
    before = read_record(job["record"])
    record = {
        "command": job["command"],
        "start": job["start"],
        "node": job["node"],
        "tries": before["tries"] + 1 if before.get("start") == job["start"] else 1,
    }
    _write_record(job["record"], record)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        started = time.monotonic()
        code, said = _attempt(job, record["tries"], asked)
        if code != LOCKED or asked or time.monotonic() > deadline:
            break
        time.sleep(5 * POLL_SECONDS)
    last = said.decode(errors="replace").strip().splitlines()[-1:]
    record |= {
        "code": code,
        "seconds": time.monotonic() - started,
        "last": "".join(last)[:300],
        "result": digest(job["result"]) if code == 0 else None,
    }
    _write_record(job["record"], record)
    print(json.dumps(record))


def _attempt(job, tries, asked):
    """Start the command once. Returns (exit code, the last 4 KB that it said)."""
    with open(job["log"], "ab") as log:
        log.write(
            f"=== try {tries} on {job['node']}, {time.strftime('%F %T')}: {shlex.join(job['command'])}\n".encode(
                errors="surrogateescape"
            )
        )
        log.flush()
        begin = log.tell()
        me = os.getpid()
        try:
            child = subprocess.Popen(
                job["command"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **job["environment"]},
                start_new_session=True,
                preexec_fn=lambda: _die_with(me),
            )
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
    sys.exit(guard(json.loads(sys.argv[1])))

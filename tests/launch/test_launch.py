"""`python -m launch`: every run once, whatever is killed: on this machine, and on a Ray cluster of two nodes.

The runs are those of a stand-in for train.py that starts in a moment: FAKE locks its folder, writes down when it
starts and ends, and complains when its result is there already. One test starts the real train.py.

Nothing here depends on how fast the machine is: a run that a test needs at work is held there by a file (`held`) until
the test has seen what it waits for, and the deadlines are so long that only what never happens reaches them.
"""

import fcntl
import functools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from kit.errors import UserError
from kit.files import lock_folder
from launch import guard, local, on_ray
from tests.parts import ROOT, SMALL, environment

DEADLINE = 300  # seconds for anything that happens at once on an idle machine

# --lr: seconds that it takes; --seed above 1: its exit code. A run that is started when it is finished says "again".
# It goes on once no file hold-TAG is in the folder of results (no test holds one for ten minutes: that one has died).
FAKE = """
import fcntl, os, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = os.path.join(flags["--res_folder"], "photos-smallnet-1500-" + flags["--save_tag"])
os.makedirs(folder, exist_ok=True)
lock = open(os.path.join(folder, ".lock"), "a")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(print("error: another process is working in", folder, file=sys.stderr) or 75)
def note(what):
    with open(os.path.join(flags["--res_folder"], "notes"), "a") as file:
        threads = os.environ["OMP_NUM_THREADS"]
        file.write(f"{what} {flags['--save_tag']} {os.getpid()} {time.monotonic()} {threads}\\n")
result = os.path.join(folder, "result.json")
if os.path.exists(result):
    sys.exit(note("again"))
note("start")
time.sleep(float(flags.get("--lr", 0.01)))
given_up = time.monotonic() + 600
while os.path.exists(os.path.join(flags["--res_folder"], "hold-" + flags["--save_tag"])):
    time.sleep(0.02)
    if time.monotonic() > given_up:
        sys.exit("error: held for ten minutes")
if int(flags.get("--seed", 1)) > 1:
    print("error: made to fail")
    sys.exit(int(flags["--seed"]))
with open(result, "x") as file:
    file.write("{}")
note("end")
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.py").write_text(FAKE)
    return tmp_path


def command(folder, tag, **flags):
    words = [
        sys.executable,
        str(folder / "train.py"),
        "--dataset",
        "photos",
        "--save_tag",
        tag,
        "--res_folder",
        str(folder / "res"),
    ]
    return shlex.join([*words, *(word for name, value in flags.items() for word in (f"--{name}", str(value)))])


def started(folder, commands, *flags):
    """The arguments of `python -m launch` for these commands."""
    (folder / "commands").write_text("\n".join(["# a sweep", *commands, ""]))
    return [str(folder / "commands"), "--logs", str(folder / "res" / "logs"), *flags]


def notes(folder, res="res"):
    """What the runs wrote down: [(what, tag, process id, time, threads)]."""
    path = folder / res / "notes"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(what, tag, int(process), float(when), int(threads)) for what, tag, process, when, threads in lines]


def tags(folder, what, res="res"):
    return sorted(note[1] for note in notes(folder, res) if note[0] == what)


def is_alive(process):
    try:
        status = Path(f"/proc/{process}/stat").read_text() if sys.platform == "linux" else os.kill(process, 0) or ") S"
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def held(folder, *tags):
    """Hold the runs of these tags once they have started. Returns a function that lets them all go on."""
    files = [folder / "res" / f"hold-{tag}" for tag in tags]
    (folder / "res").mkdir(exist_ok=True)
    for file in files:
        file.touch()
    return lambda: [file.unlink() for file in files]


def until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def open_launcher(folder, commands, *flags, **variables):
    return subprocess.Popen(
        [sys.executable, "-m", "launch", *started(folder, commands, *flags)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables),
    )


# --- this machine ----------------------------------------------------------------------------------------------------


def test_every_run_once_whatever_the_order_and_finished_ones_are_skipped(folder, script):
    commands = [command(folder, f"run-{number}") for number in range(4)]
    first = script("launch.pool", *started(folder, commands[:3], "--jobs", 2))
    assert first.code == 0 and first.err == ""
    second = script("launch.pool", *started(folder, [*reversed(commands), commands[0]], "--jobs", 2))
    assert second.code == 0 and "4 runs, 3 finished before" in second.out
    assert tags(folder, "end") == tags(folder, "start") == [f"run-{number}" for number in range(4)]
    assert not tags(folder, "again")  # skipped without a process
    table = second.out.strip().splitlines()[-4:]
    assert sum("finished before" in line for line in table) == 3
    assert [line.split()[-2:] for line in table if "run-3" in line] == [["1", "done"]]


def test_without_jobs_one_run_follows_the_other(folder, script):
    assert script("launch.pool", *started(folder, [command(folder, tag, lr=1) for tag in "ab"])).code == 0
    begin, end = ([note[3] for note in notes(folder) if note[0] == what] for what in ("start", "end"))
    assert max(begin) > min(end)


def test_jobs_are_how_many_run_at_once(folder):
    release = held(folder, *"abc")
    launcher = open_launcher(folder, [command(folder, tag) for tag in "abc"], "--jobs", "2")
    until(lambda: len(tags(folder, "start")) == 2)
    assert tags(folder, "start") == ["a", "b"] and not tags(folder, "end")
    release()
    assert launcher.communicate(timeout=DEADLINE)[1] == "" and launcher.returncode == 0
    third, end = next(note[3] for note in notes(folder) if note[:2] == ("start", "c")), notes(folder)
    assert third > min(note[3] for note in end if note[0] == "end")


def test_the_cores_are_shared_among_the_runs(folder, script, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert script("launch.pool", *started(folder, [command(folder, "shared")], "--jobs", 3)).code == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # the user knows better
    assert script("launch.pool", *started(folder, [command(folder, "asked")], "--jobs", 3)).code == 0
    assert {note[1]: note[4] for note in notes(folder)} == {"shared": 2, "asked": 5}


def test_cuda_devices_are_taken_in_turn(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7,5")
    assert local._cuda_devices() == ["3", "GPU-7", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert local._cuda_devices() == []  # as it is


def test_a_failed_run_is_named_at_the_end_and_the_others_go_on(folder, script):
    lost = "no-such-program train.py --save_tag lost"
    done = script("launch.pool", *started(folder, [command(folder, "bad", seed=7), lost, command(folder, "good")]))
    assert done.code == 1 and tags(folder, "end") == ["good"]
    lines = done.err.strip().splitlines()
    assert len(lines) == 2 and all(line.startswith("not finished: ") for line in lines)
    assert "smallnet-1500-bad (exit code 7" in lines[0] and "lost (exit code 127" in lines[1]
    assert "exit code 7; error: made to fail" in done.out and "can't start no-such-program" in done.out
    assert Path(lines[0].split("log: ")[1].rstrip(")")).read_text().endswith("error: made to fail\n")
    # Only the failed one is tried again.
    script("launch.pool", *started(folder, [command(folder, "bad", seed=7), command(folder, "good")]))
    assert tags(folder, "start") == ["bad", "bad", "good"] and not tags(folder, "again")


def test_what_is_not_known_to_be_finished_is_left_to_train(folder, script):
    """Wrong: a run skipped because a result.json is there, though other flags or another start made it."""
    assert script("launch.pool", *started(folder, [command(folder, "run")])).code == 0
    script("launch.pool", *started(folder, [command(folder, "run", epoch=5)]))
    assert tags(folder, "again") == ["run"]
    result = folder / "res" / "photos-smallnet-1500-run" / "result.json"
    result.write_text("[]")
    script("launch.pool", *started(folder, [command(folder, "run")]))
    assert tags(folder, "again") == ["run", "run"]
    result.unlink()
    script("launch.pool", *started(folder, [command(folder, "run")]))
    assert tags(folder, "end") == ["run", "run"]


@pytest.mark.parametrize(
    ("lines", "variables", "word"),
    [
        (["python train.py --save_tag 'open"], {}, "line 2"),
        ([], {}, "no command"),
        (["true"], {"JOBS": "0"}, "--jobs"),
        (["true"], {"JOBS": "many"}, "--jobs"),
        (["true"], {"LAUNCHER": "slurm"}, "slurm"),
        (["true"], {"LAUNCHER": "ray", "GPUS_PER_RUN": "-1"}, "--gpus_per_run"),
        (["true"], {"LAUNCHER": "ray"}, "pip install ray"),
    ],
)
def test_bad_input_is_one_line(folder, script, monkeypatch, lines, variables, word):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = script("launch.pool", *started(folder, lines))
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1 and word in done.err


def test_a_cluster_that_is_not_there_is_named_or_replaced(tmp_path, monkeypatch):
    """Wrong: minutes of silence, which is how long Ray tries."""
    for address, word in (("127.0.0.1:1", "no Ray cluster answers"), ("nowhere", "HOST:PORT"), ("a:999999", "answers")):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match=word):
            on_ray._cluster_address()
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert on_ray._cluster_address() == "local"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")  # of a cluster that was killed
    assert on_ray._cluster_address() == "local"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        assert on_ray._cluster_address() == address


@pytest.mark.parametrize("what", ["commands", "logs"])
def test_a_bad_path_is_named(folder, script, what):
    (folder / "nothing").touch()
    flags = [folder / "missing"] if what == "commands" else started(folder, ["true"], "--logs", folder / "nothing")
    done = script("launch.pool", *flags)
    assert done.code == 2 and str(flags[-1]) in done.err and len(done.err.strip().splitlines()) == 1


def test_a_folder_that_is_locked_for_a_moment_is_waited_for(folder, script):
    locked = folder / "res" / "photos-smallnet-1500-run"
    locked.mkdir(parents=True)
    lock = open(locked / ".lock", "a")  # noqa: SIM115  (closed once it was met, as if its process had died)
    fcntl.flock(lock, fcntl.LOCK_EX)

    def met():
        return any("another process" in log.read_text() for log in (folder / "res" / "logs").glob("*.log"))

    closer = threading.Thread(target=lambda: (until(met), lock.close()))
    closer.start()
    done = script("launch.pool", *started(folder, [command(folder, "run")]))
    closer.join()
    assert done.code == 0 and tags(folder, "end") == ["run"] and met()


def test_train_says_what_the_guard_listens_for(tmp_path, script):
    with lock_folder(tmp_path / "run"):
        done = script("train", *SMALL, "--out", tmp_path / "run")
    assert done.code == guard.LOCKED and "another process" in done.err, (done.code, done.err)


@pytest.mark.parametrize("victim", ["launcher", "guard"])
def test_no_run_outlives_who_started_it(folder, victim):
    if victim == "guard" and sys.platform != "linux":
        pytest.skip("only Linux kills the children of a killed process")
    held(folder, "run")
    launcher = open_launcher(folder, [command(folder, "run")])
    until(lambda: tags(folder, "start"))
    process = notes(folder)[0][2]
    parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1]) if victim == "guard" else None
    os.kill(parent or launcher.pid, signal.SIGKILL)
    until(lambda: not is_alive(process))
    _, error = launcher.communicate(timeout=DEADLINE)
    assert launcher.returncode == (1 if victim == "guard" else -signal.SIGKILL)
    assert victim == "launcher" or "guard was killed" in error


def test_a_finished_run_of_the_real_train_is_shown_once_and_then_skipped(finished_run, tmp_path, script):
    commands = [shlex.join([sys.executable, "train.py", *SMALL, "--out", str(finished_run)])]
    before = {path.name: path.stat().st_mtime_ns for path in finished_run.iterdir()}
    done = script("launch.pool", *started(tmp_path, commands))
    assert done.code == 0 and "1 runs, 0 finished before" in done.out, done.err
    assert "FPR@100%TPR" in next((tmp_path / "res" / "logs").glob("small-*.log")).read_text()
    assert "1 runs, 1 finished before" in script("launch.pool", *started(tmp_path, commands)).out
    assert before == {path.name: path.stat().st_mtime_ns for path in finished_run.iterdir()}


# --- the sweep scripts -----------------------------------------------------------------------------------------------


def fake_python(folder, **flags):
    """An interpreter for which train.py is FAKE (with these flags added) and paper.tables does nothing."""
    (folder / "train.py").write_text(FAKE)
    path = folder / "python"
    more = " ".join(f"--{name} {value}" for name, value in flags.items())
    path.write_text(f"""#!/usr/bin/env bash
echo "$@" >> {shlex.quote(str(folder))}/calls
case "$1 $2" in
    "-m launch") exec {sys.executable} "$@" ;;
    "train.py "*) exec {sys.executable} {shlex.quote(str(folder / "train.py"))} "${{@:2}}" {more} ;;
esac
""")
    path.chmod(0o755)
    return path


SWEPT = ("multiTarget-1", "multiTarget-2", "multiTarget-clean")  # the runs of `multi-target.sh 1 2`


def sweep(folder, script, *arguments, res="res", start_new_session=False, stdout=subprocess.PIPE, **variables):
    return subprocess.Popen(
        ["bash", str(ROOT / script), *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=start_new_session,
        env=environment(
            PYTHON=str(folder / "python"),
            QUICK="1",
            RES_FOLDER=str(folder / res),
            CKPT_FOLDER=str(folder / "ckpt"),
            **variables,
        ),
    )


def test_a_sweep_with_jobs_gives_the_same_commands(folder):
    """Quotes and blanks included. Wrong: another run, or other flags, than without JOBS."""
    fake_python(folder)
    commands = {}
    for jobs in ("1", "2"):
        process = sweep(
            folder, "single-target.sh", res=f"it's $HOME {jobs}", JOBS=jobs, EXTRA="--epoch 5 --lr .05", TABLES="1 7"
        )
        _, error = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, error
        calls = (folder / "calls").read_text().replace(f"HOME {jobs}", "HOME").splitlines()
        (folder / "calls").unlink()
        commands[jobs] = sorted(call for call in calls if call.startswith("train.py"))
        assert sum(call.startswith("-m launch") for call in calls) == (jobs == "2")
        assert len(tags(folder, "end", f"it's $HOME {jobs}")) == 6
    assert commands["1"] == commands["2"] and all("--epoch 5 --lr .05" in call for call in commands["2"])


def test_a_sweep_ends_with_the_exit_code_of_its_runs(folder):
    fake_python(folder, seed=3)
    failed = sweep(folder, "multi-target.sh", "5", JOBS="2")
    _, error = failed.communicate(timeout=DEADLINE)
    assert failed.returncode == 1 and error.count("not finished") == 3
    assert "paper.tables" in (folder / "calls").read_text()
    wrong = sweep(folder, "multi-target.sh", "5", LAUNCHER="slurm")
    _, error = wrong.communicate(timeout=DEADLINE)
    assert wrong.returncode == 2 and len(error.strip().splitlines()) == 1 and "slurm" in error
    assert len(tags(folder, "start")) == 2


def test_ctrl_c_ends_the_whole_sweep_and_the_second_start_goes_on(folder):
    """As in a terminal, where bash and all that runs in its foreground get it."""
    fake_python(folder)
    release = held(folder, *SWEPT, "multiTarget-3")
    process = sweep(folder, "multi-target.sh", "1", "2", "3", start_new_session=True, JOBS="2")
    until(lambda: len(tags(folder, "start")) == 2)
    os.killpg(process.pid, signal.SIGINT)
    out, error = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130 and len(error.strip().splitlines()) == 1 and "interrupted" in error
    assert "paper.tables" not in (folder / "calls").read_text() and out.count("  interrupted\n") == 2
    assert out.count("  not started\n") == 2
    assert not any(is_alive(note[2]) for note in notes(folder))
    release()
    process = sweep(folder, "multi-target.sh", "1", "2", "3", JOBS="4")
    _, error = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, error
    assert len(tags(folder, "end")) == 4 and not tags(folder, "again")


# --- Ray -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster whose head has one core. Its folder is short, because it holds Unix sockets."""
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray gives its own processes 30 or 60 seconds to start, which is not enough for them on a busy machine.
        for wait in (
            "gcs_server_port_wait_time_s",
            "gcs_server_request_timeout_seconds",
            "worker_register_timeout_seconds",
        ):
            patch.setenv(f"RAY_{wait}", str(DEADLINE))
        pytest.importorskip("ray", reason="needs Ray (requirements/extra.txt)")
        from ray.cluster_utils import Cluster

        patch.setattr(Cluster, "_wait_for_node", functools.partialmethod(Cluster._wait_for_node, timeout=DEADLINE))
        patch.setenv("RAY_TMPDIR", folder)
        (Path(folder) / "ray").mkdir()
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False},
        )
        yield cluster
        cluster.shutdown()


def running_on(folder, node):
    """The ids of the runs that have started on the node of this name, from records and notes."""
    found = []
    for path in (folder / "res" / "logs").glob("*.json"):
        record = json.loads(path.read_text())
        tag = record["command"][record["command"].index("--save_tag") + 1]
        processes = [note[2] for note in notes(folder) if note[:2] == ("start", tag)]
        found += processes if record["node"] == node and "code" not in record else []
    return found


def test_every_run_finishes_once_though_a_node_is_killed(folder, cluster):
    """A sweep on two nodes, one of which dies at work: its run starts again, nothing is lost, no orphan is left.

    No run ends before the node is dead and its run with it, and the launcher has said where that one ran.
    """
    fake_python(folder)
    release, said = held(folder, *SWEPT), folder / "said"
    node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    with open(said, "w") as stdout:
        process = sweep(folder, "multi-target.sh", "1", "2", LAUNCHER="ray", RAY_ADDRESS=cluster.address, stdout=stdout)
    name = f"{socket.gethostname()}/{node.node_id[:6]}"
    until(lambda: running_on(folder, name) and f" on {name}\n" in said.read_text())
    victims = running_on(folder, name)
    cluster.remove_node(node, allow_graceful=False)
    until(lambda: not any(map(is_alive, victims)))
    release()
    _, error = process.communicate(timeout=DEADLINE)
    out = said.read_text()
    assert process.returncode == 0, (out, error)
    assert tags(folder, "end") == list(SWEPT)
    assert len(tags(folder, "start")) == 3 + len(victims) and not tags(folder, "again")
    assert not set(victims) & {note[2] for note in notes(folder) if note[0] == "end"}
    assert not any(is_alive(note[2]) for note in notes(folder))
    assert "(try 2)" in out and out.count("  done\n") == 3
    assert len(out.splitlines()) == 1 + (3 + len(victims)) + 3 + 4 + 1  # nothing of Ray's own
    # The same sweep again has nothing to do, and asks no cluster.
    again = sweep(folder, "multi-target.sh", "1", "2", LAUNCHER="ray", RAY_ADDRESS="nowhere")
    out, error = again.communicate(timeout=DEADLINE)
    assert again.returncode == 0 and "3 runs, 3 finished before" in out, error
    assert not tags(folder, "again")


def test_ctrl_c_stops_the_runs_on_the_cluster(folder, cluster):
    held(folder, *"ab")
    launcher = open_launcher(
        folder,
        [command(folder, tag) for tag in ("quick", "a", "b")],
        LAUNCHER="ray",
        RAY_ADDRESS=cluster.address,
        CPUS_PER_RUN="0.5",
    )
    until(lambda: len(tags(folder, "start")) == 3)
    launcher.send_signal(signal.SIGINT)
    out, error = launcher.communicate(timeout=DEADLINE)
    assert launcher.returncode == 130 and "interrupted" in error, (out, error)
    until(lambda: not any(is_alive(note[2]) for note in notes(folder)))
    assert tags(folder, "end") == ["quick"] and out.count("  interrupted") == 2

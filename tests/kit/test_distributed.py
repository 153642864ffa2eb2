"""One training in several processes gives what one process gives, but for rounding."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from kit import distributed
from tests.parts import ROOT, SMALL, environment

TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--nproc_per_node=2",
    "--rdzv_backend=c10d",
    "--rdzv_endpoint=localhost:0",
]
WORKER = """
import os, sys
import torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from kit import distributed
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=int(sys.argv[3]), world_size=int(sys.argv[4]))
team = distributed.Team(dist.get_rank(), dist.get_world_size())
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
                            torch.nn.BatchNorm2d(4, affine=False), torch.nn.Flatten(), torch.nn.LazyLinear(5))
inputs, labels = torch.randn(7, 3, 8, 8), torch.arange(7) % 5
model(inputs[:2])
model[1].reset_running_stats()
optimizer = torch.optim.SGD(model.parameters(), 0.5)
with team.training(model) as parallel:
    for _ in range(3):
        mine, wanted = team.share(inputs), team.share(labels)
        loss = torch.nn.functional.cross_entropy(parallel(mine), wanted)
        optimizer.zero_grad()
        (loss * (len(mine) * team.size / len(inputs))).backward()
        optimizer.step()
total = team.total(torch.tensor(float(team.rank + 1)))
agreed = team.agree({"from": team.rank})
if team.leader:
    torch.save({**model.state_dict(), "total": total, "agreed": torch.tensor(agreed["from"])}, sys.argv[5])
dist.destroy_process_group()
"""


def safe_metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def _trained(folder, size):
    """The state dict after three steps in `size` processes."""
    out = folder / f"{size}.pt"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, ROOT, folder / f"store{size}", str(rank), str(size), out],
            env=environment(),
        )
        for rank in range(size)
    ]
    assert [process.wait(timeout=600) for process in processes] == [0] * size
    return torch.load(out, weights_only=True)


def test_gradients_and_batch_statistics_are_those_of_the_whole_batch(tmp_path):
    """Seven images do not divide by two. Wrong: statistics of each part, plain average of unequal parts."""
    alone, both = _trained(tmp_path, 1), _trained(tmp_path, 2)
    assert both["total"].item() == 3
    assert both["agreed"].item() == 0
    for name, value in alone.items():
        if name not in ("total", "agreed"):
            torch.testing.assert_close(both[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_batch_norm_is_given_back_afterwards():
    model = nn.Sequential(nn.BatchNorm2d(2))
    with distributed.ALONE.training(model) as parallel:
        assert parallel is model
    assert "forward" not in vars(model[0])


def test_torchrun_gives_the_result_of_one_process(tmp_path):
    """The same run of train.py by one process and by torchrun with two: same draws, weights alike, one set of files."""
    flags = [*SMALL, "--precision", "float32", "--lr", "0.01"]
    starts = {"alone": [sys.executable], "together": TORCHRUN}
    for name, start in starts.items():
        done = subprocess.run(
            [*start, str(ROOT / "train.py"), *flags, "--out", tmp_path / name],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("FPR@100%TPR") == 1, "every process printed a table"
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in starts]
    assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == sorted(
        path.name for path in (tmp_path / "together").iterdir()
    )
    assert results[0]["accuracy"]["test"] == pytest.approx(results[1]["accuracy"]["test"], abs=0.03)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in starts]
    alone, together = (torch.cat([values[name].double().ravel() for name in sorted(values)]) for values in weights)
    # Rounding grows from step to step; a wrong mean or a missing share gives tens of per cent.
    assert (alone - together).norm() <= 0.01 * alone.norm()
    losses = [
        json.loads(safe_metadata(tmp_path / name / "model.safetensors")["settings"])["history"] for name in starts
    ]
    for one, two in zip(*losses, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=0.01)


def test_a_follower_that_fails_ends_the_run(tmp_path):
    """Wrong: the leader waits for ever for a process that died of bad input."""
    done = subprocess.run(
        [*TORCHRUN, str(ROOT / "train.py"), *SMALL, "--target_user_cls", "4000", "--out", tmp_path / "bad"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode != 0
    assert "4000 does not exist" in done.stderr
    assert not (tmp_path / "bad").exists()

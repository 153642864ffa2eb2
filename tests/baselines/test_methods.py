"""Each competing method from end to end, and the script that compares them."""

import json
import subprocess
import sys

import numpy as np
import pytest

import utils
from baselines import twin_marks
from tests.baselines.parts import TINY
from tests.parts import ROOT, environment

CASES = {
    "mislabeled": ("--samples", "2", "3", "--poisons", "2"),
    "isotopes": ("--ratios", "0.6", "--features", "4", "--auxiliary", "10", "--ood_pattern", "BANK"),
    "twin_marks": ("--owners", "2", "--shares", "0.02", "0.01", "--augmentations", "2"),
    "lira": ("--models", "6"),
}

PLOTS = {
    "mislabeled": ["fig16.png"],
    "isotopes": ["fig14.png", "fig15.png", "trade-off.png"],
    "twin_marks": ["detection.png"],
    "lira": ["fig3.png"],
}


@pytest.fixture(scope="module")
def outlier_folder(tmp_path_factory):
    from PIL import Image

    folder, draws = tmp_path_factory.mktemp("bank"), np.random.default_rng(6)
    for number in range(12):
        Image.fromarray(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.mark.parametrize("method", CASES)
def test_method_from_end_to_end(method, tmp_path, work, outlier_folder, script, monkeypatch):
    flags = [str(outlier_folder) if flag == "BANK" else flag for flag in CASES[method]]
    call = (f"baselines.{method}", *TINY, *flags, "--out", tmp_path, "--work", work)
    monkeypatch.setattr(twin_marks, "CONTROLS", 20)
    done = script(*call)
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["method"] == method and result["settings"]["epoch"] == 1 and result["versions"]["torch"]
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "scores.npz", *PLOTS[method]}
    known = {(row["setting"], row["figure"]) for row in result["rows"]}
    assert len(known) == len(result["rows"])
    for row in result["rows"]:
        assert "of" not in row or row["interval"] == utils.clopper_pearson(row["hits"], row["of"])
    # Every conclusion is about rows that are there.
    sides = [
        tuple(side) for claim in result["claims"] for side in (claim["left"], claim["right"]) if isinstance(side, list)
    ]
    assert sides and set(sides) <= known
    assert str(tmp_path / "result.json") in done.out.splitlines()[-1]
    # Again, with the models that are there: the same figures.
    monkeypatch.setattr(utils, "train_model", None)
    assert script(*call).code == 0
    assert json.loads((tmp_path / "result.json").read_text())["rows"] == result["rows"]


def test_methods_share_their_models(work):
    """mislabeled, isotopes: the unmarked and the marked model are the same; run after the tests above."""
    if not any(work.iterdir()):
        pytest.skip("needs the models of test_method_from_end_to_end")
    # mislabeled: unmarked, 2 x poisoned, 2 x marked; isotopes: one; twin_marks: two; lira: six.
    assert len(list(work.glob("*/model.safetensors"))) == 5 + 1 + 2 + 6


@pytest.mark.parametrize(
    ("method", "flags", "message"),
    [
        ("mislabeled", ("--samples", "9"), "--samples 9"),
        ("lira", ("--models", "7"), "--models 7"),
        ("isotopes", ("--features", "400", "--ood_pattern", "BANK"), "--features"),
        ("isotopes", ("--ood_pattern", "/nowhere"), "/nowhere"),
        ("twin_marks", ("--shares", "0.3", "--owners", "9"), "--owners 9"),
        ("twin_marks", ("--features", "/nowhere"), "/nowhere"),
        ("lira", ("--countermeasure", "hamp"), "--countermeasure"),
    ],
)
def test_bad_input_is_one_line(method, flags, message, tmp_path, outlier_folder, script):
    flags = [str(outlier_folder) if flag == "BANK" else flag for flag in flags]
    done = script(f"baselines.{method}", *TINY, *flags, "--out", tmp_path, "--work", tmp_path / "work")
    assert done.code == 2 and message in done.err and len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "work").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
def test_comparison_script_runs_what_is_asked_for(tmp_path, work):
    """One method; flags in EXTRA win over those of QUICK; the table of conclusions comes last."""
    variables = environment(
        QUICK="1",
        METHODS="lira",
        SEEDS="2",
        RES_FOLDER=str(tmp_path / "res"),
        WORK=str(work),
        PYTHON=sys.executable,
        EXTRA=f"{' '.join(TINY)} --models 6 --train_size 150",
    )
    done = subprocess.run(
        ["bash", str(ROOT / "comparison.sh")], env=variables, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "res" / "comparison"
    assert {path.name for path in folder.iterdir()} == {
        "lira-seed2",
        *(f"comparison.{end}" for end in ("md", "csv", "json")),
    }
    assert json.loads((folder / "comparison.json").read_text())["lira"]["seeds"] == [2]
    assert json.loads((folder / "lira-seed2" / "result.json").read_text())["settings"]["train_size"] == 150
    lines = done.stdout.splitlines()
    assert any("shadow models lower FPR@100%TPR" in line for line in lines[-7:]) and lines[-1].startswith("tables: ")

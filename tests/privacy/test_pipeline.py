"""privacy-audit.py as a whole: a table and a report, bad input in one line, nothing unpickled."""

import ast
import json

import pytest

from tests.parts import ROOT
from tests.privacy.parts import copy_of, sections, write


def test_script_ends_with_a_table_and_a_report(finished, tmp_path, script):
    pytest.importorskip("privacy.report")
    _, log = finished
    copy_of(log, tmp_path / "log")
    done = script("privacy-audit", "--cf", write(tmp_path / "a.yaml", sections(tmp_path / "log")))
    assert done.code == 0, done.err
    assert "RMIA, offline" in done.out and "TPR@0.1%FPR" in done.out
    report = tmp_path / "log" / "report"
    for name in ("attack_result_average.csv", "report.html", "result.json", "ROC_average.png", "ROC_log_average.png"):
        assert (report / name).stat().st_size > 0, name
    assert json.loads((report / "result.json").read_text())["context"]["config"]["run"]["log_dir"] == "log"
    assert str(tmp_path) not in (report / "report.html").read_text()


def test_bad_flags_and_configs_are_one_line(tmp_path, script):
    config = write(tmp_path / "a.yaml", "run: {log_dir: x, sed: 1}\ndata: {dataset: digits}")
    for arguments, words in ((("--cf", config), "run.sed is unknown; did you mean"), (("--stop_at", "x"), "--help")):
        done = script("privacy-audit", *arguments)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert words in done.err


def test_nothing_here_unpickles_or_loads_unsafely():
    banned = {"pickle", "dill", "joblib", "cloudpickle", "marshal"}
    for file in [*(ROOT / "privacy").glob("*.py"), ROOT / "privacy-audit.py", *(ROOT / "dataset").glob("t*.py")]:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            assert not banned & {name.split(".")[0] for name in names}, file
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in (
                    "eval",
                    "exec",
                    "torch.load",
                    "torch.save",
                    "yaml.unsafe_load",
                    "yaml.full_load",
                ), file
                if called == "np.load":
                    assert "allow_pickle=False" in ast.unparse(node), file

"""How scripts begin: --help imports nothing that takes time, and Ctrl-C is one line from the first import on."""

import ast
import re
import subprocess
import sys
from functools import cache

import pytest

import utils
from experiment import flags
from kit import names
from privacy.config import Run
from suspects import suspect
from tests.parts import ROOT, environment

# Flags with which each script gets past its parser, and something heavy that it then imports.
SCRIPTS = {
    "train.py": (["--dataset", "photos"], "torch"),
    "eval.py": (["--checkpoint", "nowhere"], "torch"),
    "data_marking.py": (["--data_folder", "nowhere"], "torch"),
    "imagenet-prepare.py": (["--data_root", "nowhere", "--out", "nothing"], "torch"),
    "imagenet-audit.py": (
        ["--resume_path", "nowhere", "--member_data_folder", "a", "--non_member_data_folder", "b"],
        "torch",
    ),
    "privacy-audit.py": ([], "torch"),
    "app.py": (["--no_browser"], "gradio"),
}
HEAVY = {"torch", "torchvision", "numpy", "scipy", "sklearn", "skimage", "matplotlib", "pandas", "PIL", "gradio"}
HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    print(stop.code, *sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""
# Ctrl-C at the very moment at which a module is looked for.
INTERRUPTED = """
import os, runpy, signal, sys
moment, *sys.argv = sys.argv[1:]
class CtrlC:
    @staticmethod
    def find_spec(name, *_):
        if name == moment:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, CtrlC)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Ctrl-C while torch's C library is being loaded: it is heard when that is done.
LOADING = """
import _imp, os, runpy, signal, sys
load = _imp.create_dynamic
def create_dynamic(spec, *rest):
    loaded = load(spec, *rest)
    if spec.name == "torch._C":
        os.kill(os.getpid(), signal.SIGINT)
    return loaded
_imp.create_dynamic = create_dynamic
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@cache
def helped(script):
    """What --help says, and the exit code and the packages that were imported for it."""
    return start(HELP, script)


def test_every_script_is_looked_at():
    scripts = {path.name for path in ROOT.glob("*.py") if "run_script(main" in path.read_text()}
    assert scripts == SCRIPTS.keys()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_that_takes_time(script):
    done = helped(script)
    code, *imported = done.stderr.split()
    assert code == "0" and "usage" in done.stdout
    assert HEAVY.isdisjoint(imported), HEAVY.intersection(imported)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_help_text_says_what_stands_for_a_flag_that_is_not_given(script):
    """Before: --std and --interpolation had no text at all, and the description of a group was enough for its flags."""
    text = helped(script).stdout
    entries = re.split(r"\n  (?=--)", text.partition("show this help message and exit")[2])[1:]
    assert entries
    asked_for = {flag for flag in re.findall(r"--\w+", text.partition("\n\n")[0]) if f"[{flag}" not in text}
    silent = [one.split()[0] for one in entries if "default" not in one.partition("\n\n")[0]]
    assert set(silent) <= asked_for if "[more flags]" not in text else silent == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_where_nothing_may_be_written_a_script_names_a_flag_that_it_has(script):
    """Before: data_marking.py was told of --out, which it did not have; then, when it did, no flag was named."""
    (wanted,) = re.findall(r'run_script\(main(?:, writes_to="(.+)")?\)', (ROOT / script).read_text())
    if script == "privacy-audit.py":
        assert wanted.startswith("run.log_dir ") and "log_dir" in Run.model_fields
    else:
        assert f"\n  {wanted or '--out'} " in helped(script).stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports_only_run_script_at_its_top(script):
    """Whatever else were imported there would be outside of run_script: a traceback at Ctrl-C."""
    for node in ast.parse((ROOT / script).read_text()).body:
        if isinstance(node, ast.ImportFrom):
            assert node.module in {"kit.errors", "pathlib"}
        elif isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= sys.stdlib_module_names


@pytest.mark.parametrize("moment", ["kit.cli", "heavy"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_interrupt_during_the_imports_is_one_line(script, moment, tmp_path):
    arguments, heavy = SCRIPTS[script]
    if heavy == "gradio" and moment == "heavy":
        pytest.importorskip("gradio")
    done = start(INTERRUPTED, heavy if moment == "heavy" else moment, script, *arguments)
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("error: interrupted") and done.stderr.count("\n") == 1 and not done.stdout


def test_an_interrupt_while_torch_loads_is_one_line(tmp_path):
    done = start(LOADING, "train.py", "--dataset", "photos", "--out", str(tmp_path / "run"))
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("error: interrupted") and done.stderr.count("\n") == 1 and not done.stdout
    assert not (tmp_path / "run").exists()


def test_names_that_a_command_line_offers_mean_something():
    assert utils.NOISE_TYPES is names.NOISE_TYPES
    assert tuple(suspect.INTERPOLATIONS) == names.INTERPOLATIONS


def test_help_states_the_recipe_of_cifar100():
    from dataset import recipe

    usual = recipe("cifar100")
    assert {name: getattr(usual, name) for name in flags.RECIPE} == flags.RECIPE

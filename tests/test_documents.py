"""Every command that a document shows is one that the program takes, and every link leads somewhere.

A document's commands are run by bash in an empty folder where python, make, torchrun, ... only note their words, so
that loops, variables and continued lines are bash's own business; the sweep scripts are run with such a python, too.
The words then go through the script's own parser, in this process, up to the point where main would begin to work.
"""

import argparse
import ast
import contextlib
import functools
import importlib
import importlib.util
import itertools
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kit.errors import UserError
from tests.parts import ROOT

FILES = [
    path
    for path in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    if (ROOT / path).exists()
]
DOCUMENTS = [path for path in FILES if path.endswith(".md")]
# Notes its own name and its words. `python -m launch` is handed commands, one a line, which are noted as well; they
# begin with the path of this very program.
NOTE = r"""#!/bin/bash
note() { printf '%d\0' "$#" >>"$NOTES"; printf '%s\0' "$@" >>"$NOTES"; }
note "${0##*/}" "$@"
if [ "$1 $2" = "-m launch" ] && [ ! -t 0 ]; then
    while IFS= read -r line; do
        eval "set -- $line"
        shift
        note python "$@"
    done
fi
"""
# bash SCRIPT: really run, with a python that only notes.
RUN_SCRIPT = r"""#!/bin/bash
script=$1
shift
printf '3\0bash\0%s\0%s\0' "$script" "$*" >>"$NOTES"
[ -e "$ROOT/$script" ] || exit 0
export PYTHON=$STAND_INS/python PATH=/usr/bin:/bin
errors=$(/bin/bash -n "$ROOT/$script" 2>&1 && /bin/bash "$ROOT/$script" "$@" 2>&1 >/dev/null </dev/null)
code=$?
[ "$code" -eq 0 ] || printf '4\0failed\0%s\0%s\0%s\0' "$script" "$code" "$errors" >>"$NOTES"
"""
COMMAND = r"(?:[A-Z_]+=(?:\"[^\"]*\"|\S*) )*(?:python|bash|make|torchrun)\b"


class Parsed(BaseException):
    """The flags were taken, so main does not have to go on."""


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    """notes(text) -> [(line of words), ...]: what bash would start for a text of commands, or AssertionError."""
    stand_ins = tmp_path_factory.mktemp("stand-ins")
    for name in ("python", "make", "torchrun", "pip", "cp"):
        (stand_ins / name).write_text(NOTE)
    (stand_ins / "bash").write_text(RUN_SCRIPT)
    for path in stand_ins.iterdir():
        path.chmod(0o755)

    @functools.cache
    def run(text):
        folder = tmp_path_factory.mktemp("commands")
        (folder / ".venv").mkdir()
        (folder / ".venv" / "bin").symlink_to(stand_ins)
        found = folder / "notes"
        environment = {"PATH": str(stand_ins), "STAND_INS": str(stand_ins), "NOTES": str(found), "ROOT": str(ROOT)}
        done = subprocess.run(
            ["/bin/bash", "-eu", "-c", text], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0 and not done.stderr, f"{text}\n{done.stderr}"
        words = iter(found.read_text().split("\0")[:-1] if found.exists() else [])
        return [[next(words) for _ in range(int(count))] for count in words]

    return run


def shown(text):
    """(blocks of commands, commands within a line, calls without python as in `eval.py --replay`) of a document."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", rest)
    whole = [
        span for span in spans if re.match(COMMAND, span) and span not in ("python", "python -m", "bash", "torchrun")
    ]
    calls = [span for span in spans if re.match(r"[\w-]+\.(py|sh) ", span)]
    return blocks, whole, calls


def check(words):
    """Raise AssertionError when the program would not take a command."""
    program, *rest = words
    if program == "failed":  # the audits of imagenet-eval.sh need trees and models; see test_the_imagenet_sweep
        assert rest[0] == "imagenet-eval.sh" and rest[1] == "1", f"{rest[0]} ends with {rest[1]}: {rest[2]}"
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets), f"no target of the Makefile: {words}"
    elif program == "bash":
        assert (ROOT / rest[0]).is_file(), f"{rest[0]} does not exist"
    elif program == "pip":
        files = [word for flag, word in itertools.pairwise(rest) if flag == "-r"]
        assert all((ROOT / file).is_file() for file in files), f"a file that does not exist: {words}"
    elif program == "torchrun":
        after = next(place for place, word in enumerate(rest) if not word.startswith("-"))
        if not re.match(r"[A-Z]+/", rest[after]):  # torchvision's scripts, wherever they are
            check_python(rest[after:])
    elif program == "python":
        check_python(rest)


def check_python(words):
    if words[0] == "-":
        return
    target, flags = (tuple(words[:2]), words[2:]) if words[0] == "-m" else ((words[0],), words[1:])
    with as_typed(target[-1], flags):
        try:
            main_of(target)()
        except Parsed:
            pass
        except (UserError, SystemExit) as error:
            raise AssertionError(f"{shlex.join(words)}: {error}") from None
        else:
            raise AssertionError(f"{target[-1]} reads no flags")


@contextlib.contextmanager
def as_typed(name, flags):
    """sys.argv of a command, and parsers that stop once they have taken it."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, *arguments):
        parse(parser, *arguments)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *flags])
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        yield


@functools.cache
def main_of(target):
    """The main function of ("train.py",) or ("-m", "paper.tables"). AssertionError when there is none."""
    name = target[-1]
    if target[0] != "-m":
        assert name in FILES, f"{name} does not exist"
        spec = importlib.util.spec_from_file_location(name.removesuffix(".py").replace("-", "_"), ROOT / name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.main
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        spec = None
    assert spec, f"no module {name}"
    if not str(spec.origin).startswith(str(ROOT)) or ".venv" in Path(spec.origin).parts:
        return _stop  # Python's own venv
    if spec.submodule_search_locations:
        return lambda: runpy.run_module(name, run_name="__main__")
    return importlib.import_module(name).main


def _stop():
    raise Parsed


def check_call(text):
    """Of `eval.py --replay` in a sentence: the script is there and has these flags, whatever they take."""
    name, *words = text.split()
    assert name in FILES, f"{name} does not exist"
    flags = [word for word in words if word.startswith("-")]
    if name.endswith(".py") and flags:
        known = options_of(name)
        assert set(flags) <= known, f"{name} has no {', '.join(sorted(set(flags) - known))}"


@functools.cache
def options_of(name):
    """Every option of a script."""
    found = set()

    def note(parser, *_):
        found.update(option for action in parser._actions for option in action.option_strings)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", note)
        main_of((name,))()
    return found


def problems(text, notes):
    """What is wrong with the commands of a document, one line each."""
    found = []
    blocks, whole, calls = shown(text)
    for command in blocks + whole:
        try:
            for words in notes(command):
                try:
                    check(words)
                except AssertionError as error:
                    found.append(str(error))
            found += unknown_variables(command)
        except AssertionError as error:
            found.append(str(error))
    for call in calls:
        try:
            check_call(call)
        except AssertionError as error:
            found.append(str(error))
    return found


def unknown_variables(command):
    """Variables that are set for a sweep script which reads no such thing."""
    scripts = re.findall(r"\bbash ([\w-]+\.sh)", command)
    text = "".join(
        (ROOT / name).read_text()
        for name in [*scripts, "launch/sweep.sh", "launch/pool.py", "launch/on_ray.py"]
        if (ROOT / name).exists()
    )
    given = re.findall(r"(?:^|[\s;])([A-Z][A-Z_]*)=", command) if scripts else []
    return [f"no sweep reads {name}: {command}" for name in given if not re.search(rf"\b{name}\b", text)]


@pytest.mark.parametrize("path", DOCUMENTS)
def test_commands_of_documents(path, notes):
    assert problems((ROOT / path).read_text(), notes) == []


def examples(path):
    """The commands behind "Example:" at the head of a module. What stands three spaces behind one is a remark."""
    text = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
    for block in re.findall(r"^Examples?: (.*(?:\n {9,}.*)*)", text, re.MULTILINE):
        for line in block.splitlines():
            command = re.split(r" {3,}(?![ -])", line.strip())[0]
            if re.match(COMMAND, command):
                yield command


def test_commands_of_docstrings(notes):
    code = [path for path in FILES if path.endswith(".py") and not path.startswith("tests/")]
    commands = [(path, command) for path in code for command in examples(path)]
    assert len(commands) > 30
    found = {path: problems(f"```bash\n{command}\n```\n", notes) for path, command in commands}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


def test_commands_of_the_makefile(notes):
    recipes = re.findall(r"^\t\$\(RUN\) (.+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    own = [recipe for recipe in recipes if not re.match(r"-m (pip|pytest|ruff|tests)", recipe)]
    assert len(own) > 5
    assert problems("```bash\n" + "".join(f"python {recipe}\n" for recipe in own) + "```\n", notes) == []


def test_the_imagenet_sweep(tmp_path, notes):
    """Where trees and models are there, every cell of the table is an audit whose flags are taken."""
    for samples in (125, 63, 32):
        (tmp_path / f"tree-{samples}").mkdir()
        for net in ("resnet50", "swin_t"):
            (tmp_path / f"{net}-{samples}.pth").touch()
    command = f"EXTRA='--device cpu' DATA={tmp_path} bash imagenet-eval.sh"
    assert [words[:2] for words in notes(command)].count(["python", "imagenet-audit.py"]) == 6
    assert problems(f"```bash\n{command}\n```\n", notes) == []


WRONG = {
    "python train.py --no_such_flag 1": "--no_such_flag",
    "python train.py --dataset photos --epoch many": "--epoch",
    "for seed in 1 x; do\n  python train.py --seed $seed\ndone": "--seed",
    "python no-such-script.py --help": "no-such-script.py does not exist",
    "python -m paper.nothing": "no module paper.nothing",
    "python -m paper.tables no-sweep": "no-sweep",
    "python privacy-audit.py \\\n  --cf configs/digits.yaml --stop_after lunch": "lunch",
    "torchrun --nproc_per_node=4 train.py --datasets photos": "--datasets",
    "python data_marking.py --data_folder a && python eval.py --record": "--record",
    "QUICK=1 EXTRA='--no_such_flag 1' bash multi-target.sh 5": "--no_such_flag",
    "JOBS=2 QUICK=1 EXTRA='--no_such_flag 1' bash multi-target.sh 5": "--no_such_flag",
    "bash multi-target.sh": "no number of target users",
    "bash no-such-sweep.sh": "no-such-sweep.sh does not exist",
    "SEADS=3 QUICK=1 bash multi-target.sh 5": "no sweep reads SEADS",
    "make coffee": "coffee",
    "pip install -r requirements-app.txt": "requirements-app.txt",
    "pythno train.py": "pythno",
    "python train.py --seed 1 'unfinished": "unexpected EOF",
}


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_command_is_seen(command, notes):
    found = problems(f"# A title\n\n```bash\n{command}\n```\n", notes)
    assert found and WRONG[command] in "\n".join(found)


@pytest.mark.parametrize(
    "span", ["python train.py --no_such_flag", "make coffee", "eval.py --no_such_flag", "evil.py -x"]
)
def test_a_wrong_command_within_a_line_is_seen(span, notes):
    assert problems(f"Then run `{span}`, please.", notes)


def anchors(text):
    """The anchors of a document's headings, as on GitHub."""
    found = []
    for heading in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.append(f"{anchor}-{found.count(anchor)}" if anchor in found else anchor)
    return found


def broken_links(path, text):
    """Links of a document below ROOT / path that lead nowhere in this repository, and files of code that are gone."""
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found = []
    for link in re.findall(r"\]\(([^()\s]+)\)", rest) + re.findall(r"\bsrc=\"([^\"]+)\"", rest):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        goal = (ROOT / path).parent / place
        if place and not goal.exists():
            found.append(link)
        elif anchor:
            goal = goal / "README.md" if goal.is_dir() else goal
            if anchor not in anchors(goal.read_text() if place else text):
                found.append(link)
    names = {Path(file).name for file in FILES}
    files = re.findall(r"`([\w./-]+\.(?:py|sh))`", rest)
    found += [file for file in files if file not in FILES and ("/" in file or file not in names)]
    return [link for link in found if not ((ROOT / path).parent / link).exists()]


@pytest.mark.parametrize("path", DOCUMENTS)
def test_links(path):
    assert broken_links(path, (ROOT / path).read_text()) == []


def test_a_broken_link_is_seen():
    text = "# One\n[a](README.md) [b](gone.md) [c](#one) [d](#two) [e](README.md#no-such) ![f](https://x/y) `gone.py`"
    assert broken_links("made-up.md", text) == ["gone.md", "#two", "README.md#no-such", "gone.py"]


def test_the_table_of_differences_says_what_the_code_does():
    """results/README.md: each row has what the published artifact does, what is done here, and mostly why."""
    import utils
    from dataset import recipe

    text = (ROOT / "results" / "README.md").read_text()
    table = re.search(r"## What differs from the published artifact\n.*?\n\n(\|.*?)\n\n", text, re.DOTALL)[1]
    rows = {line.strip("| ").split(" | ")[0]: line.strip("| ").split(" | ") for line in table.splitlines()[2:]}
    assert len(rows) > 20
    here = {name: cells[2] for name, cells in rows.items()}
    colors = utils.STRIPE_COLORS
    assert len(set(colors.values())) == 11 and str(colors["blue"]) in here["colours of the stripes"]
    assert here["purple, brown"] == f"{colors['purple']}, {colors['brown']}"
    assert "uniform_continuous" in here["`--noise_injection_type uniform`"]
    assert recipe("artbench").batch_size == recipe("cifar100").batch_size == 256
    assert rows["batch size"][1] == f"{recipe('tinyimagenet').batch_size}, CelebA {recipe('celeba').batch_size}"
    from networks import build_network

    layers = build_network("wideresnet284", 10).modules()
    assert {layer.momentum for layer in layers if hasattr(layer, "momentum")} == {0.1}
    assert "0.1 everywhere" in here["WideResNet"]
    hits = utils.membership_inference(np.full((1, 1), 0.5), np.arange(1000)[:, None], fprs=(1e-3,))
    assert hits["tpr_at_fpr"][0]["tpr"] == 1.0 and "FPR <= f" in here["TPR at a FPR f"]


@pytest.mark.parametrize("path", ["README.md", "page/README.md"])
def test_the_pattern_is_called_what_it_is(path):
    """Before: "faint", and visible "under close inspection"."""
    text = (ROOT / path).read_text()
    assert "skies and dark areas" in text and "faint" not in text and "close inspection" not in text

"""The rules of the house (tests/layout.py) hold, and what breaks them is seen; the locks are complete."""

import importlib
import re

import pytest

from tests import layout

KNOWN = layout.modules()


def test_the_tree_keeps_the_rules():
    count, offences = layout.report(KNOWN)
    assert not offences, "\n".join(offences)
    assert " 0 of them back up" in count


@pytest.mark.parametrize("name", sorted(name for name, module in KNOWN.items() if module.public and "-" not in name))
def test_public_names_exist(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if not error.name or error.name.split(".")[0] in {known.room for known in KNOWN.values()}:
            raise
        pytest.skip(f"{name} needs {error.name}, which is not installed")
    assert [public for public in KNOWN[name].public if not hasattr(module, public)] == []


def house(folder, files):
    """{name: Module} of made-up files, {path: text}."""
    known = {}
    for path, text in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
        module = layout.Module(path, folder)
        known[module.name] = module
    return known


@pytest.mark.parametrize(
    "text",
    [
        "import train",
        "from suspects import opened",
        "def late():\n    from suspects.opened import name",
        "import importlib\nimportlib.import_module(f'suspects.{name}')",
    ],
)
def test_an_arrow_back_up_is_seen(tmp_path, text):
    suspects = {"suspects/__init__.py": "", "suspects/opened.py": "name = 1"}
    known = house(tmp_path, {"kit/files.py": text, "train.py": "import kit.files", **suspects})
    found = layout.arrows(known)
    assert ("train", "kit") in found and ("train", "kit") not in layout.upwards(found)
    assert [source for source, _ in layout.upwards(found)] == ["kit"]


def test_names_are_checked(tmp_path):
    listed = '"""One.\n\nPublic: a, gone (which it was).\n"""\na, b, _c = 1, 2, 3'
    taken = "from kit import files\nfrom kit.files import _c\nfiles.a + files.b"
    known = house(tmp_path, {"kit/files.py": listed, "utils.py": taken})
    private, missing, unlisted = layout.reports_on_names(known)
    assert private == ["utils.py:2: kit.files._c"]
    assert missing == ["kit/files.py: 'gone'"]
    assert unlisted == ["kit/files.py: b"]


@pytest.mark.parametrize("text", ["sys.path.insert(0, '.')", "# see defect 5", "from tests import parts"])
def test_phrases_are_seen(tmp_path, text):
    assert layout.phrases(house(tmp_path, {"kit/files.py": text})) == [f"kit/files.py:1: {text}"]


def required(path):
    """Names of packages that a file of requirements asks for, and those of the files that it includes."""
    names = set()
    for line in path.read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            names |= required(path.parent / line[3:].strip())
        elif line:
            names.add(re.split(r"[<>=!~\[; ]", line)[0].lower().replace("_", "-"))
    return names


@pytest.mark.parametrize(
    "asks, lock",
    [("requirements.txt", "lock"), ("requirements/app.txt", "lock-app"), ("requirements/dev.txt", "lock-dev")],
)
def test_the_lock_holds_what_is_required(asks, lock):
    text = (layout.ROOT / "requirements" / f"{lock}.txt").read_text()
    locked = set(re.findall(r"^([a-z0-9.-]+)==", text, re.MULTILINE))
    assert required(layout.ROOT / asks) - locked == set(), "run make lock"
    assert "://" not in text and "--index" not in text and "--find" not in text
    entries = [entry for entry in re.split(r"\n(?=\S)", text) if not entry.startswith("#")]
    assert all("--hash=sha256:" in entry for entry in entries)


def test_one_version_of_the_program():
    from kit.environment import VERSION

    assert f'\nversion = "{VERSION}"\n' in (layout.ROOT / "pyproject.toml").read_text()
    assert f"version: {VERSION}\n" in (layout.ROOT / "CITATION.cff").read_text()

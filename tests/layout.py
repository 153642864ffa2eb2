"""What may import what: the rooms of this repository, from the ground up, and who breaks the rules of the house.

Public: FLOORS, Module, modules, arrows, upwards, report. `python -m tests.layout` prints the arrows between rooms
and every offence; nothing of the repository is imported for it. A room is a folder of code, or a file at the root.
"""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# From the ground up. A room imports from lower floors alone, so that there are no circles, and each can be read, tested
# and taken along without what stands above it. All of this is the code's own; tests may import anything.
FLOORS = (
    ("kit",),  # what any Python program has
    ("utils",),  # the method: marking, the training loop, set-based membership inference
    ("networks", "dataset", "attacks", "countermeasures"),  # one file for each
    ("experiment",),  # one run of train.py
    ("suspects",),  # whatever can be asked, the model of a run among them: it answers through its countermeasure
    ("provenance", "privacy", "detection", "launch", "paper"),  # one job each
    ("imagenet", "page", "baselines"),  # jobs that build on one of these
    ("studies", "benchmarks"),  # what is known about all of it
    ("train", "eval", "data_marking", "app", "imagenet-prepare", "imagenet-audit", "privacy-audit"),  # scripts
)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
BEFORE = "131 arrows, 3 of them back up"  # in the tree before the rooms were named after what they hold
LONGEST = 640
# Files over LONGEST lines outside tests/, and why.
LONG = {
    "utils.py": "the method in one file, in three sections, which every script shares",
}
# Code that plays a scene of the tests, and why.
PLAYS_TESTS = {
    "benchmarks/browser.py": "measures the page with the photos and the server of its tests",
    "benchmarks/servers.py": "measures the servers that the tests start",
}


@dataclass(frozen=True)
class Module:
    """One file of code. path: below the root; name: as it is imported (scripts with a hyphen can't be)."""

    path: str
    root: Path = ROOT

    @cached_property
    def text(self):
        return (self.root / self.path).read_text()

    @cached_property
    def tree(self):
        return ast.parse(self.text)

    @property
    def name(self):
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def room(self):
        return self.name.split(".")[0]

    @cached_property
    def public(self):
        """The names after "Public:" (or "Public, marking:") in its docstring, up to the full stop; None without one."""
        text = " ".join((ast.get_docstring(self.tree) or "").split())
        found = re.findall(r"\bPublic(?:, [\w ]+)?: (.+?)\.(?= |$)", text)
        if not found:
            return None
        listed = re.sub(r"\([^()]*\)", "", ", ".join(found))
        return [name.strip(" `") for name in re.split(r"[,;]", listed)]

    @cached_property
    def defined(self):
        """The names at its top level, imports aside."""
        names = set()
        for statement in self.tree.body:
            if isinstance(statement, DEFINITIONS):
                names.add(statement.name)
                continue
            for node in ast.walk(statement):  # also inside if and try
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    names.add(node.id)
                elif isinstance(node, DEFINITIONS):
                    names.add(node.name)
        return names


def modules():
    """{name: Module} of all code that git knows or would take, tests aside."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    # A file that is being moved is still listed under its old name.
    found = [Module(path) for path in sorted(listed) if not path.startswith("tests/") and (ROOT / path).exists()]
    return {module.name: module for module in found}


def imports(module, known):
    """(line, the module of `known` that is imported, the name taken from it or None, what the code calls it)."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found = [(alias.name, None, alias.asname or alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.name.split(".") if module.path.endswith("__init__.py") else module.name.split(".")[:-1]
            above = package[: len(package) + 1 - node.level] if node.level else []
            place = ".".join([*above, *filter(None, [node.module])])
            found = [
                (inner, None, alias.asname or alias.name)
                if (inner := f"{place}.{alias.name}") in known
                else (place, alias.name, alias.asname or alias.name)
                for alias in node.names
            ]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            text = node.args[0]  # "a.b", or f"a.{name}"
            first = text.values[0] if isinstance(text, ast.JoinedStr) and text.values else text
            known_text = isinstance(first, ast.Constant) and isinstance(first.value, str)
            found = [(first.value.rstrip("."), None, None)] if known_text else []
        else:
            continue
        for place, name, bound in found:
            while place and place not in known:  # a package without __init__.py, or a name inside a module
                place = place.rpartition(".")[0]
            if place:
                yield node.lineno, known[place], name, bound


def arrows(known):
    """{(room, room that it imports from): [(path, line), ...]}."""
    found = defaultdict(list)
    for module in known.values():
        for line, other, _, _ in imports(module, known):
            if other.room != module.room:
                found[module.room, other.room].append((module.path, line))
    return dict(found)


def upwards(found):
    """Those arrows that do not lead to a lower floor."""
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    return {pair: places for pair, places in found.items() if floor[pair[0]] <= floor[pair[1]]}


def strangers(known):
    """Rooms that have no floor, and floors' rooms that are gone."""
    rooms = {module.room for module in known.values()}
    return sorted(rooms ^ {room for floor in FLOORS for room in floor})


def reports_on_names(known):
    """What is wrong with names: private ones used elsewhere, lists that are wrong or incomplete."""
    private, missing, unlisted = [], [], set()
    for module in known.values():
        if module.public is not None:
            have = module.defined | {bound for _, _, _, bound in imports(module, known)}
            missing += [f"{module.path}: {name!r}" for name in module.public if name not in have]
        for line, other, name in used(module, known):
            place = f"{module.path}:{line}: {other.name}.{name}"
            if name.startswith("_") and not name.startswith("__"):
                private.append(place)
            elif name in other.defined and name not in (other.public or ()):
                unlisted.add(f"{other.path}: {name}")
    return private, missing, sorted(unlisted)


def used(module, known):
    """(line, Module, name of that module) for every name that a Module takes from another one."""
    found = [taken for taken in imports(module, known) if taken[1] is not module]
    yield from ((line, other, name) for line, other, name, _ in found if name)
    bound = {word: other for _, other, name, word in found if word and not name}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and (other := bound.get(ast.unparse(node.value))):
            yield node.lineno, other, node.attr


def long_files(known):
    """Files that are over LONGEST lines without a reason, and reasons that are no longer needed."""
    lengths = {module.path: module.text.count("\n") for module in known.values()}
    over = {path for path, lines in lengths.items() if lines > LONGEST}
    return [f"{path}: {lengths.get(path, 0)} lines" for path in sorted(over ^ LONG.keys())]


def phrases(known):
    """Places that change sys.path, import tests, or refer to a numbered list of defects that is not in the tree."""
    wrong = re.compile(r"sys\.path(\.insert|\.append|\.extend|\[)|\bdefects? \d|^\s*(from|import) tests\b")
    return [
        f"{module.path}:{line}: {text.strip()}"
        for module in known.values()
        for line, text in enumerate(module.text.splitlines(), 1)
        if (found := wrong.search(text)) and not ("tests" in found[0] and module.path in PLAYS_TESTS)
    ]


def report(known=None):
    """(the count of arrows in one line, [offence, ...])."""
    known = modules() if known is None else known
    found = arrows(known)
    unknown = strangers(known)
    offences = [f"no floor for the room {room}, or no such room" for room in unknown]
    up = {} if unknown else upwards(found)
    offences += [
        f"runs back up, {source} -> {goal}: " + ", ".join(f"{path}:{line}" for path, line in places)
        for (source, goal), places in up.items()
    ]
    private, missing, unlisted = reports_on_names(known)
    offences += [f"private name of another module: {place}" for place in private]
    offences += [f"listed as public and not there: {place}" for place in missing]
    offences += [f"used elsewhere and not listed as public: {place}" for place in unlisted]
    offences += [f"over {LONGEST} lines without a reason, or a reason too many: {place}" for place in long_files(known)]
    offences += [f"a changed path, an import of tests, or a number of a defect: {place}" for place in phrases(known)]
    rooms = {module.room for module in known.values()}
    count = (
        f"{len(rooms)} rooms on {len(FLOORS)} floors, {len(found)} arrows between them, {len(up)} of them back up "
        f"(before: {BEFORE})"
    )
    return count, offences


def main():
    count, offences = report()
    print("\n".join([*offences, count]))
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())

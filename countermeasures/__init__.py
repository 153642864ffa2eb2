"""What a model owner may do against the audit (section 5.2), one file per class of defence.

A countermeasure is a subclass of `base.Countermeasure` in any file of this folder; the file is found by itself, and the
command line knows it by its `name`: train.py --countermeasure pruning:amount=0.7. Names are read from the text of the
files, so that a command line can list them without importing torch. Public: countermeasure_names, parse.
"""

import difflib
import importlib
import re
from pathlib import Path

from kit.errors import UserError


def _files():
    """{name: module of this folder} of every countermeasure: `name: ClassVar[str] = "NAME"` in the body of a class."""
    found = {}
    for folder in __path__:
        for path in sorted(Path(folder).glob("*.py")):
            text = path.read_text(encoding="utf-8")
            names = re.findall(r"^ +name\b[^=\n]*= *[\"']([\w-]+)[\"'] *(?:#.*)?$", text, re.MULTILINE)
            found |= dict.fromkeys(names, path.stem)
    return found


def countermeasure_names():
    """Names that `parse` knows, in alphabetical order."""
    return sorted(_files())


def _kind(name, module):
    """The class of that name in a file of this folder."""
    kinds = vars(importlib.import_module(f"{__name__}.{module}")).values()
    return next(kind for kind in kinds if isinstance(kind, type) and vars(kind).get("name") == name)


def parse(text):
    """The Countermeasure of "NAME" or "NAME:setting=value,setting=value". Raises UserError with the nearest name."""
    name, _, rest = text.partition(":")
    known = _files()
    if name not in known:
        raise UserError(
            f"--countermeasure {name} is unknown{_nearest(name, known)}", advice=f"there are {', '.join(sorted(known))}"
        )
    from pydantic import ValidationError

    pairs = [pair.partition("=") for pair in rest.split(",")] if rest else []
    kind = _kind(name, known[name])
    settings = kind.model_fields
    for setting, equals, _ in pairs:
        if setting not in settings or not equals:
            raise UserError(
                f"--countermeasure {name} has no setting {setting!r}{_nearest(setting, settings)}",
                advice=f"write {name}:SETTING=VALUE with one of {', '.join(settings) or 'none'}",
            )
    try:
        return kind.model_validate({setting: value for setting, _, value in pairs})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"--countermeasure {name}: {where + ': ' if where else ''}{first['msg']}") from None


def _nearest(name, known):
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""

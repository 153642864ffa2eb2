"""What a model owner may do against the audit (section 5.2), one file per class of defence.

A countermeasure is a subclass of `base.Countermeasure` in any file of this folder; the file is found by itself, and the
command line knows it by its `name`: train.py --countermeasure pruning:amount=0.7. Public: countermeasure_names, parse.
"""

import difflib
import importlib
import pkgutil

from pydantic import ValidationError

from countermeasures.base import Countermeasure
from kit.errors import UserError


def _known():
    """{name: class} of every countermeasure in the files of this folder."""
    for module in pkgutil.iter_modules(__path__):
        if module.name != "base":
            importlib.import_module(f"{__name__}.{module.name}")
    return {kind.name: kind for kind in _subclasses(Countermeasure) if "name" in vars(kind)}


def _subclasses(kind):
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def countermeasure_names():
    """Names that `parse` knows, in alphabetical order."""
    return sorted(_known())


def parse(text):
    """The Countermeasure of "NAME" or "NAME:setting=value,setting=value". Raises UserError with the nearest name."""
    name, _, rest = text.partition(":")
    known = _known()
    if name not in known:
        raise UserError(
            f"--countermeasure {name} is unknown{_nearest(name, known)}", advice=f"there are {', '.join(sorted(known))}"
        )
    pairs = [pair.partition("=") for pair in rest.split(",")] if rest else []
    settings = known[name].model_fields
    for setting, equals, _ in pairs:
        if setting not in settings or not equals:
            raise UserError(
                f"--countermeasure {name} has no setting {setting!r}{_nearest(setting, settings)}",
                advice=f"write {name}:SETTING=VALUE with one of {', '.join(settings) or 'none'}",
            )
    try:
        return known[name].model_validate({setting: value for setting, _, value in pairs})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"--countermeasure {name}: {where + ': ' if where else ''}{first['msg']}") from None


def _nearest(name, known):
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""

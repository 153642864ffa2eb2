"""Flags that say how a photo becomes a model's input, where its file does not know or is wrong.

Public: add_preprocessing_flags, preprocessing_of.
"""

from kit.cli import number
from kit.errors import UserError
from kit.names import INTERPOLATIONS


def add_preprocessing_flags(parser):
    """--input_size, --resize, --mean, --std, --white and --interpolation; parser: one, or a group of one."""
    add = parser.add_argument
    add(
        "--input_size",
        nargs="+",
        type=number(int, 1, 4096),
        help="side, or height and width, in pixels (default of all these: the model's own)",
    )
    add("--resize", type=number(int, 1, 8192), help="shorter side before the centre crop")
    add("--mean", nargs=3, type=number(float), help="of each channel, where white is 1")
    add("--std", nargs=3, type=number(float, above=0))
    add("--white", type=number(float, above=0), help="what white is before --mean and --std (default 1)")
    add("--interpolation", choices=INTERPOLATIONS)


def preprocessing_of(args):
    """What was given, as `opened.open_model` takes it for its `overrides`: {key of Preprocessing: value}.

    Raises UserError for a size of three numbers or more.
    """
    size = args.input_size
    if size and len(size) > 2:
        raise UserError("--input_size takes one number, or height and width", flag="--input_size")
    given = {"size": size and tuple(size * 2 if len(size) == 1 else size)}
    given |= {name: getattr(args, name) for name in ("resize", "mean", "std", "white", "interpolation")}
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value is not None
    }

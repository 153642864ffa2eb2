"""Flags that say how a photo becomes a model's input, where its file does not know or is wrong; how to ask a server.

Public: add_preprocessing_flags, preprocessing_of, add_server_flags, server_options_of.
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
        help="side, or height and width, in pixels (default: the model's own)",
    )
    add(
        "--resize",
        type=number(int, 1, 8192),
        help="shorter side before the centre crop (default: the model's own, else as covers it)",
    )
    add(
        "--mean",
        nargs=3,
        type=number(float),
        help="of each channel, where white is 1 (default: the model's own, else asked for)",
    )
    add(
        "--std",
        nargs=3,
        type=number(float, above=0),
        help="spread of each channel (default: the model's own, else asked for)",
    )
    add(
        "--white",
        type=number(float, above=0),
        help="what white is before --mean and --std (default: the model's own, else 1)",
    )
    add(
        "--interpolation",
        choices=INTERPOLATIONS,
        help="how a photo is scaled (default: the model's own, else bilinear)",
    )


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


def add_server_flags(parser):
    """How a server is asked, above all one that does not say; parser: one, or a group of one."""
    add = parser.add_argument
    add("--input_name", help="of a server that does not declare its tensors (default: found by asking)")
    add(
        "--input_datatype",
        choices=("FP16", "FP32", "FP64", "UINT8"),
        help="what it takes numbers as (default: found by asking)",
    )
    add("--input_layout", choices=("NCHW", "NHWC"), help="channels first or last (default: found by asking)")
    add(
        "--input_shape",
        nargs="+",
        type=number(int, -1, 4096),
        metavar="SIDE",
        help="of its input, -1 for what is free (default: as declared, or --input_size)",
    )
    add("--output_name", help="the output with the answers, where there are several (default: the only one)")
    add(
        "--answers",
        choices=("classes", "embeddings"),
        default="classes",
        help="what a server or a file of weights answers with; embeddings: scored by how alike crops of a picture are, "
        "which takes eight pictures a query (default classes)",
    )
    add(
        "--calibration",
        metavar="FOLDER",
        help="propose mean and std of a server that does not state them, by showing it these photos, which take no "
        "part in the audit, or own: the record's, without marks (default: don't, and ask for --mean and --std)",
    )
    add(
        "--confirm_preprocessing",
        metavar="NAME",
        help="what --calibration proposed: 0..1, imagenet, 0.5/0.5 or 0..255 (default: not confirmed, nothing begins)",
    )
    add("--query_batch", type=number(int, 1, 4096), default=64, help="pictures a question (default 64)")
    add("--concurrency", type=number(int, 1, 64), default=4, help="questions to a server at once (default 4)")
    add("--header", action="append", default=[], help="'Name: $VARIABLE' for the server, repeatable (default: none)")
    add("--rate_limit", type=number(float, above=0), help="questions a second (default: no limit)")
    add("--timeout", type=number(float, above=0), default=30.0, help="seconds to wait for an answer (default 30)")
    add("--retries", type=number(int, 0, 100), default=6, help="of a question that failed (default 6)")


def server_options_of(args):
    """What was given for servers alone: keyword arguments of `server.open_server`."""
    return {
        "headers": args.header,
        "rate_limit": args.rate_limit,
        "timeout": args.timeout,
        "retries": args.retries,
        "concurrency": args.concurrency,
        "hints": {
            "name": args.input_name,
            "datatype": args.input_datatype,
            "layout": args.input_layout,
            "shape": args.input_shape and tuple(args.input_shape),
            "output": args.output_name,
        },
    }

"""How a script fails: bad input is one line and exit code 2, never a traceback."""

import errno
import importlib
import os
import signal
import sys


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what to do about it."""


def run_script(main):
    """Run `main()` as a command: bad input, a full disk and Ctrl-C end in one line on stderr, never in a traceback.

    main's result is the exit code: 0 (or None) done, 1 done but for what was named. Others: 2 bad input or no room on
    the disk, 130 interrupted (by Ctrl-C or a polite kill).
    """
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        if code := main():
            sys.exit(code)
    except UserError as error:
        sys.exit(_fail(str(error), 2))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted; start the same command again to go on where it stopped", 130))
    except BrokenPipeError:  # `train.py | head`: whoever read the table has enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (what Python flushes at exit)
        sys.exit(0)
    except Exception as error:
        if (text := explanation(error)) is None:
            raise
        sys.exit(_fail(text, 2))


def explanation(error):
    """What to tell people about an exception that is their input's or their machine's; None for a defect of ours."""
    if isinstance(error, UserError):
        return str(error)
    if _out_of_memory(error):
        return "the device ran out of memory; lower --batch_size, or use --device cpu"
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no room left on the disk{_where(error)}; free some, then start the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to read or write{_where(error)}; choose another folder with --out"
    if error.errno == errno.ENOENT:
        return f"a file is gone{_where(error)}; put it back, or start anew without it"
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
        return f"{error.strerror}{_where(error)}; choose another name with --out"
    return None


def _out_of_memory(error):
    torch = sys.modules.get("torch")  # not imported for this question: that takes a second
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _where(error):
    return f" at {error.filename}" if error.filename else ""


def _fail(message, code):
    # Click-through environments and logs want exactly one line, whatever the message was made from.
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def optional(package, what, install=None):
    """Import a package that only some need; without it a UserError says what needs it and how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{what} needs the package {package}: pip install {install or package}") from None

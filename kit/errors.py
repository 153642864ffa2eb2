"""How a script fails: bad input is one line and exit code 2, never a traceback.

Public: UserError, Locked, UnknownNetwork, run_script, explained, optional.
"""

import errno
import importlib
import os
import signal
import sys
from contextlib import suppress

INTERRUPTED = "interrupted; start the same command again to go on where it stopped"


class UserError(Exception):
    """Bad input. Its text is one line: what is wrong and where, then what to do about it.

    problem: what is wrong, and where; advice: what to do about it; command: more advice, for people at a command line
    alone, since it names flags that nothing else has; flag: the flag that it is about, such as "--mean".
    """

    exit_code = 2

    def __init__(self, problem, advice=None, command=None, flag=None):
        super().__init__(problem)
        self.problem, self.advice, self.command, self.flag = problem, advice, command, flag

    def __str__(self):
        todo = ", ".join(filter(None, (self.advice, self.command)))
        return f"{self.problem}; {todo}" if todo else self.problem


class Locked(UserError):
    """Somebody else is working there: the same call may succeed later (exit code 75, as mail programs have it)."""

    exit_code = 75


class UnknownNetwork(UserError):
    """A network's name that nobody knows."""


def run_script(main, writes_to="--out"):
    """Run `main()` as a command: bad input, a full disk and Ctrl-C end in one line on stderr, never in a traceback.

    main's result is the exit code: 0 (or None) done, 1 done but for what was named, 3 a limit is broken
    (privacy-audit.py --fail_if). Others: 2 bad input or no room on the disk, 75 another process is working there, 130
    interrupted (by Ctrl-C or a polite kill). A script imports this function alone at its top, and whatever takes time
    inside main, so that all of that ends in one line as well.
    writes_to: what says where the script writes, for the advice where it may not.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as for jobs in the background
        signal.signal(signal.SIGINT, _interrupt)
    try:
        if code := main():
            sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(_fail(INTERRUPTED, 130))
    except BrokenPipeError:  # `train.py | head`: whoever read the table has enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (what Python flushes at exit)
        sys.exit(0)
    except Exception as error:
        if (known := explained(error, writes_to)) is None:
            raise
        sys.exit(_fail(str(known), known.exit_code))


def _interrupt(_, frame):
    """Signal handler: KeyboardInterrupt, but during an import the process ends at once.

    Nothing is open then that needs closing, and an exception in the middle of somebody else's module may be swallowed,
    printed, or come out as an ImportError.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib._bootstrap"):
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(_fail(INTERRUPTED, 130))
        frame = frame.f_back
    raise KeyboardInterrupt


def explained(error, writes_to=None):
    """An exception that is people's input or their machine's as a UserError; None for a defect of ours.

    writes_to: as of `run_script`.
    """
    if isinstance(error, UserError):
        return error
    if _out_of_memory(error):
        return UserError(
            "the device ran out of memory",
            command="lower --batch_size (for a record --query_batch), or use --device cpu",
        )
    if not isinstance(error, OSError):
        return None
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no room left on the disk{where}", "free some, then start the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        command = f"{writes_to} says where results go" if writes_to else None
        return UserError(f"no permission to read or write{where}", "choose another folder", command, flag="--out")
    if error.errno == errno.ENOENT:
        return UserError(f"a file is gone{where}", "put it back, or start anew without it")
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
        return UserError(f"{error.strerror}{where}", "choose another name", flag="--out")
    return None


def _out_of_memory(error):
    torch = sys.modules.get("torch")  # not imported for this question: that takes a second
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


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

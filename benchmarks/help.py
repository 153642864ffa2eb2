"""How long `--help` of each script takes, against `import torch` alone: parsers import nothing that takes time.

Example: python -m benchmarks.help --out results/bench-help.json
Each round starts a fresh process for `import torch` and for every script in turn. Wanted: under 1.5 s. Ends with exit
code 1 where a script's median is not.
"""

import functools
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks import common
from kit.errors import run_script

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 1.5


def started(*words):
    """Start a Python with these words, in silence, and wait for it."""
    subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def main():
    args, device = common.start(common.parser(__doc__, rounds=10))
    reference, found = functools.partial(started, "-c", "import torch"), {}
    for script in sorted(path.name for path in ROOT.glob("*.py") if "run_script(main" in path.read_text()):
        help_of = functools.partial(started, script, "--help")
        found[script] = common.summary(common.alternate(reference, help_of, args.rounds))
        rows = found[script]["rounds"]
        torch, ours = (statistics.median(row[side] for row in rows) for side in ("reference_s", "ours_s"))
        found[script]["median_s"], (low, high) = ours, found[script]["ratios"]
        print(
            f"{script:<20} {ours:.2f} s, import torch {torch:.2f} s, ratio {found[script]['median_ratio']:.1f} "
            f"({low:.1f} to {high:.1f})"
        )
    common.write(args, {"what": "--help, against import torch", "wanted_s": SECONDS, "scripts": found}, device)
    return int(any(script["median_s"] >= SECONDS for script in found.values()))


if __name__ == "__main__":
    run_script(main)

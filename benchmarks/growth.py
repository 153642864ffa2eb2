"""How time grows with pixels, users, images and files: the slope of a straight line in log-log axes, and a plot.

Example: python -m benchmarks.growth --out results/growth/cpu.json        also writes results/growth/cpu.png
  marking   utils.mark_images by the pixels of an image, the same eight users' marks at every size
  audit     utils.score_users by users of 25 samples of 32 px: mark, query (smallnet), signals
  training  one epoch of utils.train_model (smallnet) by images of 32 px
  tree      the links of imagenet-prepare.py's training tree by files, without marking; always on the CPU
Each runs in a process of its own. The first pass over the sizes, in rising order, is not timed and gives the peak
memory that the process has had by then; the others give the times, whose medians are fitted.
Public: PANELS, fit, draw.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.ticker import EngFormatter, NullFormatter
from scipy import stats

import utils
from benchmarks import common, tree
from dataset import recipe
from kit import plots
from kit.errors import UserError, run_script
from networks import build_network

SAMPLES = 25  # of a user
POOL = 10_000  # images that the users' samples are drawn from
CLASSES = 99


def marking(sizes, args, device, work):
    """Calls that mark `per_call` images of each side. Every size has the same draws: two of each number of octaves."""
    octaves = utils.perlin_draws(b"benchmark", np.zeros(1000), np.arange(1000))[1]
    numbers = np.concatenate([np.flatnonzero(octaves == count)[:2] for count in np.unique(octaves)])
    for side in sizes:
        at_once = max(1, 2**22 // side**2)
        numbers_here = np.resize(numbers, max(len(numbers), at_once))
        images = torch.randint(
            0, 256, (min(at_once, len(numbers_here)), 3, side, side), dtype=torch.uint8, device=device
        )

        def call(images=images, numbers=numbers_here):
            for part in np.split(numbers, range(len(images), len(numbers), len(images))):
                utils.mark_images(images[: len(part)], b"benchmark", np.zeros(len(part)), part)

        yield side**2, len(numbers_here), call


def audit(sizes, args, device, work):
    """Calls that ask a network about some users' samples, images that are marked on the way."""
    settings = utils.TrainingSettings(precision=utils.choose_precision("auto", device))
    query = utils.make_query(build_network("smallnet", CLASSES), settings, device)
    images = torch.randint(0, 256, (POOL, 3, 32, 32), dtype=torch.uint8)
    for count in sizes:
        samples = np.arange(count * SAMPLES).reshape(count, SAMPLES) % POOL
        users = utils.Users(samples, np.zeros(count, np.int64), b"key")
        yield count, 1, lambda users=users: utils.score_users(query, images, users, utils.Marking(), device)


def training(sizes, args, device, work):
    """Calls that train for an epoch, with the batch size of the data set photos."""
    settings = utils.TrainingSettings(
        epoch=1, lr=0.01, batch_size=recipe("photos").batch_size, precision=utils.choose_precision("auto", device)
    )
    images = torch.randint(0, 256, (max(sizes), 3, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.randint(0, CLASSES, (max(sizes),), device=device)
    model = build_network("smallnet", CLASSES)
    for count in sizes:
        yield (
            count,
            1,
            lambda count=count: utils.train_model(
                model, images[:count], labels[:count], settings, device, work / "progress.safetensors", {}
            ),
        )


def links(sizes, args, device, work):
    """Calls that write the tree of a source with some files; they return what benchmarks/tree.py measured."""
    for files in sizes:
        source = work / f"source-{files}"
        tree.make_source(source, files)

        def call(source=source):
            call.turn = getattr(call, "turn", 0) + 1
            return tree.measure("ours", source, work / f"{source.name}-out-{call.turn}")["seconds"]

        yield files, 1, call


class Panel(NamedTuple):
    """One of the four: what grows, the unit of a call's work, and the sizes unless a flag says otherwise."""

    calls: object
    by: str
    unit: str
    sizes: tuple


PANELS = {
    "marking": Panel(marking, "pixels of an image", "seconds an image", (32, 96, 224, 512, 1024, 4000)),
    "audit": Panel(audit, f"users of {SAMPLES} samples", "seconds", (10, 40, 160, 640, 2560)),
    "training": Panel(training, "training images", "seconds an epoch", (512, 1024, 2048, 4096, 8192, 16384)),
    "tree": Panel(links, "files", "seconds", (2500, 5000, 10_000, 20_000, 40_000)),
}


def fit(sizes, seconds, confidence=0.95):
    """The line log(seconds) = slope * log(size) + intercept by least squares.

    sizes, seconds: at least three positive numbers each, or UserError. Returns a JSON-ready dict: slope, its `interval`
    by Student's t with len(sizes) - 2 degrees of freedom (how straight the line is, not how the clock scatters), and
    intercept.
    """
    sizes, seconds = np.asarray(sizes, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    if len(sizes) < 3 or len(sizes) != len(seconds) or not (np.r_[sizes, seconds] > 0).all():
        raise UserError("a slope with an interval needs three or more sizes, all positive", advice="give more --sizes")
    line = stats.linregress(np.log(sizes), np.log(seconds))
    reach = stats.t.ppf((1 + confidence) / 2, len(sizes) - 2) * line.stderr
    return {
        "slope": float(line.slope),
        "interval": [float(line.slope - reach), float(line.slope + reach)],
        "intercept": float(line.intercept),
    }


def measure(name, sizes, args, device):
    """Rows of one panel: median, smallest and largest seconds of each size, and the peak memory so far."""
    work, rows, calls = Path(tempfile.mkdtemp(prefix="growth-")), [], []
    try:
        for size, per_call, call in PANELS[name].calls(sizes, args, device, work):
            _seconds(call, device)
            row = {"size": size, "peak_GB": common.peak_gb(), "rounds": []}
            if device.type == "cuda":
                row["card_GB"] = torch.cuda.max_memory_allocated() / 1e9
            rows.append(row)
            calls.append((per_call, call))
        for turn in range(args.rounds):
            # There and back: what slows the machine down for a while is not always the same size's.
            for row, (per_call, call) in list(zip(rows, calls, strict=True))[:: 1 - 2 * (turn % 2)]:
                row["rounds"].append(_seconds(call, device) / per_call)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return [{**row, "seconds": statistics.median(row["rounds"])} for row in rows]


def _seconds(call, device):
    found = []
    taken = common.seconds(lambda: found.append(call()), device)
    return found[0] if isinstance(found[0], float) else taken  # the tree's clock leaves out what is not its work


def draw(panels, path):
    """One log-log plot for each of `panels`, {name: {"rows", "fit"}}: medians, the range of the rounds, the line."""
    figure, axes = plots.figure_of(2, 2, (9, 7))
    short = EngFormatter(sep="", places=1)
    for axis, (name, panel) in zip(axes.flat, panels.items(), strict=False):
        sizes, seconds = (np.array([row[what] for row in panel["rows"]], dtype=float) for what in ("size", "seconds"))
        reach = np.abs([[min(row["rounds"]), max(row["rounds"])] for row in panel["rows"]] - seconds[:, None]).T
        slope, (low, high) = panel["fit"]["slope"], panel["fit"]["interval"]
        axis.errorbar(
            sizes,
            seconds,
            reach,
            fmt="o",
            color=plots.MEMBER_COLOR,
            capsize=3,
            label=f"median and range of {len(panel['rows'][0]['rounds'])}",
        )
        axis.plot(
            sizes,
            np.exp(panel["fit"]["intercept"]) * sizes**slope,
            color=plots.NON_MEMBER_COLOR,
            label=f"slope {slope:.2f} ({low:.2f} to {high:.2f})",
        )
        axis.set(xscale="log", yscale="log", title=name, xlabel=PANELS[name].by, ylabel=PANELS[name].unit)
        axis.set_xticks(sizes, [short(size).replace(".0", "") for size in sizes])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.legend()
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    plots.save_figure(figure, path)


def main():
    flags = common.parser(__doc__)
    flags.add_argument("--panels", nargs="+", choices=list(PANELS), default=list(PANELS))
    flags.add_argument(
        "--sizes", nargs="+", type=common.COUNT, help="with one of --panels: other sizes (marking: sides)"
    )
    flags.add_argument("--measure", choices=list(PANELS), help="print the rows of one panel as JSON, from this process")
    args, device = common.start(flags)
    if args.measure:
        print(json.dumps(measure(args.measure, args.sizes, args, device)))
        return
    if args.sizes and len(args.panels) > 1:
        raise UserError("--sizes fits one panel", advice="give one with --panels")
    panels = {}
    for name in args.panels:
        panel = PANELS[name]
        command = [
            sys.executable,
            "-m",
            "benchmarks.growth",
            "--measure",
            name,
            "--rounds",
            str(args.rounds),
            "--device",
            str(device),
            "--sizes",
            *map(str, sorted(args.sizes or panel.sizes)),
        ]
        command += ["--threads", str(args.threads)] if args.threads else []
        rows = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        panels[name] = {
            "by": panel.by,
            "unit": panel.unit,
            "rows": rows,
            "fit": fit([row["size"] for row in rows], [row["seconds"] for row in rows]),
        }
        for row in rows:
            card = f", {row['card_GB']:.2f} GB on the card" if "card_GB" in row else ""
            print(
                f"{name:<9}{row['size']:>9} {panel.by}: {row['seconds']:.3g} {panel.unit} ({min(row['rounds']):.3g} "
                f"to {max(row['rounds']):.3g}), peak {row['peak_GB']:.2f} GB{card}"
            )
        slope, (low, high) = panels[name]["fit"]["slope"], panels[name]["fit"]["interval"]
        print(f"{name} grows with {panel.by} to the power of {slope:.2f} ({low:.2f} to {high:.2f})", flush=True)
    common.write(args, {"what": "growth, log-log slopes", "rounds": args.rounds, "panels": panels}, device)
    if args.out:
        draw(panels, Path(args.out).with_suffix(".png"))


if __name__ == "__main__":
    run_script(main)

"""Writing imagenet-prepare.py's training tree, without marking: files per second, memory, growth with their number.

Example: python -m benchmarks.tree --files 200000 --out results/bench-tree.json
Makes an ImageFolder of small files (about 1,280 a class, names and number of classes as in ImageNet), then lists it and
writes the tree of links in a fresh process for each size. The time for ImageNet's 1,281,167 files is extrapolated from
the fitted line and called so. The reference in the same run is the obvious way: torchvision's listing, a Path and a
link for each file.
Public: make_source, measure.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

IMAGENET_FILES, PER_CLASS = 1_281_167, 1_281


def make_source(folder, files):
    """An ImageFolder of `files` files of 3 bytes: folder/train/CLASS/FILE, and a small folder/val."""
    for number in range(-(-files // PER_CLASS)):
        name = f"n{10_000_000 + 7919 * number % 90_000_000:08d}"
        for side, count in (("train", min(PER_CLASS, files - number * PER_CLASS)), ("val", 1)):
            (folder / side / name).mkdir(parents=True)
            for image in range(count):
                (folder / side / name / f"{name}_{image}.JPEG").write_bytes(b"\xff\xd8\xff")


def write_ours(source, out):
    from imagenet.plan import list_source, plan_users
    from imagenet.tree import Tree, finish, link_tree, publish

    settings = {
        "num_of_users": 0,
        "marked_samples_per_user": 125,
        "num_of_non_member_users": 0,
        "holdout": 0.0,
        "non_member_source": "train",
        "non_member_pool": None,
        "seed": 1,
        "link": "symlink",
    }
    train, val = (list_source(source / side) for side in ("train", "val"))
    plan, tree = plan_users(settings, train, val), Tree(out)
    tree.out.mkdir()
    tree.open(settings)
    link_tree(tree, plan, train, val)
    publish(tree, plan, train, {}, {})
    finish(tree)


def write_reference(source, out):
    from torchvision.datasets import ImageFolder

    for path in [Path(name) for name, _ in ImageFolder(source / "train").samples]:
        target = out / "train" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path.resolve())


def measure(way, source, out):
    """In this process: seconds, and peak memory in MB beyond what importing took."""
    import torchvision.datasets  # noqa: F401  (imports are not what is measured)

    from imagenet.plan import list_source, plan_users  # noqa: F401

    os.sync()  # what other processes have written shall not be waited for inside
    before, started, cpu = _peak(), time.perf_counter(), time.process_time()
    {"ours": write_ours, "reference": write_reference}[way](source, out)
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "more_MB": _peak() - before,
        "peak_MB": _peak(),
    }


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def tree_bytes(folder):
    """What the links and folders of a tree take on the disk: blocks of 512 bytes, without the inodes themselves."""
    return sum(
        512 * os.lstat(os.path.join(parent, name)).st_blocks
        for parent, folders, files in os.walk(folder)
        for name in folders + files
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200_000, help="of the largest tree")
    parser.add_argument(
        "--reference_files",
        type=int,
        default=50_000,
        help="of the reference's largest tree (at least a quarter of --files)",
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", help="where the trees are made (default: the system's temporary folder)")
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.files // 8, args.reference_files, args.rounds) < 1:
        parser.error("--files must be at least 8, --reference_files and --rounds at least 1")
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]), Path(args.measure[2]))))
        return
    import torch

    from kit import environment
    from kit.files import write_json

    rows, work = [], Path(tempfile.mkdtemp(dir=args.work))
    sizes = [args.files // part for part in (8, 4, 2, 1)]
    with_reference = max(args.reference_files, sizes[1])  # a line needs two points
    try:
        for files in sizes:
            source = work / f"source-{files}"
            make_source(source, files)
            for turn in range(args.rounds):
                for way in ("ours", "reference")[: 2 if files <= with_reference else 1][:: 1 - 2 * (turn % 2)]:
                    # Nothing is deleted before the end: ext4 is slow for seconds wherever files have just gone.
                    out = work / f"{way}-{files}-{turn}"
                    command = [sys.executable, "-m", "benchmarks.tree", "--measure", way, str(source), str(out)]
                    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                    count = sum(len(names) for _, _, names in os.walk(out / "train"))
                    assert count == files, f"{way}: {count} links of {files}"
                    rows.append({"way": way, "files": files, **found, "disk_MB": tree_bytes(out) / 1e6})
                    print(
                        f"{way:<10}{files:>9} files {found['seconds']:>7.2f} s "
                        f"({found['cpu_seconds']:.2f} s of CPU), {files / found['seconds']:>7.0f} "
                        f"files/s, {found['more_MB']:>6.1f} MB more memory, {rows[-1]['disk_MB']:.1f} MB of disk",
                        flush=True,
                    )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    result = {"rows": rows, "hardware": environment.hardware_name(torch.device("cpu"))} | {
        way: summary([row for row in rows if row["way"] == way]) for way in ("ours", "reference")
    }
    both = max(row["files"] for row in rows if row["way"] == "reference")
    ours, theirs = (
        [row["seconds"] for row in rows if row["way"] == way and row["files"] == both] for way in ("ours", "reference")
    )
    ratios = [slow / fast for fast, slow in zip(ours, theirs, strict=True)]
    result["ratio"] = {"files": both, "median": float(np.median(ratios)), "from": min(ratios), "to": max(ratios)}
    ours = result["ours"]
    print(
        f"log-log slope {ours['slope']:.2f} (CPU {ours['cpu_slope']:.2f}); extrapolated along the line to "
        f"{IMAGENET_FILES} files: {ours['imagenet_seconds']:.0f} s, {ours['imagenet_cpu_seconds']:.0f} s of CPU, "
        f"{ours['imagenet_more_MB']:.0f} MB; the reference takes {result['ratio']['median']:.1f} times as long "
        f"({min(ratios):.1f} to {max(ratios):.1f}, {both} files)"
    )
    if args.out:
        write_json(args.out, result)


def summary(rows):
    """Growth: slope of log seconds over log files, and straight lines extrapolated to ImageNet's number."""
    files, seconds, cpu, memory = (
        np.array([row[name] for row in rows], dtype=float) for name in ("files", "seconds", "cpu_seconds", "more_MB")
    )
    return {
        "slope": float(np.polyfit(np.log(files), np.log(seconds), 1)[0]),
        "cpu_slope": float(np.polyfit(np.log(files), np.log(cpu), 1)[0]),
        "files_per_second": float(np.median(files / seconds)),
        "imagenet_seconds": float(np.polyval(np.polyfit(files, seconds, 1), IMAGENET_FILES)),
        "imagenet_cpu_seconds": float(np.polyval(np.polyfit(files, cpu, 1), IMAGENET_FILES)),
        "imagenet_more_MB": float(np.polyval(np.polyfit(files, memory, 1), IMAGENET_FILES)),
        "extrapolated_to": IMAGENET_FILES,
    }


if __name__ == "__main__":
    main()

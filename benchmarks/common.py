"""What the benchmarks share: alternating rounds, ratios with their spread, the JSON file.

Public: COUNT, parser, start, seconds, alternate, summary, slope, peak_gb, write.
"""

import resource
import statistics
import time

import numpy as np
import torch

import utils
from kit.cli import Parser, number
from kit.environment import hardware_name, software_versions
from kit.files import write_json

COUNT = number(int, 1)  # an argparse type


def parser(description, rounds=5):
    """The flags of every benchmark."""
    flags = Parser(description=description)
    flags.add_argument("--rounds", type=COUNT, default=rounds)
    flags.add_argument("--threads", type=COUNT, help="threads of PyTorch (default: all cores)")
    flags.add_argument("--device", default="auto")
    flags.add_argument("--out", help="JSON file to write")
    return flags


def start(flags):
    """(arguments, device) of a benchmark's flags; the threads are set."""
    args = flags.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    return args, utils.choose_device(args.device)


def seconds(call, device=None):
    """How long `call()` takes, with what it left on the device."""
    start = time.perf_counter()
    call()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(reference, ours, rounds, device=None, warm=True):
    """Seconds of the two calls, taken in turn: a list of dicts reference_s, ours_s."""
    if warm:
        ours()
    return [{"reference_s": seconds(reference, device), "ours_s": seconds(ours, device)} for _ in range(rounds)]


def summary(found, work_ratio=1.0):
    """Median and range of reference / ours; work_ratio: how much more ours did in its call."""
    ratios = [row["reference_s"] / row["ours_s"] * work_ratio for row in found]
    return {"median_ratio": statistics.median(ratios), "ratios": [min(ratios), max(ratios)], "rounds": found}


def slope(sizes, times):
    """Exponent of the growth: slope of the straight line in log-log axes."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def peak_gb():
    """Peak memory of the process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def write(args, result, device):
    """Write the JSON file, with the hardware's name, where --out names one."""
    if args.out:
        write_json(args.out, {**result, "hardware": hardware_name(device), "torch": software_versions()["torch"]})

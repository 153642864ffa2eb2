"""What an audit of one record costs: queries and seconds of every plan, against one view without a reference.

Example: python -m benchmarks.record --out results/bench-record.json
What is timed is what eval.py --record does once its imports are done: plan, marks, questions to the model and to the
reference, verdict, evidence. A smallnet at 32 px and torchvision's ResNet-18 at 224 px, both untrained, so that no
audit by photo stops early and its row says the most that it can take. All plans of a network go in turn in each round.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import resnet18

from benchmarks import common
from experiment import training
from kit.errors import run_script
from provenance import case, protect, references
from provenance.folder import inspect_folder
from provenance.plan import VIEWS, AuditPlan
from suspects import opened

# (visibility of the mark, with a reference, what differs from the usual plan)
PLANS = {
    "one view, no reference (before)": ("clear", False, {"views": 1}),
    f"usual plan, {VIEWS} views": ("clear", False, {}),
    f"usual plan, {VIEWS} views, a reference": ("clear", True, {}),
    "18 views": ("clear", False, {"views": 18}),
    "18 views, a reference": ("clear", True, {"views": 18}),
    "published unchanged, 18 views": ("none", False, {}),
    "published unchanged, 18 views, a reference": ("none", True, {}),
    f"photo by photo, {VIEWS} views, a reference, never stopped": ("clear", True, {"sequential": True}),
}
BEFORE = next(iter(PLANS))
SIDES = {"smallnet": 32, "resnet18": 224}


def model_of(folder, network, seed):
    """An opened model with random weights, from a file."""
    path = folder / f"{network}-{seed}.safetensors"
    if network == "smallnet":
        draws = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=draws)
        training.train_on(path, images, torch.arange(20) % 10, 10, seed, torch.device("cpu"), epoch=1)
        return opened.open_model(path)
    torch.manual_seed(seed)
    save_file(resnet18(num_classes=1000).state_dict(), path)
    return opened.open_model(path, "resnet18")


def plans_of(folder, network, photos):
    """{name: a function that carries the audit out in a new folder and returns its queries} of a network."""
    images = folder / f"{network}-photos"
    images.mkdir()
    draws, side = np.random.default_rng(1), SIDES[network]
    for number in range(photos):
        pixels = draws.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number:03}.png")
    suspect, reference = (model_of(folder, network, seed) for seed in (1, 2))
    return {name: _audit_of(folder, images, suspect, reference, *of) for name, of in PLANS.items()}


def _audit_of(folder, images, suspect, reference, visibility, beside, chosen):
    place = Path(tempfile.mkdtemp(dir=folder))
    settings, _ = protect.resolve_settings({"visibility": visibility})
    digests = [references.digest_of(reference)] if beside else []
    plan = AuditPlan.usual(True, visibility != "none", label="0", references=digests, **chosen)
    job = protect.open_record(inspect_folder(images), settings, 0.5, plan=plan, out=place)
    protect.run(job, say=lambda *said: None)
    path = job.record_path

    def audit():
        new = Path(tempfile.mkdtemp(dir=place))
        given = [reference] if beside else None
        more = {"folder": new / "audit", "log": new / "log.json", "references": given}
        return case.open_case(path, [images], suspect, **more).run()["queries"]

    return audit


def timed(audits, rounds):
    """[{plan, queries, median_s, median_ratio, ratios, rounds}]: all plans in turn, and the ratio to the first."""
    found, queries = {name: [] for name in audits}, {}
    for _ in range(rounds):
        for name, audit in audits.items():
            found[name].append(common.seconds(lambda name=name, audit=audit: queries.update({name: audit()})))
    rows = []
    for name, times in found.items():
        ratios = [ours / before for ours, before in zip(times, found[BEFORE], strict=True)]
        rows.append(
            {
                "plan": name,
                "queries": queries[name],
                "queries_to_references": queries[name] if PLANS[name][1] else 0,
                "median_s": statistics.median(times),
                "median_ratio": statistics.median(ratios),
                "ratios": [min(ratios), max(ratios)],
                "rounds": times,
            }
        )
    return rows


def main():
    flags = common.parser(__doc__, rounds=3)
    flags.add_argument("--networks", nargs="+", choices=tuple(SIDES), default=list(SIDES))
    flags.add_argument("--photos", type=common.COUNT, default=50, help="of the record, half of them published")
    args, device = common.start(flags)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for network in args.networks:
            audits = plans_of(Path(folder), network, args.photos)
            audits[BEFORE]()  # what is loaded once is loaded
            for row in timed(audits, args.rounds):
                rows.append({"network": network, "side": SIDES[network], "photos": args.photos, **row})
                low, high = row["ratios"]
                print(
                    f"{network:<9} {row['plan']:<55} {row['queries']:>6} queries, {row['median_s']:7.2f} s, "
                    f"{row['median_ratio']:5.2f} times ({low:.2f} to {high:.2f})",
                    flush=True,
                )
    common.write(args, {"what": "audit of one record, queries and seconds", "rows": rows}, device)


if __name__ == "__main__":
    run_script(main)

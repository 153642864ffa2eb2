"""Does the fast training engine change the statistics? Accuracy and FPR@100%TPR beside those of a plain loop.

Example: python -m studies.engine --seeds 1 2 3 4 5 --way ours --out results/engine/ours.json
         python -m studies.engine --table results/engine/*.json
Ways: ours (bfloat16, channels_last, everything on the device); float32 (the same engine in float32); plain (float32, a
TensorDataset and a DataLoader, transforms once a batch, loss.item() in every step: the usual loop of the paper's time,
written from its description, sharing nothing with the engine but network, marks and recipe); plain_images (the same
with transforms once an image). Each seed is a run of train.py's settings on the data set photos with three users.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import t as student
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import utils
from dataset import load_dataset
from experiment import flags, settings, setup
from experiment.audit import ask_users
from experiment.folder import RunPaths
from experiment.training import train, training_job
from kit import cli, environment
from kit.errors import run_script
from kit.files import read_json, write_json
from kit.tables import markdown

WAYS = ("ours", "float32", "plain", "plain_images")
FLAGS = ("--dataset", "photos", "--target_user_cls", "36", "17", "69", "--device", "cpu")


def train_plain(job, per_image):
    """Train job.model as a plain loop does; the weights that are best on the validation images stay in it."""
    recipe, model = job.recipe, job.model
    transforms = v2.Compose(
        [
            v2.RandomCrop(job.images.shape[-1], padding=recipe.crop_padding),
            v2.RandomHorizontalFlip(),
            v2.Normalize(recipe.mean, recipe.std),
        ]
    )
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    loader = DataLoader(
        TensorDataset(job.images.float() / 255, job.labels),
        recipe.batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(job.seed),
    )
    best, kept = -1.0, None
    torch.manual_seed(job.seed)
    for epoch in range(recipe.epoch):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(epoch)
        model.train()
        for batch, wanted in loader:
            batch = torch.stack([transforms(image) for image in batch]) if per_image else transforms(batch)
            loss = F.cross_entropy(model(batch), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        score = utils.accuracy(utils.make_query(model, recipe, job.device), *job.validation)
        if score > best:
            best, kept = score, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)


def run(way, seed, folder):
    """One run: a JSON-ready dict."""
    precision = "bfloat16" if way == "ours" else "float32"
    args = flags.make_parser(__doc__).parse_args([*FLAGS, "--seed", str(seed), "--precision", precision])
    data, device = load_dataset("photos"), torch.device("cpu")
    training, audit = settings.resolve_settings(args, data, device)
    experiment = setup.prepare(training, audit, data)
    paths = RunPaths.of_folder(Path(folder) / f"{way}-{seed}")
    model, started = setup.build_model(experiment), time.monotonic()
    if way.startswith("plain"):
        marked = setup.publish_marks(experiment, paths)
        job = training_job(experiment, marked, model, paths, device)
        train_plain(job, way == "plain_images")
        query = utils.make_query(model, job.recipe, device)
        record = {"train_accuracy": utils.accuracy(query, job.images, job.labels)}
    else:
        query, record = train(experiment, model, paths, device)
    seconds = time.monotonic() - started
    answers = ask_users(experiment, query, audit, paths, device)
    member, other = (answers.losses(group).mean(axis=1) for group in ("target", "non_member"))
    threshold = utils.threshold_at_fpr(other, audit["verdict_fpr"])
    test = utils.accuracy(query, data.images, data.labels, rows=experiment.splits.test)
    return {
        "way": way,
        "seed": seed,
        "test_accuracy": test,
        "train_accuracy": record["train_accuracy"],
        "false_positives": int((other < member.max()).sum()),
        "non_members": len(other),
        "detected": int((member < threshold).sum()),
        "targets": len(member),
        "train_seconds": seconds,
    }


def show(files):
    """The table of all ways: markdown."""
    rows = [row for file in files for row in read_json(file)["rows"]]
    lines = []
    for way in WAYS:
        own = [row for row in rows if row["way"] == way]
        if not own:
            continue
        accuracy = np.array([row["test_accuracy"] for row in own])
        half = student.ppf(0.975, len(own) - 1) * accuracy.std(ddof=1) / np.sqrt(len(own)) if len(own) > 1 else np.nan
        false, total = (sum(row[name] for row in own) for name in ("false_positives", "non_members"))
        low, high = utils.clopper_pearson(false, total)
        lines.append(
            [
                way,
                len(own),
                f"{100 * accuracy.mean():.1f} ({100 * (accuracy.mean() - half):.1f}-"
                f"{100 * (accuracy.mean() + half):.1f})",
                f"{100 * np.mean([row['train_accuracy'] for row in own]):.1f}",
                f"{100 * false / total:.2f} ({100 * low:.2f}-{100 * high:.2f})",
                f"{sum(row['detected'] for row in own)}/{sum(row['targets'] for row in own)}",
            ]
        )
    return markdown(
        ["way", "seeds", "test accuracy (95 % of the mean)", "training accuracy", "FPR@100%TPR (95 %)", "detected"],
        lines,
    )


def main():
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--way", choices=WAYS, default="ours")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--table", nargs="+", help="JSON files of earlier calls: print their table, train nothing")
    args = parser.parse_args()
    if not args.table:
        with tempfile.TemporaryDirectory() as folder:
            rows = [run(args.way, seed, folder) for seed in args.seeds]
        if args.out:
            write_json(
                args.out,
                {
                    "rows": rows,
                    "hardware": environment.hardware_name(torch.device("cpu")),
                    "threads": torch.get_num_threads(),
                    "torch": environment.software_versions()["torch"],
                },
            )
            args.table = [args.out]
    if args.table:
        print(show(args.table))
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))

"""The ImageNet experiment in small, on one core: prepare a tree, train a torchvision ResNet-18 on it, audit, exact p.

Example: python -m studies.imagenet_rehearsal --data_root TINYIMAGENET32 --out results/imagenet-rehearsal
TINYIMAGENET32 has train/CLASS/FILES and test/CLASS/FILES of 32 px. 100 classes are scaled to 64 px and written as an
ImageFolder; imagenet-prepare.py marks 20 users x 25 images (with 12 or 13 further photos of each held out) and 1,000
non-member users, who own images of the validation folder; the training loop is that of torchvision's
references/classification/train.py (ImageFolder, SGD, warm-up, cosine schedule, bfloat16) with the light augmentation of
small images, crop with padding and flip, in place of RandomResizedCrop; imagenet-audit.py and eval.py audit its
checkpoint. Every stage is skipped when its output is there.
"""

import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision import transforms

import utils
from experiment import training
from experiment.audit import Audit
from experiment.training import IMAGENET_MEAN, IMAGENET_STD
from kit import files, plots
from kit.errors import run_script
from kit.tables import markdown
from studies import common


def write_source(data_root, folder, classes, images, side, first=0):
    """The first classes of the 32-px folders, scaled to `side`, as folder/{train,val}/CLASS/FILE.JPEG: of each class
    all test images, and `images` training images from number `first` on."""
    if (folder / "done").exists():
        return
    for source, target, part in (("train", "train", slice(first, first + images)), ("test", "val", slice(None))):
        for label in sorted(path.name for path in (Path(data_root) / source).iterdir() if path.is_dir())[:classes]:
            (folder / target / label).mkdir(parents=True, exist_ok=True)
            for path in sorted((Path(data_root) / source / label).iterdir())[part]:
                image = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
                image.save(folder / target / label / path.name, "jpeg", quality=95)
    (folder / "done").touch()


def train(tree, path, args):
    """A stock training: nothing in here knows of users or marks. Writes a checkpoint as torchvision's script does."""
    if path.exists():
        return
    normalize = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    data = torchvision.datasets.ImageFolder(
        tree / "train",
        transforms.Compose(
            [transforms.RandomCrop(args.side, padding=args.side // 8), transforms.RandomHorizontalFlip(), *normalize]
        ),
    )
    torch.manual_seed(args.seed)
    loader = torch.utils.data.DataLoader(data, args.batch_size, shuffle=True, drop_last=True)
    model = torchvision.models.resnet18(num_classes=len(data.classes)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=args.weight_decay)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=len(loader))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, (args.epochs - 1) * len(loader))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [len(loader)])
    history, started = [], time.monotonic()
    for epoch in range(args.epochs):
        model.train()
        losses, hits = [], []
        for images, labels in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=bool(args.bfloat16)):
                logits = model(images.to(memory_format=torch.channels_last))
            loss = torch.nn.functional.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            hits.append((logits.argmax(1) == labels).float().mean().item())
        history.append(
            {
                "epoch": epoch + 1,
                "loss": float(np.mean(losses)),
                "train_accuracy": float(np.mean(hits)),
                "seconds": time.monotonic() - started,
            }
        )
        print(history[-1], flush=True)
    files.write_json(path.with_suffix(".json"), {"history": history, "images": len(data), "classes": len(data.classes)})
    with files.atomic_path(path) as temporary:
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": args.epochs, "args": args},
            temporary,
        )


def make_reference(args):
    """The same network, trained by this project's loop on as many other images: a run, which says how it is fed."""
    folder, path = Path(args.work) / "others", Path(args.work) / "reference.safetensors"
    write_source(args.data_root, folder, args.classes, args.images, args.side, first=args.images)
    data = torchvision.datasets.ImageFolder(folder / "train", transforms.PILToTensor())
    images = torch.stack([image for image, _ in data])
    recipe = {"epoch": args.epochs, "lr": args.lr, "batch_size": args.batch_size, "weight_decay": args.weight_decay}
    labels, device = torch.tensor(data.targets), torch.device("cpu")
    _, record = training.train_on(
        path, images, labels, len(data.classes), args.seed, device, "resnet18_pretrained", **recipe
    )
    return path, record["train_accuracy"]


def exact_verdicts(tree, checkpoint, manifest, args, kind="exact", flags=()):
    """eval.py's exact p for the first users, by their records and originals: a list of dicts. flags: of a further
    judgement, in a folder named after its kind."""
    size = ["--input_size", args.side, "--resize", args.side]
    found = []
    members = [name for name, entry in manifest["users"].items() if entry["group"] == "member"][: args.exact_users]
    for name in members:
        entry, folder = manifest["users"][name], Path(args.work) / kind / name
        if not (folder / "result.json").exists():
            common.call(
                "eval.py",
                "--record",
                tree / "records" / name / "record.json",
                "--originals",
                Path(args.work) / "source" / "train" / entry["class"],
                "--checkpoint",
                checkpoint,
                "--net_type",
                "torchvision:resnet18",
                *size,
                "--label",
                manifest["class_names"].index(entry["class"]),
                "--keys",
                args.keys,
                *flags,
                "--out",
                folder,
                "--device",
                "cpu",
            )
        result = files.read_json(folder / "result.json")
        found.append(
            {
                "user": name,
                "class": entry["class"],
                **{key: result[key] for key in ("p_value", "detected", "published", "photos", "queries", "alpha")},
            }
        )
    return found


def same_class(audit):
    """Set-based figures against the non-members of the members' own classes alone, who are the hardest to tell."""
    answers = Audit.load(audit / "losses.npz")
    same = np.isin(answers.classes["non_member"][:, 0], answers.classes["target"])
    member, other = (answers.signals[group]["cross_entropy"] for group in ("target", "non_member"))
    return utils.membership_inference(member, other[same])


def shares(exact):
    """{alpha: rate} of users found."""
    p_values = np.array([row["p_value"] for row in exact])
    return {str(alpha): common.rate((p_values <= alpha).sum(), len(p_values)) for alpha in (0.05, 0.01, 0.001)}


def found_at(exact):
    """The users found, for people."""
    return "; ".join(f"{one['hits']} of {one['of']} at {alpha}" for alpha, one in shares(exact).items())


def main():
    args = common.parser(
        __doc__.splitlines()[0],
        classes=100,
        images=50,
        side=64,
        users=20,
        samples=25,
        holdout=0.34,
        non_members=1000,
        epochs=22,
        batch_size=64,
        lr=0.05,
        weight_decay=5e-4,
        bfloat16=1,
        seed=1,
        exact_users=20,
        keys=19,
        format="jpeg",
    ).parse_args()
    torch.set_num_threads(1)
    work = Path(args.work)
    source, tree, checkpoint, audit = work / "source", work / "tree", work / "checkpoint.pth", Path(args.out) / "audit"
    write_source(args.data_root, source, args.classes, args.images, args.side)
    common.call(
        "imagenet-prepare.py",
        "--data_root",
        source,
        "--out",
        tree,
        "--num_of_users",
        args.users,
        "--marked_samples_per_user",
        args.samples,
        "--holdout",
        args.holdout,
        "--non_member_source",
        "val",
        "--num_of_non_member_users",
        args.non_members,
        "--seed",
        args.seed,
        "--format",
        args.format,
    )
    train(tree, checkpoint, args)
    common.call(
        "imagenet-audit.py",
        "--resume_path",
        checkpoint,
        "--arch",
        "resnet18",
        "--member_data_folder",
        tree / "members",
        "--non_member_data_folder",
        tree / "non_members",
        "--val_set_data_folder",
        tree / "val",
        "--manifest",
        tree / "manifest.json",
        "--input_size",
        args.side,
        "--resize",
        args.side,
        "--out",
        audit,
        "--device",
        "cpu",
    )
    shutil.copyfile(tree / "marks.png", Path(args.out) / "marks.png")
    manifest, found = files.read_json(tree / "manifest.json"), files.read_json(audit / "result.json")
    exact = exact_verdicts(tree, checkpoint, manifest, args)
    neighbours = same_class(audit)
    beside, reference_accuracy = (), None
    if exact:
        # The tree's records commit none, so that its verdict has a price; p is p.
        path, reference_accuracy = make_reference(args)
        beside = exact_verdicts(tree, checkpoint, manifest, args, "exact-reference", ("--reference", path))
    p_values = np.array([row["p_value"] for row in exact])
    settings = {name: value for name, value in vars(args).items() if name not in ("data_root", "work", "out", "device")}
    common.write_study(
        args.out,
        {
            "settings": settings,
            "training": files.read_json(checkpoint.with_suffix(".json")),
            "audit": {**found["audit"], "set, same classes": neighbours},
            "verdict": found["verdict"],
            "accuracy": found["accuracy"],
            "exact": exact,
            "exact_detected": shares(exact) if exact else None,
            "reference": {"train_accuracy": reference_accuracy, "exact": beside, "exact_detected": shares(beside)}
            if beside
            else None,
        },
        utils.choose_device("cpu"),
    )
    text = markdown(
        ["figure", "value"],
        [
            ["members, non-members", f"{found['audit']['set']['members']}, {found['audit']['set']['non_members']}"],
            *(
                (
                    f"FPR@100%TPR, {kind}-based",
                    plots.percent(found["audit"][kind]["fpr_at_100_tpr"], found["audit"][kind]["fpr_interval"]),
                )
                for kind in ("set", "instance")
            ),
            [
                f"FPR@100%TPR, the {neighbours['non_members']} non-members of the members' classes",
                plots.percent(neighbours["fpr_at_100_tpr"], neighbours["fpr_interval"]),
            ],
            ["AUC, set-based", f"{found['audit']['set']['auc']:.4f}"],
            ["Algorithm 1 at 0.1 % FPR: members detected", f"{found['verdict']['detected']} of {args.users}"],
            ["exact p: median, largest", f"{np.median(p_values):.5f}, {p_values.max():.5f} ({len(p_values)} users)"],
            ["found by the exact test at alpha", found_at(exact) if exact else "-"],
            *([["the same, with a reference on as many other images", found_at(beside)]] if beside else []),
            [
                "accuracy: validation, marked images",
                f"{plots.percent(found['accuracy']['validation'])}, {plots.percent(found['accuracy']['marked'])}",
            ],
        ],
    )
    print(text)
    with files.atomic_path(Path(args.out) / "rehearsal.md") as path:
        path.write_text(text)


if __name__ == "__main__":
    run_script(main)

"""Audit a model on a tree of marked images: who the users are, their answers, the verdicts, the table.

The settings are flags of imagenet-audit.py; `args` is what its parser returns.

Public: run_audit; stream, ask (for one's own audits); judge, GROUPS.
"""

import hashlib
import json
import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

import utils
from experiment import report
from experiment.audit import Audit
from experiment.folder import RunPaths
from imagenet.plan import list_source
from imagenet.users import find_users, of_size, read_manifest
from kit.cli import show_rows
from kit.environment import hardware_name, software_versions
from kit.errors import UserError
from kit.files import check_same_settings, read_json, write_json
from kit.plots import percent
from kit.progress import Progress
from provenance.folder import workers
from provenance.photos import UnreadablePhoto, read_photo
from suspects import opened
from suspects.flags import preprocessing_of

GROUPS = {"target": "member", "non_member": "non_member"}  # what plots and losses.npz call them, and the manifest
UNCHANGED = ("device", "batch_size")  # settings that a finished audit may differ in
ORIGINAL_ARCH = "resnet50"  # the original's default
NAMED = 10  # files that are left out and named one by one


def run_audit(args):
    """Audit, or show again what was found with the same settings."""
    users, left_out = audited_users(args)
    validation = find_validation(args.val_set_data_folder)
    suspect = open_suspect(args)
    numbers = class_numbers(args, suspect, validation)
    check_labels(users, validation, numbers)
    settings = resolve_settings(args, suspect, users, numbers)
    paths = RunPaths.of_folder(args.out)
    if (paths.folder / "config.json").exists() or (paths.folder / "manifest.json").exists():
        raise UserError(f"--out {paths.folder} holds a run or a tree", advice="choose another folder")
    with paths.lock():
        if not is_finished(paths, settings):
            paths.result.unlink(missing_ok=True)  # it would not fit the new losses, if this audit is interrupted
            conclude(suspect, users, left_out, validation, numbers, settings, paths)
    show(read_json(paths.result), paths)


def audited_users(args):
    """({"target": {user: [(class, path)] * K}, "non_member": the same}, [path that is left out]): everybody has the
    same number of images."""
    manifest = read_manifest(args.manifest) if args.manifest else None
    if os.path.realpath(args.member_data_folder) == os.path.realpath(args.non_member_data_folder):
        raise UserError("--member_data_folder and --non_member_data_folder are the same folder")
    users, left_out, size = {}, [], args.marked_samples_per_user
    for group, folder in zip(GROUPS, (args.member_data_folder, args.non_member_data_folder), strict=True):
        users[group] = find_users(folder, manifest, GROUPS[group])
        if size is not None:
            users[group], rest = of_size(users[group], folder, size)
            left_out += [os.path.relpath(path, os.path.dirname(os.path.abspath(folder))) for path in rest]
    counts = {name: len(files) for group in users.values() for name, files in group.items()}
    poorest = min(counts, key=counts.get)
    if size is None and len(set(counts.values())) > 1:
        raise UserError(
            f"users have {min(counts.values())} to {max(counts.values())} images",
            advice=f"give --marked_samples_per_user (at most {counts[poorest]}, the number of {poorest})",
        )
    if size is not None and counts[poorest] < size:
        raise UserError(
            f"user {poorest} has {counts[poorest]} images, fewer than --marked_samples_per_user {size}",
            advice="lower it",
        )
    return users, left_out


def find_validation(folder):
    """The validation images, [(class, path)], or None without a folder."""
    if folder is None:
        return None
    source = list_source(folder)
    return [
        (label, os.path.join(source.folder, label, name)) for label in source.listing for name in source.images(label)
    ]


def open_suspect(args):
    """The checkpoint as a `Suspect`; --arch never means a network of networks/, which has a googlenet of its own."""
    import torchvision

    def opened_as(arch):
        if arch is not None and ":" not in arch and not os.path.isdir(args.resume_path):
            known = torchvision.models.list_models(module=torchvision.models)
            arch = f"{'torchvision' if arch in known else 'timm'}:{arch}"
        overrides = preprocessing_of(args)
        return opened.open_model(args.resume_path, arch, args.device, args.precision, overrides, args.batch_size)

    try:
        suspect = opened_as(args.arch)
    except UserError as problem:
        if args.arch is not None or problem.flag != "--net_type":
            raise
        suspect = opened_as(ORIGINAL_ARCH)
    if suspect.classes is None:
        raise UserError(f"{args.resume_path} names only its top class", advice="use eval.py, which can do with that")
    return suspect


def class_numbers(args, suspect, validation):
    """{class: number}: the model's own names, else the sorted folders of the validation set, else the manifest's."""
    if suspect.class_names:
        names = list(suspect.class_names)
    elif validation is not None:
        names = sorted({label for label, _ in validation})
    elif args.manifest:
        names = read_manifest(args.manifest)["class_names"]
    else:
        raise UserError("the model has no class names", advice="give --val_set_data_folder or --manifest")
    if len(names) != suspect.classes:
        raise UserError(
            f"the model has {suspect.classes} classes and the data {len(names)}",
            advice="give --val_set_data_folder with all classes of its training, or the right --resume_path",
        )
    return {name: number for number, name in enumerate(names)}


def check_labels(users, validation, numbers):
    """Raise UserError for an image whose class the model does not know."""
    for label, path in [image for group in users.values() for files in group.values() for image in files] + (
        validation or []
    ):
        if label not in numbers:
            raise UserError(
                f"{path}: class {label!r} is not one of the model's {len(numbers)} "
                f"({', '.join(list(numbers)[:3])}, ...)",
                advice="name class folders as in its training",
            )


def resolve_settings(args, suspect, users, numbers):
    """What decides the result: a flat dict. Images count by their names, the model by its digest."""
    names = json.dumps(
        [
            [[name, [(label, os.path.basename(path)) for label, path in files]] for name, files in group.items()]
            for group in users.values()
        ]
        + [list(numbers)]
    )
    kept = ("instance_mi", "scaled_loss", "fpr", "verdict_fpr", "precision", "device", "batch_size")
    return {
        "arch": suspect.identity["net_type"],
        "model": suspect.identity["sha256"],
        "preprocessing": suspect.preprocessing.describe(),
        "as_they_are": args.resize is None,
        "val_resize": args.val_resize,
        "val_interpolation": args.val_interpolation,
        "users": hashlib.sha256(names.encode()).hexdigest(),
        "marked_samples_per_user": len(next(iter(users["target"].values()))),
        "validated": args.val_set_data_folder is not None,
        **{name: getattr(args, name) for name in kept},
    }


def is_finished(paths, settings):
    """Whether --out has the result of an audit with these settings."""
    if not paths.result.exists():
        return False
    stored = read_json(paths.result)
    try:
        check_same_settings(stored.get("settings"), settings, paths.folder, but=UNCHANGED)
    except (UserError, AttributeError):
        return False
    return paths.losses.exists()


def stream(images, fit):
    """Decode [(class, path)] in threads, in order and a few at a time: yields uint8 (3, h, w) arrays.

    As many images are in memory as there are threads to decode them, times four, however many there are in all.
    """

    def load(path):
        try:
            return fit(read_photo(path))
        except UnreadablePhoto as problem:
            raise UserError(f"{path} {problem}", advice="replace it or remove it from the folder") from None

    pool, waiting = ThreadPoolExecutor(workers()), deque()
    try:
        for _, path in images:
            waiting.append(pool.submit(load, path))
            if len(waiting) > 4 * workers():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def as_it_is(preprocessing, unchanged):
    """`preprocessing.fit`, but an image of the input's own size is fed as it is: scaling would wear its noise off.

    unchanged: a list that becomes longer by one for each of these.
    """

    def fit(pixels):
        if pixels.shape[:2] != tuple(preprocessing.size):
            return preprocessing.fit(pixels)
        unchanged.append(1)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    return fit


def ask(suspect, images, numbers, description, fit=None):
    """Ask the model about [(class, path)]: float64 arrays (N,) for each of utils.SIGNALS and `correct`.

    fit: makes the input of an image, uint8 (H, W, 3) to (3, h, w); by default the model's preprocessing.
    """
    labels = torch.tensor([numbers[label] for label, _ in images])
    collected, batch, asked = [], [], 0
    with Progress(total=len(images), desc=description, unit="image") as bar:
        for image in stream(images, fit or suspect.preprocessing.fit):
            batch.append(image)
            if len(batch) == suspect.batch_size or asked + len(batch) == len(images):
                # Logits or probabilities, as the model answers; log probabilities are logits, too.
                logs, _, labels_only = suspect.ask(np.stack(batch)).log_probabilities(suspect.classes)
                if labels_only:
                    raise UserError(
                        f"{suspect.name} names only its top class", advice="use eval.py, which can do with that"
                    )
                collected.append(utils.sample_signals(torch.from_numpy(logs), labels[asked : asked + len(batch)]))
                bar.update(len(batch))
                asked, batch = asked + len(batch), []
    return {name: torch.cat([part[name] for part in collected]).numpy() for name in collected[0]}


def conclude(suspect, users, left_out, validation, numbers, settings, paths):
    """Ask, judge, and write losses.npz, the plots and result.json, the last."""
    started, size, unchanged = time.monotonic(), settings["marked_samples_per_user"], []
    fit = as_it_is(suspect.preprocessing, unchanged) if settings["as_they_are"] else None
    signals = {
        group: {
            name: values.reshape(-1, size)
            for name, values in ask(
                suspect, [image for files in members.values() for image in files], numbers, GROUPS[group], fit
            ).items()
        }
        for group, members in users.items()
    }
    labels = {
        group: np.array([[numbers[label] for label, _ in files] for files in members.values()])
        for group, members in users.items()
    }
    answers = Audit(settings, users, signals, time.monotonic() - started, classes=labels)
    answers.save(paths.losses, settings, **{f"{group}_users": np.array(list(users[group])) for group in GROUPS})
    result = judge(answers, users)
    started = time.monotonic()
    if validation is not None:
        own = {"resize": settings["val_resize"], "interpolation": settings["val_interpolation"]}
        own = replace(suspect.preprocessing, **{name: value for name, value in own.items() if value is not None})
        correct = ask(suspect, validation, numbers, "validation", own.fit)["correct"]
        result["accuracy"]["validation"] = float(correct.mean())
        result["accuracy"]["validation_images"] = len(validation)
    result["seconds"]["validation"] = time.monotonic() - started
    report.draw_roc(answers, result, paths.roc_plot)
    report.draw_losses(answers, paths.loss_plot)
    result |= {
        "fed_as_they_are": len(unchanged),
        "left_out": {"images": len(left_out), "such_as": left_out[:NAMED]},
        "model": suspect.identity,
        "hardware": hardware_name(utils.choose_device(settings["device"])),
        "versions": software_versions(),
    }
    write_json(paths.result, result)


def judge(answers, users):
    """The figures of result.json that follow from the losses."""
    member, other, settings = answers.losses("target"), answers.losses("non_member"), answers.settings
    used, threshold = utils.verify_provenance(member, other, settings["verdict_fpr"])
    rows = [
        {"user": name, "classes": sorted({label for label, _ in files}), "mean_loss": float(loss), "used": bool(found)}
        for (name, files), loss, found in zip(users["target"].items(), member.mean(axis=1), used, strict=True)
    ]
    return {
        "settings": settings,
        "mode": "instance" if settings["instance_mi"] else "set",
        "signal": answers.signal,
        "audit": {
            kind: utils.membership_inference(member, other, kind == "instance", settings["fpr"])
            for kind in ("set", "instance")
        },
        "verdict": {"fpr": settings["verdict_fpr"], "threshold": threshold, "detected": int(used.sum()), "users": rows},
        "accuracy": {
            "validation": None,
            "marked": float(answers.signals["target"]["correct"].mean()),
            "non_member": float(answers.signals["non_member"]["correct"].mean()),
        },
        "seconds": {"audit": answers.seconds},
        "images": member.size + other.size,
    }


def show(result, paths):
    """The short table at the end."""
    audit, settings, accuracy = result["audit"][result["mode"]], result["settings"], result["accuracy"]
    judged = result["verdict"]
    print(
        f"{settings['arch']}, {settings['marked_samples_per_user']} samples a user, {result['mode']}-based, "
        f"{result['signal']}; {settings['preprocessing']}"
    )
    rows = [
        (
            "FPR@100%TPR",
            f"{percent(audit['fpr_at_100_tpr'], audit['fpr_interval'])}, "
            f"{audit['false_positives']} of {audit['non_members']} non-members",
        )
    ]
    rows += [
        (f"TPR@{100 * point['fpr']:g}%FPR", percent(point["tpr"], point["interval"])) for point in audit["tpr_at_fpr"]
    ]
    rows += [
        ("AUC", f"{audit['auc']:.4f}"),
        (
            "members detected",
            f"{judged['detected']} of {len(judged['users'])} by Algorithm 1 at {percent(judged['fpr'])} FPR",
        ),
    ]
    rows += [
        (f"accuracy, {name.replace('_', '-')}", percent(accuracy[name]))
        for name in ("validation", "marked", "non_member")
        if accuracy[name] is not None
    ]
    if result["fed_as_they_are"]:
        rows.append(("fed as they are", f"{result['fed_as_they_are']} of {result['images']} marked images"))
    if count := result["left_out"]["images"]:
        names = ", ".join(result["left_out"]["such_as"])
        more = f", and {count - NAMED} more" if count > NAMED else ""
        rows.append(("left out", f"{count} images that make no whole user: {names}{more}"))
    seconds = result["seconds"]["audit"]
    rows += [
        (
            "seconds",
            f"audit {seconds:.1f} ({result['images'] / seconds:.0f} images/s), validation "
            f"{result['seconds']['validation']:.1f}",
        ),
        ("result", paths.result),
        ("plots", f"{paths.roc_plot}, {paths.loss_plot}"),
    ]
    show_rows(rows, 22)

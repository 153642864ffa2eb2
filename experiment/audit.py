"""Ask a trained model about all users, and conclude.

Public: Audit, ask_users, answering, score_groups, rates, exact_losses, exact_p_values, conclude.
"""

import json
import time
from dataclasses import dataclass, field

import numpy as np
import torch

import utils
from attacks.exact import p_value, random_selections, score, statistic_grid
from experiment.setup import batch_size_of
from kit import files
from kit.environment import hardware_name, software_versions
from kit.errors import UserError

GROUPS = ("target", "control", "non_member")
# Selections of the exact test: with 19 keys p can be as low as 1 / 20,000.
EXACT_SELECTIONS = 999


@dataclass(frozen=True)
class Audit:
    """What the model answered, and its file losses.npz.

    signals: {group: {signal: float64 (users, K)}}; classes: {group: the users' labels, int64 (users,) or (users, K)};
    users: {group: `utils.Users`}, empty when it was loaded; exact: for targets and control users the losses of the
    exact test, float64 (users, K + held out, L + 1); seconds: what asking took.
    """

    settings: dict
    users: dict
    signals: dict
    seconds: float = 0.0
    exact: dict = field(default_factory=dict)
    classes: dict = field(default_factory=dict)

    def losses(self, group):
        """The chosen signal of a group, the same on both sides of every comparison: two signals have two scales."""
        return self.signals[group][self.signal]

    @property
    def signal(self):
        return utils.SIGNALS[self.settings.get("scaled_loss") or 0]

    def save(self, path, settings, **more):
        """Write losses.npz. settings: what the file says about itself; more: further arrays by name."""
        files.write_arrays(
            path,
            settings=np.array(json.dumps(settings)),
            **{f"{group}_{name}": values for group, kinds in self.signals.items() for name, values in kinds.items()},
            **{f"{group}_exact": values.astype(np.float32) for group, values in self.exact.items()},
            **{f"{group}_classes": values for group, values in self.classes.items()},
            **more,
        )

    @classmethod
    def load(cls, path):
        """Read losses.npz of train.py, eval.py or imagenet-audit.py. Raises UserError for anything else."""
        arrays = files.read_arrays(path)
        try:
            stored = json.loads(str(arrays["settings"]))
            groups = [group for group in GROUPS if f"{group}_classes" in arrays]
            signals = {group: {name: arrays[f"{group}_{name}"] for name in utils.SIGNALS} for group in groups}
            settings = {"scaled_loss": 0, "verdict_fpr": 1e-3, **stored.get("audit", stored)}
        except (KeyError, ValueError, AttributeError) as error:
            raise UserError(f"{path} has no losses of a run ({error})", advice="run the audit again") from None
        return cls(
            settings,
            {},
            signals,
            exact={group: arrays[f"{group}_exact"] for group in groups if f"{group}_exact" in arrays},
            classes={group: arrays[f"{group}_classes"] for group in groups},
        )


def ask_users(experiment, query, settings, paths, device):
    """Score target users, as many innocent control users, and the out-world; writes losses.npz.

    settings: the audit dict of `settings.resolve_settings`.
    """
    started, users = time.monotonic(), experiment.groups
    query = answering(experiment, query)
    signals = score_groups(experiment, query, users, device)
    exact = (
        {name: exact_losses(experiment, query, name, settings["exact_keys"], device) for name in ("target", "control")}
        if settings["exact_keys"]
        else {}
    )
    classes = {name: users[name].classes for name in GROUPS}
    result = Audit(settings, users, signals, time.monotonic() - started, exact, classes)
    result.save(
        paths.losses,
        {"training": experiment.settings, "audit": settings},
        **{f"{name}_samples": users[name].samples for name in GROUPS},
    )
    return result


def score_groups(experiment, query, users, device, note=""):
    """Ask a model about the users of each group, under their marks: {group: {signal: float64 (users, K)}}.

    Targets are marked on the CPU, where their published images were made: the same bits. The others where it is fast.
    """
    data, cpu = experiment.data, torch.device("cpu")
    return {
        name: utils.score_users(
            query,
            data.images,
            group,
            experiment.marking,
            cpu if name == "target" else device,
            batch_size_of(data),
            f"{name}{note}",
        )
        for name, group in users.items()
    }


def answering(experiment, query):
    """A query function that always answers, also where a countermeasure refuses: every class alike then, which tells
    as little."""
    if not experiment.countermeasure.refuses:
        return query

    def answered(images):
        logits = query(images)
        return logits.masked_fill(logits.isnan().all(dim=1, keepdim=True), 0.0)

    return answered


def exact_losses(experiment, query, group, keys, device):
    """What the exact test needs to know of a group's users: float64 (users, K + held out, keys + 1) cross-entropies.

    Beside the K samples that a user marked and published stand as many of the same class that the model has not seen,
    as if the user had held out a random half of 2K; both are marked with the user's own key (column 0) and fresh ones.
    Unmarked users have no key, and the selection is all that is tested.
    """
    users, labels = experiment.groups[group], experiment.data.labels.numpy()
    pool = experiment.splits.non_member.numpy()
    pool = pool[~experiment.data.is_test.numpy()[pool]] if group == "target" else pool
    draws, held_out = utils.key_generator(users.key, "held out"), []
    for own, label in zip(users.samples, users.classes, strict=True):
        others = np.setdiff1d(pool[labels[pool] == label], own)
        held_out.append(draws.permutation(others)[: users.samples.shape[1]])
    fewest = min(map(len, held_out))
    samples = np.concatenate([users.samples, np.stack([rows[:fewest] for rows in held_out])], axis=1)
    columns = []
    for number in range(1 + (0 if experiment.marking.changes_nothing else keys)):
        key = utils.derive_key(users.key, "fresh key", number) if number else users.key
        asked = utils.Users(samples, users.classes, key)
        columns.append(
            utils.score_users(
                query,
                experiment.data.images,
                asked,
                experiment.marking,
                device,
                batch_size_of(experiment.data),
                f"{group}, key {number}",
            )["cross_entropy"]
        )
    return np.stack(columns, axis=2)


def exact_p_values(losses, published, key):
    """p of each user of `exact_losses`, whose first `published` samples are the published ones: float64 (users,)."""
    count = 0 if losses.shape[1] == published else EXACT_SELECTIONS
    selections = random_selections(utils.key_generator(key, "selections"), losses.shape[1], published, count)
    return np.array([p_value(statistic_grid(score(-user)[:, :, None], selections, 0)[0]) for user in losses])


def conclude(experiment, query, record, answers, device):
    """Turn the answers of an audit into the figures of result.json (a JSON-ready dict)."""
    data, splits, history = experiment.data, experiment.splits, record["history"]
    audits = rates(answers.losses("target"), answers.losses("non_member"), answers.settings["fpr"])
    validation = [epoch["val_accuracy"] for epoch in history if "val_accuracy" in epoch]
    return {
        "settings": {"training": experiment.settings, "audit": answers.settings},
        "mode": "instance" if answers.settings["instance_mi"] else "set",
        "signal": answers.signal,
        "audit": audits,
        "verdict": _verdicts(answers),
        "accuracy": {
            "test": utils.accuracy(query, data.images, data.labels, 2 * batch_size_of(data), splits.test),
            "test_images": len(splits.test),
            "train": record["train_accuracy"],
            "validation": max(validation, default=None),
            "marked": float(answers.signals["target"]["correct"].mean()),
        },
        "countermeasure": record.get("countermeasure") or {},
        "seconds": {"train": record["train_seconds"], "audit": answers.seconds},
        "hardware": {"train": record["hardware"], "audit": hardware_name(device)},
        "versions": software_versions(),
    }


def rates(member, other, fprs):
    """`utils.membership_inference` of two arrays (users, K), once by users and once by samples."""
    return {kind: utils.membership_inference(member, other, kind == "instance", fprs) for kind in ("set", "instance")}


def _verdicts(answers):
    """Algorithm 1 and the exact test for every target and control user."""
    rows, detected = [], {}
    for group in ("target", "control"):
        losses, fpr = answers.losses(group), answers.settings["verdict_fpr"]
        used, threshold = utils.verify_provenance(losses, answers.losses("non_member"), fpr)
        detected[group] = int(used.sum())
        exact = (
            exact_p_values(answers.exact[group], losses.shape[1], answers.users[group].key).tolist()
            if group in answers.exact
            else [None] * len(losses)
        )
        rows += [
            {
                "user": f"{group} {number}",
                "class": int(label),
                "trained_on": group == "target",
                "mean_loss": float(loss),
                "used": bool(says),
                "exact_p": p,
            }
            for number, (label, loss, says, p) in enumerate(
                zip(answers.users[group].classes, losses.mean(axis=1), used, exact, strict=True)
            )
        ]
    return {
        "fpr": fpr,
        "threshold": threshold,
        "targets_detected": detected["target"],
        "controls_detected": detected["control"],
        "users": rows,
    }

"""Targeted mislabelled poisons (Tramer et al., "Truth Serum", CCS'22) beside MembershipTracker: Table 10 and Fig. 16.

Example: python -m baselines.mislabeled --dataset cifar100 --num_of_multiTarget_diffCls 100 --out comparison/mislabeled
For each sample (x, y) of a user, --poisons copies (x, y') with one wrong label y' go into the training set on top of
what is there. A model that has seen them says y' for x unless it has seen (x, y), too, which makes x easy to tell.
Three models on the same images and users: unmarked, poisoned, and marked by MembershipTracker.

Where the paper (appendix E) is silent: y' is drawn uniformly among the other classes, once for all copies of x (Tramer
et al.'s targeted attack); copies are added, so that the training set grows; there are 2 of each sample; and, as in
their game, the samples that the model has NOT seen with the right label, the non-members, are poisoned in the same way:
as many users outside the training set as inside, of the same classes. The rows named "strangers not poisoned" judge the
same members against users who did nothing. Instance-based with LiRA's logit-scaled loss and one threshold for the first
two, set-based cross-entropy for MembershipTracker.

Public: draw_poisons.
"""

import numpy as np
import torch

import utils
from baselines import common
from kit.cli import number
from kit.errors import run_script

# FPR@100%TPR by samples a user (Table 10).
PAPER = {
    "unmarked": {5: 0.4933, 15: 0.5479, 25: 0.5632},
    "Tramer et al.": {5: 0.1080, 15: 0.0696, 25: 0.0492},
    "MembershipTracker": {5: 0.0064, 15: 0.0, 25: 0.0},
}
INSTANCE, SET = "scaled_loss", "cross_entropy"


def draw_poisons(labels, rows, copies, classes, seed):
    """`copies` mislabelled copies of each distinct row: (rows, wrong labels), int64 (distinct rows * copies,) each.

    labels: int64 (N,) of the data set; rows: whole numbers of any shape; classes: how many there are. The wrong label
    of a row is uniform over the other classes, the same for all its copies, and follows from (seed, row) alone.
    """
    rows = np.unique(np.asarray(rows))
    words = utils.key_words(utils.derive_key(seed, "poisons"), "wrong label", np.zeros_like(rows), rows)
    steps = 1 + (words[:, 0].astype(np.uint64) * (classes - 1) >> np.uint64(32)).astype(np.int64)
    wrong = (np.asarray(labels)[rows] + steps) % classes
    return np.repeat(rows, copies), np.repeat(wrong, copies)


def instance_losses(query, setup, users, marking=utils.UNMARKED):
    """Losses of users' samples, both signals: {signal: float64 (users, K)}."""
    return utils.score_users(query, setup.data.images, users, marking, setup.device, common.BATCH)


def compare(setup, count):
    """Rows and scores with `count` samples a user."""
    members, poisoned, strangers = (
        common.with_samples(setup.groups[name], count) for name in ("target", "control", "non_member")
    )
    images, labels = common.base_images(setup)
    rows, scores = [], {}

    query, _ = common.model(setup, "unmarked", images, labels)
    scores["unmarked"] = [instance_losses(query, setup, users)[INSTANCE] for users in (members, strangers)]

    copies, wrong = draw_poisons(
        setup.data.labels,
        [members.samples, poisoned.samples],
        setup.args.poisons,
        len(setup.data.class_names),
        setup.seed,
    )
    query, _ = common.model(
        setup,
        f"poisoned, {count} samples",
        torch.cat([images, setup.data.images[torch.from_numpy(copies)]]),
        torch.cat([labels, torch.from_numpy(wrong)]),
    )
    mine, theirs, others = (instance_losses(query, setup, users)[INSTANCE] for users in (members, poisoned, strangers))
    scores["Tramer et al."] = [mine, theirs]
    clean = ~np.isin(strangers.samples, copies)
    scores["Tramer et al., strangers not poisoned"] = [mine, others[clean][:, None]]

    marked = common.published(setup, members, setup.stage.marking)
    query, _ = common.model(
        setup, f"marked, {count} samples", common.with_images(setup, images, members.samples, marked), labels
    )
    losses = [instance_losses(query, setup, users, setup.stage.marking) for users in (members, strangers)]
    scores["MembershipTracker"] = [found[SET] for found in losses]
    scores["MembershipTracker, instance-based"] = [found[INSTANCE] for found in losses]

    for name, (member, other) in scores.items():
        kind = "set" if name == "MembershipTracker" else "instance"
        paper = {"FPR@100%TPR": PAPER[name][count]} if count in PAPER.get(name, {}) else None
        rows += common.audit_rows(f"{name}, {count} samples", member, other, kind, paper=paper)
    return rows, scores


def claims(counts):
    """Appendix E's conclusions."""
    fpr = "FPR@100%TPR"
    found = []
    for count in counts:
        plain, theirs, ours = ((f"{name}, {count} samples", fpr) for name in PAPER)
        found += [
            common.claim(f"poisons lower FPR@100%TPR ({count} samples)", theirs, "<", plain),
            common.claim(
                f"poisons raise the AUC ({count} samples; Fig. 16)", (theirs[0], "AUC"), ">", (plain[0], "AUC")
            ),
            common.claim(f"MembershipTracker is below Tramer et al. ({count} samples)", ours, "<", theirs),
        ]
    if len(counts) > 1:
        low, high = min(counts), max(counts)
        found.append(
            common.claim(
                f"more poisoned samples make it better ({high} against {low})",
                (f"Tramer et al., {high} samples", fpr),
                "<",
                (f"Tramer et al., {low} samples", fpr),
            )
        )
    return found


def main():
    flags = common.parser(__doc__)
    flags.add_argument("--samples", nargs="+", type=number(int, 1), default=[5, 15, 25], help="samples a user")
    flags.add_argument("--poisons", type=number(int, 1), default=2, help="mislabelled copies of each sample")
    args = common.parse(flags, {"samples": [5, 25]}, {"samples": [3, 8]})
    setup = common.start(args, marked_samples_per_user=max(args.samples), num_of_multiTarget_diffCls=100)
    rows, arrays, found = [], {}, {}
    for count in args.samples:
        added, found[count] = compare(setup, count)
        rows += added
        for name, (member, other) in found[count].items():
            arrays |= {f"{name}|{count}|member": member, f"{name}|{count}|other": other}
    shown = 15 if 15 in found else max(found)
    common.draw_rocs(
        {
            f"Fig. 16: {shown} samples a user": {
                name: [values.mean(1) if name == "MembershipTracker" else values for values in pair]
                for name, pair in found[shown].items()
                if name != "MembershipTracker, instance-based"
            }
        },
        f"{args.out}/fig16.png",
    )
    common.finish(setup, rows, claims(args.samples), arrays)


if __name__ == "__main__":
    run_script(main)

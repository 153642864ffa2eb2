"""Two copies of each image, one published at random (Huang et al., CCS'24) beside MembershipTracker: appendix F.

Example: python -m baselines.twin_marks --dataset cifar100 --out comparison/twin_marks
An owner makes x + d and x - d of each image x, |d| <= 10/255, and publishes one that a coin chooses. The auditor
compares the model's scores of both copies pair by pair: if the model has learnt the published ones, they score higher
more often than half the time (see sequential.py). Scores are averaged over --augmentations of each query (crop and
flip, the same for both copies): the negative loss, or, label-only, how often the top label is right; ties are decided
by a coin.

One model has --owners owners for each of --shares of the training set, each with images drawn from all classes and
nobody's twice; a second model has the same images marked by MembershipTracker. Control owners, whose images were not
used, show the false detections. d moves the copies apart in the features of a network (--features, a checkpoint of
train.py; their paper takes a pretrained one): ten signed gradient steps on the distance of its outputs. Without one,
d is a Perlin sign pattern at full strength, fixed by the seed. Where a pixel is close to 0 or 255, d is cut for both
copies, so that they are always symmetrical about x.

The test's power comes from the number of pairs, and 1 % of a small training set is few of them: the rows "detection
expected" say what the share of pairs won here would give with 1 % of the paper's 25,000 images.

Public: Owners, draw_owners, twin_copies, copy_scores, won, expected_detection.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.stats import binom

import utils
from baselines import common
from baselines.sequential import decision_threshold, sequential_test
from kit import files, plots
from kit.cli import number
from kit.errors import UserError, run_script
from networks import build_network

BUDGET = 10  # in 1/255
STEPS = 10
CONTROLS = 100
ACCESS = {"probabilities": "cross_entropy", "label-only": "correct"}
PAPER_IMAGES = 25_000  # training images in the paper: a share of them is more pairs than one of a small set
PAPER = {("probabilities", 0.01): 1.0, ("probabilities", 0.002): 0.65, ("label-only", 0.002): 0.25}


@dataclass(frozen=True)
class Owners:
    """rows: int64 (owners, K), data rows; bits: int64 (owners, K), which copy each publishes: 0 is x + d."""

    rows: np.ndarray
    bits: np.ndarray


def draw_owners(pool, sizes, seed, purpose, shared=False):
    """`Owners` with sizes[i] images each, for a list of (how many owners, images of each): one `Owners` for each entry.

    pool: rows to draw from, of any class. Nobody's image is another's unless `shared`.
    """
    draws, found, used = utils.key_generator(seed, "owners", purpose), [], 0
    order = draws.permutation(np.asarray(pool))
    for owners, size in sizes:
        if shared:
            rows = np.stack([draws.choice(order, size, replace=False) for _ in range(owners)])
        else:
            if used + owners * size > len(order):
                raise UserError(
                    f"--owners {owners} with {size} images each need more than the {len(order)} training images",
                    advice="lower --owners or --shares",
                )
            rows = order[used : used + owners * size].reshape(owners, size)
            used += owners * size
        found.append(Owners(rows, draws.integers(0, 2, rows.shape)))
    return found


def twin_copies(images, rows, key, network=None, budget=BUDGET):
    """Both copies of each image: uint8 (n, 2, 3, H, W), x + d and x - d with |d| <= budget (1/255 units).

    images: uint8 (n, 3, H, W); rows: n whole numbers that decide the pattern; network: None, or a module that maps
    float images (n, 3, H, W) in 0..255 to outputs.
    """
    signs = utils.noise_fields(
        key, np.zeros(len(rows), dtype=np.int64), rows, *images.shape[-2:], utils.Marking(1.0, "perlin", 1.0)
    ).sign()
    values = images.to(torch.float32)
    limit = torch.minimum(values, 255 - values).clamp_max(budget)
    shift = signs.expand_as(values) * limit
    for _ in range(STEPS if network is not None else 0):
        shift.requires_grad_(True)
        gap = (network(values + shift) - network(values - shift)).square().sum()
        (gradient,) = torch.autograd.grad(gap, shift)
        shift = shift.detach() + gradient.sign() * budget / 4
        shift = torch.minimum(torch.maximum(shift, -limit), limit)
    shift = shift.detach().round()
    return torch.stack([values + shift, values - shift], dim=1).to(torch.uint8)


def feature_network(path):
    """The network of a checkpoint, as `twin_copies` wants it; None without a path."""
    if path is None:
        return None
    tensors, record = files.load_model(path)
    try:
        settings = record["settings"]
        model = build_network(settings["net_type"], record["classes"], settings["image_size"], "random").eval()
        model.load_state_dict(tensors)
        mean, std = (torch.tensor(record[name]).view(3, 1, 1) * 255 for name in ("mean", "std"))
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"--features {path} does not hold the network it names ({str(error).splitlines()[0]})",
            advice="give a checkpoint of train.py",
        ) from None
    return lambda values: model((values - mean) / std)


def copy_scores(query, images, labels, seed, augmentations):
    """How sure the model is of each image, higher for members: {"probabilities", "label-only"}: float64 (n,).

    images: uint8 (n, 3, H, W). The first of the augmentations is the image itself; the others are drawn from the seed,
    the same for every image.
    """
    draws, padding = utils.key_generator(seed, "audit's augmentations"), utils.TrainingSettings.crop_padding
    shifts, flips = draws.integers(0, 2 * padding + 1, (augmentations, 2)), draws.random(augmentations) < 0.5
    shifts[0], flips[0] = padding, False
    total = {name: np.zeros(len(images)) for name in ACCESS}
    for shift, flip in zip(torch.from_numpy(shifts), flips, strict=True):
        for part in torch.arange(len(images)).split(common.BATCH):
            flipped = torch.full((len(part),), bool(flip))
            seen = utils.augment(images[part], shift.expand(len(part), 2), flipped, padding)
            found = common.signals(query, seen, labels[part])
            total["probabilities"][part.numpy()] -= found["cross_entropy"]
            total["label-only"][part.numpy()] += found["correct"]
    return {name: values / augmentations for name, values in total.items()}


def won(scores, bits, seed):
    """Whether the published copy scores higher: bool like `bits`. scores: float64 (..., 2); ties go by a coin."""
    gap = np.where(bits == 0, 1, -1) * (scores[..., 0] - scores[..., 1])
    return np.where(gap == 0, utils.key_generator(seed, "ties").random(gap.shape) < 0.5, gap > 0)


def audit_twins(setup, query, groups, copies_of):
    """{access: [bool (owners, K) for each of `groups`]}: comparisons won, in the random order of the audit."""
    found = {name: [] for name in ACCESS}
    for place, owners in enumerate(groups):
        rows = owners.rows.ravel()
        labels = setup.data.labels[torch.from_numpy(rows)].repeat_interleave(2)
        scores = copy_scores(query, copies_of(rows).flatten(0, 1), labels, setup.seed, setup.args.augmentations)
        order = utils.key_generator(setup.seed, "order", place).permuted(
            np.broadcast_to(np.arange(owners.rows.shape[1]), owners.rows.shape), axis=1
        )
        for name, values in scores.items():
            wins = won(values.reshape(*owners.rows.shape, 2), owners.bits, setup.seed)
            found[name].append(np.take_along_axis(wins, order, axis=1))
    return found


def expected_detection(pairs, chance, p):
    """P(detected) when all of that many independent pairs are looked at and each is won with this chance."""
    threshold = decision_threshold(pairs, p)[0]
    return 0.0 if threshold is None else float(binom.sf(threshold - 1, pairs, chance))


def twin_rows(setup, shares, members, controls):
    """Rows of Huang et al.'s method, out of what `audit_twins` found for owners and control owners."""
    rows, p = [], setup.args.p
    for access in ACCESS:
        for share, used, unused in zip(shares, members[access], controls[access], strict=True):
            setting = f"Huang et al., {100 * share:g} % marked, {access}"
            found, false = ([sequential_test(wins, p) for wins in group] for group in (used, unused))
            paper = PAPER.get((access, share))
            pairs = round(share * PAPER_IMAGES)
            rows += [
                common.rate(setting, "detection rate", sum(one for one, _ in found), len(found), paper),
                common.rate(setting, "false-detection rate", sum(one for one, _ in false), len(false)),
                common.rate(setting, "pairs won", used.sum(), used.size),
                common.row(
                    setting,
                    f"detection expected with {pairs} pairs, as many won",
                    expected_detection(pairs, used.mean(), p),
                    paper,
                ),
                common.row(setting, "queries", 2 * setup.args.augmentations * np.mean([n for _, n in found])),
            ]
    return rows


def marked_losses(setup, query, rows, key):
    """Losses of images marked by their owners: {signal: float64 (owners, K)}. rows: int64 (owners, K)."""
    parts = []
    for start in range(0, len(rows), max(1, 4096 // rows.shape[1])):
        chosen = rows[start : start + max(1, 4096 // rows.shape[1])]
        owners, numbers = (index.ravel() for index in np.indices(chosen.shape))
        places = torch.from_numpy(chosen.ravel())
        marked = utils.mark_images(setup.data.images[places], key, start + owners, numbers, setup.stage.marking)
        found = common.signals(query, marked, setup.data.labels[places])
        parts.append({name: values.reshape(chosen.shape) for name, values in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def tracker_rows(setup, share, member, control, stranger):
    """Rows of MembershipTracker for one share; the arguments are the losses of `marked_losses`."""
    rows = []
    for access, signal in ACCESS.items():
        sign = 1 if signal == "cross_entropy" else -1  # `correct` is higher for members
        losses = [sign * found[signal] for found in (member, control, stranger)]
        for fpr in (setup.args.p, 1e-3):
            (used, _), (accused, _) = (utils.verify_provenance(found, losses[2], fpr) for found in losses[:2])
            setting = f"MembershipTracker at {100 * fpr:g} % FPR, {100 * share:g} % marked, {access}"
            rows += [
                common.rate(setting, "detection rate", used.sum(), len(used)),
                common.rate(setting, "false-detection rate", accused.sum(), len(accused)),
            ]
    return rows


def track(setup, shares, owners, controls):
    """MembershipTracker on the same images: mark, train, audit."""
    images, labels = common.base_images(setup)
    keys = [utils.derive_key(setup.seed, "owners' marks", place) for place in range(len(shares))]
    for group, key in zip(owners, keys, strict=True):
        who, numbers = (index.ravel() for index in np.indices(group.rows.shape))
        originals = setup.data.images[torch.from_numpy(group.rows.ravel())]
        images = common.with_images(
            setup, images, group.rows, utils.mark_images(originals, key, who, numbers, setup.stage.marking)
        )
    query, _ = common.model(setup, "marked by MembershipTracker", images, labels)
    rows, arrays = [], {}
    strangers = draw_owners(
        setup.splits.non_member,
        [(setup.audit["num_of_non_member_user"], group.rows.shape[1]) for group in owners],
        setup.seed,
        "strangers",
        shared=True,
    )
    for share, key, *groups in zip(shares, keys, owners, controls, strangers, strict=True):
        # Other keys for those who published nothing: user numbers count from 0 in every group.
        found = [
            marked_losses(setup, query, group.rows, utils.derive_key(key, place))
            if place
            else marked_losses(setup, query, group.rows, key)
            for place, group in enumerate(groups)
        ]
        rows += tracker_rows(setup, share, *found)
        arrays |= {
            f"tracker|{share:g}|{name}": losses["cross_entropy"]
            for name, losses in zip(("member", "control", "other"), found, strict=True)
        }
    return rows, arrays


def claims(shares):
    """Appendix F's conclusions, and the guarantee of the sequential test."""

    def detection(method, share, access="probabilities"):
        return f"{method}, {100 * share:g} % marked, {access}", "detection rate"

    most, tracker = max(shares), "MembershipTracker at 5 % FPR"
    found = [
        common.claim(f"Huang et al. detect every owner at {100 * most:g} %", detection("Huang et al.", most), ">=", 1.0)
    ]
    for share in sorted(set(shares) - {most}, reverse=True):
        theirs = detection("Huang et al.", share)
        found += [
            common.claim(f"at {100 * share:g} % they detect fewer", theirs, "<", detection("Huang et al.", most)),
            common.claim(
                f"at {100 * share:g} % MembershipTracker detects more", detection(tracker, share), ">", theirs
            ),
        ]
        if ("label-only", share) in PAPER:
            found.append(
                common.claim(
                    f"at {100 * share:g} % label-only is worse",
                    detection("Huang et al.", share, "label-only"),
                    "<",
                    theirs,
                )
            )
    return found + [
        common.claim(
            f"false detections at most 5 % ({100 * share:g} %, {access})",
            (detection("Huang et al.", share, access)[0], "false-detection rate"),
            "<=",
            0.05,
        )
        for share in shares
        for access in ACCESS
    ]


def draw(shares, rows, members, controls, p, path):
    """Detection rates by share, and the share of pairs that each owner wins."""
    figure, axes = plots.figure_of(1, 2, (11, 4.6))
    left, right = axes[0]
    kinds = [
        (name, access)
        for name in ("Huang et al.", f"MembershipTracker at {100 * p:g} % FPR", "MembershipTracker at 0.1 % FPR")
        for access in ACCESS
    ]
    found = {one["setting"]: one for one in rows if one["figure"] == "detection rate"}
    for place, (name, access) in enumerate(kinds):
        shown = [found[f"{name}, {100 * share:g} % marked, {access}"] for share in shares]
        value, low, high = np.array([[one["value"], *one["interval"]] for one in shown]).T
        # Side by side, because many rates are 0 or 1.
        left.errorbar(
            np.arange(len(shares)) + 0.1 * (place - 2.5),
            value,
            [value - low, high - value],
            marker="o",
            capsize=3,
            linestyle="none",
            color=f"C{place // 2}",
            label=f"{name}, {access}",
            fillstyle="none" if place % 2 else "full",
        )
    left.set(ylabel="owners detected", ylim=(-0.03, 1.05))
    jitter = np.random.default_rng(0)
    for place in range(len(shares)):
        for groups, color, shift, name in (
            (members, plots.MEMBER_COLOR, -0.15, "owners, images used"),
            (controls, plots.NON_MEMBER_COLOR, 0.15, "owners, images not used"),
        ):
            wins = groups["probabilities"][place].mean(1)
            right.plot(
                place + shift + jitter.uniform(-0.08, 0.08, len(wins)),
                wins,
                ".",
                color=color,
                alpha=0.6,
                label=None if place else name,
            )
        count = members["probabilities"][place].shape[1]
        threshold = decision_threshold(count, p)[0]
        if threshold is not None:
            right.hlines(
                threshold / count,
                place - 0.35,
                place + 0.35,
                color="black",
                linewidth=1.2,
                label=None if place else f"needed for p <= {p:g}",
            )
    right.set(ylabel="share of pairs won by the published copy", ylim=(-0.03, 1.03))
    names = [
        f"{100 * share:g} %\n({wins.shape[1]} images)"
        for share, wins in zip(shares, members["probabilities"], strict=True)
    ]
    for axis in axes[0]:
        axis.set(xticks=range(len(shares)), xticklabels=names, xlabel="marked by each owner")
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    plots.save_figure(figure, path)


def main():
    flags = common.parser(__doc__)
    flags.add_argument(
        "--shares",
        nargs="+",
        type=number(float, above=0, high=0.5),
        default=[0.01, 0.002, 0.001],
        help="marked share of the training set for each owner",
    )
    flags.add_argument("--owners", type=number(int, 1), default=5, help="owners of each share in one model")
    flags.add_argument("--augmentations", type=number(int, 1), default=16, help="of each query")
    flags.add_argument("--p", type=number(float, above=0, high=0.5), default=0.05, help="false-detection rate")
    flags.add_argument("--features", help="checkpoint of the network whose features the copies shall differ in")
    args = common.parse(flags, {"owners": 10})
    setup = common.start(args, marked_samples_per_user=1, num_of_multiTarget_diffCls=1)
    sizes = [(args.owners, max(1, round(share * len(setup.splits.train)))) for share in args.shares]
    owners = draw_owners(setup.splits.train, sizes, setup.seed, "owners")
    controls = draw_owners(
        setup.splits.non_member, [(CONTROLS, size) for _, size in sizes], setup.seed, "controls", shared=True
    )
    network, key = feature_network(args.features), utils.derive_key(setup.seed, "twins")
    copies_of = partial(_copies, setup, key, network)

    images, labels = common.base_images(setup)
    for group in owners:
        copies = copies_of(group.rows.ravel())
        images = common.with_images(
            setup, images, group.rows, copies[torch.arange(len(copies)), torch.from_numpy(group.bits.ravel())]
        )
    query, _ = common.model(setup, "one copy of each image", images, labels)
    members, unused = (audit_twins(setup, query, groups, copies_of) for groups in (owners, controls))
    rows, arrays = track(setup, args.shares, owners, controls)
    rows = twin_rows(setup, args.shares, members, unused) + rows
    arrays |= {
        f"wins|{access}|{share:g}|{name}": wins
        for name, found in (("owner", members), ("control", unused))
        for access in ACCESS
        for share, wins in zip(args.shares, found[access], strict=True)
    }
    draw(args.shares, rows, members, unused, args.p, f"{args.out}/detection.png")
    common.finish(
        setup,
        rows,
        claims(args.shares),
        arrays,
        [
            f"{100 * share:g} %: {size} images each, {decision_threshold(size, args.p)[0]} wins needed"
            for share, (_, size) in zip(args.shares, sizes, strict=True)
        ],
    )


def _copies(setup, key, network, rows):
    parts = [
        twin_copies(setup.data.images[torch.from_numpy(part)], part, key, network)
        for part in np.array_split(rows, max(1, len(rows) // common.BATCH))
    ]
    return torch.cat(parts)


if __name__ == "__main__":
    run_script(main)

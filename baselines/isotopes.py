"""Data isotopes (Wenger et al., PETS'24) beside MembershipTracker: appendix D, Alg. 2 and Fig. 14.

Example: python -m baselines.isotopes --dataset cifar100 --num_of_multiTarget_diffCls 100 --out comparison/isotopes
Each user blends one outlier image of another data set into all own images: m * x + (1 - m) * o, no noise. One model for
each blending ratio m, on the same users and images as the unmarked model and MembershipTracker's.

Their verification. Auxiliary images outside the user's class are shown to the model with the target feature and with a
feature that nobody used; a paired t-test (one-sided, at --significance) asks whether the first gives the user's class a
higher probability; it is made --rounds times, with other auxiliary images, and the feature counts as used when the
share of positive tests is at least --positive. Alg. 2 of MembershipTracker's paper:

    line 1      target against non-target: positive is a true positive
    line 2      non-target against target: what Wenger et al. counted as false positives. The target's effect itself
                holds it at 0: nothing is learnt about a feature that nobody used.
    line 3      one non-target feature against another: a false positive is what an innocent model is accused of
    lines 4-10  a threshold from non-target features alone, at a false-positive rate that one chooses: here on the t
                statistic over all auxiliary images against the same non-target features

Realigned for membership inference (Fig. 14), the losses of the users' samples are compared with those of strangers,
who blend in other outlier images: instance-based, as in the paper's curves for them (MembershipTracker's is set-based,
"another key component"), and set-based, too.

Where the papers are silent: 5 rounds of 100 auxiliary images; 0.6 is their default blending ratio (0.4 of the outlier
image). --ood_pattern is where outlier images come from (default tinyimagenet; "photos": the embedded ones, for a first
look without any data set).

Public: effect_of_features, verify, t_statistics.
"""

from functools import partial

import numpy as np
import torch
from scipy.stats import ttest_rel

import utils
from baselines import common
from dataset import load_dataset, load_outlier_bank
from kit import plots
from kit.cli import number
from kit.errors import UserError, run_script

SIGNIFICANCES = (0.1, 1e-2, 1e-4, 1e-6, 1e-8)
# Lines 1, 2 and 3 at the default significance, line 3 at 1e-8 (appendix D: CIFAR-100, 50 classes, 50 features).
PAPER = {("true", 0.1): 0.9963, ("claimed", 0.1): 0.0, ("false", 0.1): 0.358, ("false", 1e-8): 0.019}
PAPER_AUC = {"unmarked": 0.7927, "isotopes": 0.9253}
DEFAULT_RATIO = 0.6
KINDS = {
    "true": "true positives (line 1)",
    "claimed": "false positives as claimed (line 2)",
    "false": "false positives, corrected (line 3)",
}


def blended(images, feature, ratio):
    """Images uint8 (n, 3, H, W) with one feature, uint8 (3, H, W), blended in (Eq. 1 without noise)."""
    marking = utils.Marking(ratio, "none", 0, feature[None])
    return utils.mark_images(images, 0, np.zeros(len(images), dtype=np.int64), range(len(images)), marking)


def effect_of_features(query, auxiliary, features, ratio):
    """Probability of every class with each feature: float64 (features, auxiliary images, classes).

    auxiliary: uint8 (n, 3, H, W); features: uint8 (F, 3, H, W).
    """
    found = []
    for feature in features:
        logits = [query(blended(part, feature, ratio)).double().cpu() for part in auxiliary.split(common.BATCH)]
        found.append(torch.cat(logits).softmax(1).numpy())
    return np.stack(found)


def verify(first, second, significances, positive):
    """Whether `first` is said to be used: bool (tests, significances).

    first, second: float64 (tests, rounds, images), the class's probability with the tested and with the other feature
    on the same images. A round is positive when the paired t-test (one-sided) has p below the significance, a test
    when at least a share `positive` of its rounds is. No difference at all, t = 0 / 0, is no evidence.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.nan_to_num(ttest_rel(first, second, axis=2, alternative="greater").pvalue, nan=1.0)
    return (p[..., None] < np.asarray(significances)).mean(1) >= positive - 1e-9


def t_statistics(first, second):
    """Paired t of float64 (..., images) arrays: (...,), 0 where nothing differs."""
    gap = first - second
    spread = gap.std(axis=-1, ddof=1) / np.sqrt(gap.shape[-1])
    return np.divide(gap.mean(-1), spread, out=np.zeros(gap.shape[:-1]), where=spread > 0)


def compare_features(probability, labels, classes, args, seed):
    """Alg. 2 on the features of all users: {kind: bool (tests, significances)}, {"true", "false": t statistics}.

    probability: float64 (users + F, n, classes) of `effect_of_features`, the users' own features first; labels: int64
    (n,) of the auxiliary images; classes: int64 (users,).
    """
    users, levels = len(classes), (args.significance, *SIGNIFICANCES)
    positives, statistics = {kind: [] for kind in KINDS}, {"true": [], "false": []}
    half = (len(probability) - users) // 2
    for user, label in enumerate(classes):
        eligible = np.flatnonzero(labels != label)
        draws = utils.key_generator(seed, "auxiliary images", user)
        drawn = np.stack([draws.choice(eligible, args.auxiliary, replace=False) for _ in range(args.rounds)])
        values = probability[:, drawn, label]  # (features, rounds, images)
        target, tested, other = values[user : user + 1], values[users : users + half], values[users + half :]
        # Two disjoint sets of non-target features, one against one, in both orders: "interchangeable" in the paper.
        pairs = {
            "true": (target, values[users:]),
            "claimed": (values[users:], target),
            "false": (np.concatenate([tested, other[:half]]), np.concatenate([other[:half], tested])),
        }
        for kind, (first, second) in pairs.items():
            first, second = np.broadcast_arrays(first, second)
            positives[kind].append(verify(first, second, levels, args.positive))
        whole = probability[:, eligible, label]
        against = whole[users + half :]
        statistics["true"].append(t_statistics(whole[user], against))
        statistics["false"].append(t_statistics(whole[users : users + half, None], against[None]).ravel())
    return {kind: np.concatenate(found) for kind, found in positives.items()}, {
        kind: np.concatenate(found) for kind, found in statistics.items()
    }


def verification_rows(setting, positives, statistics, args, is_default):
    """Rows of their verification at one blending ratio; `is_default`: the one that the paper's figures are for."""
    rows = []
    for place, level in enumerate((args.significance, *SIGNIFICANCES)):
        if place and level == args.significance:
            continue
        for kind, name in KINDS.items():
            found = positives[kind][:, place]
            paper = PAPER.get((kind, level)) if is_default else None
            rows.append(common.rate(f"{setting}, significance {level:g}", name, found.sum(), len(found), paper))
    tested, fpr = (
        utils.membership_inference(
            -statistics["true"][:, None], -statistics["false"][:, None], True, (0.1, 0.01, 1e-3)
        ),
        "lines 4-10",
    )
    for point in tested["tpr_at_fpr"]:
        rows.append(
            common.rate(
                f"{setting}, {fpr}",
                f"TPR@{100 * point['fpr']:g}%FPR",
                round(point["tpr"] * tested["members"]),
                tested["members"],
            )
        )
    return [*rows, common.row(f"{setting}, {fpr}", "AUC", tested["auc"])]


def load_bank(args, setup):
    """Outlier images in a random order, uint8 (B, 3, H, W): the users', then non-target ones, then strangers'."""
    height, width = setup.data.images.image_shape[1:]
    if args.outlier_source == "photos":
        photos = load_dataset("photos")
        # Where these are the data themselves, at least crops that nobody is trained on.
        bank = photos.images[
            setup.splits.non_member if setup.data.name == "photos" else torch.arange(len(photos.labels))
        ]
        bank = (
            bank
            if bank.shape[-2:] == (height, width)
            else torch.nn.functional.interpolate(bank.float(), (height, width), mode="bilinear", antialias=True)
            .round()
            .to(torch.uint8)
        )
    else:
        bank = load_outlier_bank(args.outlier_source, height, width, args.data_root)
    needed = len(setup.groups["target"]) + args.features + 1
    if len(bank) < needed:
        raise UserError(
            f"--ood_pattern {args.outlier_source} has {len(bank)} images, but {needed} are needed",
            advice="lower --features or the number of users",
        )
    order = utils.key_generator(setup.seed, "outlier images").permutation(len(bank))
    return bank[torch.from_numpy(order)]


def audit_isotopes(setup, bank, ratio):
    """(verification: (positives, statistics), membership: losses of users and strangers) at one blending ratio."""
    users, args = setup.groups["target"], setup.args
    images, labels = common.base_images(setup)
    count = len(users)
    own = torch.cat(
        [
            blended(setup.data.images[torch.from_numpy(rows)], bank[user], ratio)
            for user, rows in enumerate(users.samples)
        ]
    )
    query, _ = common.model(
        setup, f"isotopes, m = {ratio:g}", common.with_images(setup, images, users.samples, own), labels
    )
    member = common.signals(query, own, torch.from_numpy(np.repeat(users.classes, users.samples.shape[1])))
    strangers = utils.score_users(
        query,
        setup.data.images,
        setup.groups["non_member"],
        utils.Marking(ratio, "none", 0, bank[count + args.features :]),
        setup.device,
        common.BATCH,
    )
    chosen = utils.key_generator(setup.seed, "auxiliary pool").permutation(setup.splits.non_member)[
        : 4 * args.auxiliary
    ]
    probability = effect_of_features(
        query, setup.data.images[torch.from_numpy(chosen)], bank[: count + args.features], ratio
    )
    found = compare_features(
        probability, setup.data.labels[torch.from_numpy(chosen)].numpy(), users.classes, args, setup.seed
    )
    return found, ({name: values.reshape(users.samples.shape) for name, values in member.items()}, strangers)


def audit_plain(setup, marking, name):
    """Losses of users and strangers in the unmarked model, or in MembershipTracker's."""
    images, labels = common.base_images(setup)
    users = setup.groups["target"]
    if not marking.changes_nothing:
        images = common.with_images(setup, images, users.samples, common.published(setup, users, marking))
    query, _ = common.model(setup, name, images, labels)
    return [
        utils.score_users(query, setup.data.images, setup.groups[group], marking, setup.device, common.BATCH)
        for group in ("target", "non_member")
    ]


def claims(ratios, significance):
    """Appendix D's conclusions, at the default blending ratio (or the nearest to it)."""
    default = min(ratios, key=lambda ratio: abs(ratio - DEFAULT_RATIO))
    usual, strict = (f"isotopes, m = {default:g}, significance {level:g}" for level in (significance, 1e-8))
    found = [
        common.claim("their own computation finds no false positives", (usual, KINDS["claimed"]), "<=", 0.01),
        common.claim(
            "which understates what innocent models are accused of",
            (usual, KINDS["claimed"]),
            "<",
            (usual, KINDS["false"]),
        ),
        common.claim("corrected, more than 30 % false positives", (usual, KINDS["false"]), ">", 0.3),
        common.claim("a tighter significance lowers them", (strict, KINDS["false"]), "<", (usual, KINDS["false"])),
        common.claim("at the price of true positives", (strict, KINDS["true"]), "<", (usual, KINDS["true"])),
        common.claim(
            "isotopes raise the AUC of membership inference",
            (f"isotopes, m = {default:g}, instance-based", "AUC"),
            ">",
            ("unmarked, instance-based", "AUC"),
        ),
    ]
    for ratio in ratios:
        found += [
            common.claim(
                f"MembershipTracker (set) has fewer FPR@100%TPR than isotopes ({kind}, m = {ratio:g})",
                ("MembershipTracker, set-based", "FPR@100%TPR"),
                "<",
                (f"isotopes, m = {ratio:g}, {kind}-based", "FPR@100%TPR"),
            )
            for kind in ("instance", "set")
        ]
    if len(ratios) > 1:
        low, high = (f"isotopes, m = {ratio:g}, instance-based" for ratio in (min(ratios), max(ratios)))
        found.append(common.claim("stronger marking helps membership inference", (low, "AUC"), ">", (high, "AUC")))
    return found


def draw_trade_off(ratios, verified, args, path):
    """True and false positives over the significance level, for each blending ratio."""
    levels = sorted(SIGNIFICANCES)
    figure, axes = plots.figure_of(1, len(ratios), (4.4 * len(ratios) + 0.4, 4.2))
    for axis, ratio in zip(axes[0], ratios, strict=True):
        for kind, color in zip(KINDS, (plots.MEMBER_COLOR, "#999999", plots.NON_MEMBER_COLOR), strict=True):
            found = verified[ratio][0][kind][:, 1:].mean(0)
            axis.plot(levels, found[::-1], "o-", color=color, label=KINDS[kind])
        axis.set(
            xscale="log",
            ylim=(-0.03, 1.03),
            xlabel="significance level of the t-test",
            ylabel="rate",
            title=f"m = {ratio:g}, positive from {100 * args.positive:g} % of {args.rounds} rounds",
        )
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    plots.save_figure(figure, path)


def draw_images(setup, bank, ratios, path):
    """Fig. 15: the first users' images as published by either method."""
    users = setup.groups["target"]
    shown = range(min(4, len(users)))
    originals = setup.data.images[torch.from_numpy(users.samples[list(shown), 0])]
    rows = [
        ("original", originals),
        ("MembershipTracker", utils.mark_images(originals, users.key, shown, [0] * len(shown), setup.stage.marking)),
    ]
    rows += [
        (f"isotopes, {ratio:g}", torch.cat([blended(originals[user : user + 1], bank[user], ratio) for user in shown]))
        for ratio in ratios
    ]
    figure, axes = plots.figure_of(len(shown), len(rows), (1.5 * len(rows), 1.5 * len(shown) + 0.3))
    for column, (name, images) in enumerate(rows):
        axes[0, column].set_title(name, fontsize=9)
        for place, image in enumerate(images):
            axes[place, column].imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes[place, column].set(xticks=[], yticks=[])
    plots.save_figure(figure, path)


def read_flags():
    flags = common.parser(__doc__)
    flags.add_argument(
        "--ratios",
        nargs="+",
        type=number(float, 0, 1),
        default=[0.5, 0.6, 0.7, 0.8, 0.9],
        help="blending ratios, one model each",
    )
    flags.add_argument("--features", type=number(int, 2), default=50, help="non-target features")
    flags.add_argument("--auxiliary", type=number(int, 2), default=100, help="auxiliary images of a round")
    flags.add_argument("--rounds", type=number(int, 1), default=5, help="t-tests of a verification")
    flags.add_argument("--significance", type=number(float, 0, 1), default=0.1)
    flags.add_argument("--positive", type=number(float, 0, 1), default=0.6, help="share of rounds for a positive")
    args = common.parse(flags, {"ratios": [0.5, 0.6], "features": 20}, {"ood_pattern": "photos"})
    # MembershipTracker keeps its stripes here: the flag names the isotopes' outlier images only.
    args.outlier_source, args.ood_pattern = args.ood_pattern or "tinyimagenet", None
    return args


def main():
    args = read_flags()
    setup = common.start(args, marked_samples_per_user=25, num_of_multiTarget_diffCls=100)
    bank = load_bank(args, setup)
    losses = {
        "unmarked": audit_plain(setup, utils.UNMARKED, "unmarked"),
        "MembershipTracker": audit_plain(setup, setup.stage.marking, "MembershipTracker"),
    }
    verified, rows = {}, []
    for ratio in args.ratios:
        name = f"isotopes, m = {ratio:g}"
        verified[ratio], losses[name] = audit_isotopes(setup, bank, ratio)
        rows += verification_rows(name, *verified[ratio], args, ratio == DEFAULT_RATIO)
    curves = {"instance": {}, "set": {}}
    for name, (member, other) in losses.items():
        auc = (
            PAPER_AUC["unmarked"]
            if name == "unmarked"
            else PAPER_AUC["isotopes"]
            if name == f"isotopes, m = {DEFAULT_RATIO:g}"
            else None
        )
        for kind, signal, score in (
            ("instance", "scaled_loss", np.ravel),
            ("set", "cross_entropy", partial(np.mean, axis=1)),
        ):
            paper = {"AUC": auc} if kind == "instance" else {"FPR@100%TPR": 0.0} if name == "MembershipTracker" else {}
            rows += common.audit_rows(f"{name}, {kind}-based", member[signal], other[signal], kind, paper=paper)
            curves[kind][f"{name} ({kind})"] = [score(found[signal]) for found in (member, other)]
    tracker = "MembershipTracker (set)"
    curves["instance"] = {tracker: curves["set"][tracker], **curves["instance"]}
    common.draw_rocs(
        {
            "Fig. 14: MembershipTracker set-based, others by instance": curves["instance"],
            "all set-based": curves["set"],
        },
        f"{args.out}/fig14.png",
    )
    draw_trade_off(args.ratios, verified, args, f"{args.out}/trade-off.png")
    draw_images(setup, bank, args.ratios, f"{args.out}/fig15.png")
    arrays = {
        f"{name}|{group}|{signal}": found[signal].astype(np.float32)
        for name, pair in losses.items()
        for group, found in zip(("member", "other"), pair, strict=True)
        for signal in utils.SIGNALS
    }
    arrays |= {
        f"isotopes, m = {ratio:g}|t|{kind}": values
        for ratio, (_, found) in verified.items()
        for kind, values in found.items()
    }
    common.finish(setup, rows, claims(args.ratios, args.significance), arrays)


if __name__ == "__main__":
    run_script(main)

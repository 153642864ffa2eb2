"""LiRA without and with shadow models on unmarked images (Carlini et al., S&P'22): section 4.1 and Fig. 3.

Example: python -m baselines.lira --dataset cifar100 --train_size 50000 --val_portion 0 --out comparison/lira
--models networks are each trained on their half of the training images, in complementary pairs; every one of them is
the target once, and the others but its complement are its shadow models (two queries an image: itself and mirrored).
Without shadow models one threshold on the logit-scaled confidence of the image serves for all; with them, each image
has a test of its own: online (shadow models with and without it) and offline (only those without).

Models are kept in --work one by one, so that an interrupted run goes on with the next.
"""

import numpy as np
import torch

from attacks import lira, membership
from attacks.evaluation import evaluate
from baselines import common
from kit.cli import number
from kit.errors import UserError, run_script
from kit.progress import Progress

# FPR@100%TPR without and with 128 shadow models, and TPR@0.1%FPR with them (the text beside Fig. 3).
PAPER = {
    ("without shadow models", "FPR@100%TPR"): 0.7532,
    ("online", "FPR@100%TPR"): 0.6462,
    ("online", "TPR@0.1%FPR"): 0.2721,
}
FPR = 1e-3
# Carlini et al. find one variance for all records better where shadow models are fewer.
PER_SAMPLE_FROM = 64


def confidences(setup, matrix):
    """Logit-scaled confidences of every model, trained where it isn't there yet: float64 (models, 2, records).

    matrix: bool (models, records), who trains on what. Query 0 is the image, query 1 its mirror image.
    """
    images, labels = common.base_images(setup)
    found = np.empty((len(matrix), 2, len(labels)))
    for place, chosen in enumerate(Progress(torch.from_numpy(matrix), "shadow models", leave=True)):
        query, _ = common.model(setup, f"model {place}", images[chosen], labels[chosen], 1000 * setup.seed + place)
        for turn, shown in enumerate((images, images.flip(3))):
            found[place, turn] = -common.signals(query, shown, labels)["scaled_loss"]
    return found


def attack(scaled, matrix, variance):
    """Scores of every model as target: {attack: float64 (models, records)}, higher for members."""
    scores = {"without shadow models": [], "online": [], "offline": []}
    for fold in membership.leave_one_out(matrix):
        target, others, references = scaled[fold.target], scaled[fold.references], matrix[fold.references]
        scores["without shadow models"].append(lira.global_threshold(target[0]))
        scores["online"].append(lira.online(target, others, references, variance))
        scores["offline"].append(lira.offline(target, others, references, variance))
    return {name: np.stack(values) for name, values in scores.items()}


def rows_of(name, scores, matrix):
    """Rows of one attack: counts summed over the targets, each with its own threshold."""
    found = [evaluate(values, members, (FPR,), resamples=1) for values, members in zip(scores, matrix, strict=True)]
    hits = [round(one["tpr_at_fpr"][0]["tpr"] * one["members"]) for one in found]
    setting, caught = f"LiRA, {name}", f"TPR@{100 * FPR:g}%FPR"
    return [
        common.rate(
            setting,
            "FPR@100%TPR",
            sum(one["false_positives"] for one in found),
            sum(one["non_members"] for one in found),
            PAPER.get((name, "FPR@100%TPR")),
        ),
        common.rate(setting, caught, sum(hits), sum(one["members"] for one in found), PAPER.get((name, caught))),
        common.row(setting, "AUC", np.mean([one["auc"] for one in found])),
    ]


def claims():
    """Section 4.1's conclusions."""
    plain, fpr, tpr = "LiRA, without shadow models", "FPR@100%TPR", f"TPR@{100 * FPR:g}%FPR"
    return [
        common.claim("no shadow models: more than 50 % FPR at 100 % TPR", (plain, fpr), ">", 0.5),
        common.claim("with shadow models: still more than 50 %", ("LiRA, online", fpr), ">", 0.5),
        common.claim("shadow models lower FPR@100%TPR", ("LiRA, online", fpr), "<", (plain, fpr)),
        common.claim("shadow models find members at 0.1 % FPR", ("LiRA, online", tpr), ">", (plain, tpr)),
    ]


def main():
    flags = common.parser(__doc__)
    flags.add_argument("--models", type=number(int, 6), default=128, help="networks, an even number (default 128)")
    args = common.parse(flags, {"models": 16, "train_size": 2000}, {"train_size": 1000})
    if args.models % 2:
        raise UserError(f"--models {args.models}: they come in complementary pairs", advice="give an even number")
    setup = common.start(args, marked_samples_per_user=1, num_of_multiTarget_diffCls=1, num_of_non_member_user=1)
    matrix = membership.balanced(args.models, len(setup.splits.train), setup.seed)
    variance = "per_sample" if args.models >= PER_SAMPLE_FROM else "fixed"
    scores = attack(confidences(setup, matrix), matrix, variance)
    rows = [one for name, values in scores.items() for one in rows_of(name, values, matrix)]
    # Low scores mean "in" to draw_rocs, as losses do; one target, as in the paper.
    common.draw_rocs(
        {
            "Fig. 3: one target": {
                f"LiRA, {name}": (-values[0, matrix[0]], -values[0, ~matrix[0]]) for name, values in scores.items()
            }
        },
        f"{args.out}/fig3.png",
    )
    common.finish(
        setup,
        rows,
        claims(),
        {"membership": matrix, **{name: values.astype(np.float32) for name, values in scores.items()}},
        [f"{args.models} models, {variance} variance, every model as target once"],
    )


if __name__ == "__main__":
    run_script(main)

"""Against an owner who knows the tool: who is still found by marked queries, and who by the plain originals?

Example: python -m studies.owner --data_root CIFAR10_FOLDER --out results/owner
Users publish a random half of their photos, marked. An audit of a marked record has two arms, both fixed before any
answer is seen, each at alpha / 2: the exact test on marked queries (keys and selections), and the exact test on the
same photos unmarked, with the selections alone; both in the usual views, less what a reference on as many other images
explains (`data_marking.py --plain_arm --reference`). Each countermeasure of `countermeasures/` that is aimed at
the marks is tried on the same users and training images; found is who either arm finds.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

import countermeasures
import utils
from attacks import exact
from attacks.difficulty import taken_out
from countermeasures.base import Countermeasure
from experiment import training
from kit import files, plots
from kit.errors import run_script
from kit.tables import markdown
from provenance.grid import scores_of
from provenance.plan import VIEWS
from studies import answers, common
from suspects.suspect import Answers

DEFENCES = {
    "none": None,
    "queries de-striped": "destripe_queries",
    "flagged queries answered uniformly": "refuse_marked:answers=uniform",
    "flagged queries not answered": "refuse_marked:answers=none",
    "training images de-striped": "destripe_training",
    "training images and queries de-striped": "destripe_training:queries=true",
}
TESTED = 2000  # test images, for accuracy and false alarms


@dataclass
class Owner:
    """As much of an `experiment.training.TrainingJob` as these countermeasures look at; `query` is there after `fit`.

    images, labels: the training images, uint8 (N, 3, H, W) and int64 (N,), the users' published ones among them.
    """

    args: object
    device: torch.device
    images: torch.Tensor
    labels: torch.Tensor
    classes: int
    seed: int
    clean_images: torch.Tensor
    model: None = None
    learned: dict = field(default_factory=dict)
    query: object = None

    def clean(self):
        return self.clean_images, None

    def fit(self, model, images=None, hooks=None):
        images = self.images if images is None else images
        digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()[:12]
        path = f"{self.args.work}/owner-{self.seed}-{digest}.safetensors"  # owners of equal images share the model
        self.query, record = training.train_on(
            path, images, self.labels, self.classes, self.seed, self.device, epoch=self.args.epoch
        )
        return record["history"]


def defended(data, cohort, seed, text, args, device):
    """What the owner of a model of this cohort's images answers, under a countermeasure (None, or as on a command
    line): a query function."""
    defence = countermeasures.parse(text) if text else Countermeasure()
    images, labels = common.published_images(data, cohort)
    # Nobody else's: the users and all training images are of the other half.
    clean = utils.key_generator("studies", "owner's clean images", seed).permutation(common.halves(data)[0])
    clean = torch.from_numpy(clean[: round(defence.clean_share * len(images))])
    owner = Owner(args, device, images, labels, len(data.class_names), seed, data.images[clean])
    defence.train(owner)
    defence.after(owner)
    return defence.answer(owner.query, seed, owner.learned)


def p_of(logits, beside, selections, label):
    """p of one arm; 1 where the model answered nothing, as nothing can be said then. logits, beside: of the model and
    of the reference, float32 (n, keys, views, C)."""
    if np.isnan(logits).all():
        return 1.0
    scores, reference = (
        scores_of(Answers(some.reshape(-1, some.shape[3])), len(some), some.shape[3], label, some.shape[2])[0]
        for some in (logits, beside)
    )
    left = taken_out(scores, reference[None, :, :, label])
    return exact.p_value(exact.statistic_grid(left, selections, label)[0])


def audit(queries, data, record, rows, label, args):
    """Both arms for one user: p of each, and how many of the queries got no answer, or one that says nothing. queries:
    {"owner" and "reference": query function}."""
    originals, found, drawn = data.images[torch.from_numpy(rows)], {}, record.selections(args.selections)
    arms = {"marked": (record.settings, args.keys), "plain": (common.UNCHANGED, 0)}
    for arm, (settings, keys) in arms.items():
        kind = common.Kind(settings, views=args.views)
        asked = common.ask_views(queries, originals, [key for (key,) in record.keys(keys)], kind)
        logits = asked["owner"]
        found |= {
            f"{arm}_p": p_of(logits, asked["reference"], drawn, label),
            f"{arm}_refused": float((np.isnan(logits) | (logits == 0)).all(axis=3).mean()),
        }
    return found


def of_test_images(query, data):
    """Accuracy on test images, and the share of them that was refused; None without test images."""
    rows = torch.from_numpy(np.flatnonzero(data.is_test.numpy())[:: max(1, int(data.is_test.sum()) // TESTED)])
    if not len(rows):
        return {"accuracy": None, "refused": None}
    answers = torch.cat([query(data.images[part]).cpu() for part in rows.split(1024)])
    empty = (answers.isnan() | (answers == 0)).all(dim=1)
    right = (answers.argmax(1) == data.labels[rows]) & ~empty
    return {"accuracy": right.double().mean().item(), "refused": empty.double().mean().item()}


def shares(table, alpha):
    """How many of the audits in `table` (columns marked_p, plain_p) find the user, by each arm and by either."""
    marked, plain = table.marked_p, table.plain_p
    hits = {
        "marked queries alone, alpha": marked <= alpha,
        "marked queries, alpha / 2": marked <= alpha / 2,
        "plain originals, alpha / 2": plain <= alpha / 2,
        "either": (marked <= alpha / 2) | (plain <= alpha / 2),
    }
    return {name: common.rate(found.sum(), len(table)) for name, found in hits.items()}


def mean(values):
    """The mean of numbers, or "-" where there are none, as a percentage."""
    values = [value for value in values if value is not None]
    return f"{100 * np.mean(values):.1f} %" if values else "-"


def conclude(args, found, models, device):
    table, tests = pd.DataFrame(found), pd.DataFrame(models)
    of = {name: table[table.defence == name] for name in DEFENCES}
    rates = {name: shares(part, args.alpha) for name, part in of.items()}
    text = markdown(
        [
            f"what the owner does (alpha {args.alpha:g})",
            "test accuracy",
            "refused: marked, plain, test",
            *(f"found by {name}" if name != "either" else "found by either arm" for name in rates["none"]),
            "median p: marked, plain",
        ],
        [
            [
                name,
                mean(tests.accuracy[tests.defence == name]),
                ", ".join(
                    map(mean, (of[name].marked_refused, of[name].plain_refused, tests.refused[tests.defence == name]))
                ),
                *(plots.percent(one["share"], one["interval"]) for one in rate.values()),
                f"{of[name].marked_p.median():.5f}, {of[name].plain_p.median():.5f}",
            ]
            for name, rate in rates.items()
        ],
    )
    print(text)
    with files.atomic_path(f"{args.out}/owner.md") as path:
        path.write_text(text)
    names = ("seeds", "users", "photos", "train_size", "epoch", "keys", "views", "selections", "alpha")
    settings = {name: getattr(args, name) for name in names}
    common.write_study(args.out, {"settings": settings, "found": rates, "users": found, "models": models}, device)


def main():
    args = common.parser(
        __doc__,
        seeds=[31, 32, 33, 34],
        users=10,
        photos=50,
        train_size=5000,
        epoch=100,
        keys=19,
        views=VIEWS,
        selections=exact.SELECTIONS,
        alpha=0.001,
    ).parse_args()
    args.half, args.net_type = "claims", "smallnet"  # as `answers.reference_of` wants it
    data, device = common.load(args)
    reference = answers.reference_of(args, data, device, answers.GOOD)[0]
    pool, found, models = common.halves(data)[1], [], []
    for seed in args.seeds:
        cohort = common.make_cohort(data, pool, seed, args.users, args.photos, 0.5, args.train_size)
        for name, text in DEFENCES.items():
            query = defended(data, cohort, seed, text, args, device)
            models.append({"seed": seed, "defence": name, **of_test_images(query, data)})
            for record, rows, label in zip(cohort.records, cohort.rows, cohort.classes, strict=True):
                queries = {"owner": query, "reference": reference}
                p = audit(queries, data, record, rows, int(label), args)
                found.append({"seed": seed, "defence": name, **p})
            print(f"seed {seed}, {name}: {found[-args.users :]}", flush=True)
    conclude(args, found, models, device)


if __name__ == "__main__":
    run_script(main)

"""How often the exact test finds users, with views and references, beside the test without either on the same answers.

Example: python -m studies.claims --data_root CIFAR10_FOLDER --out results/claims-0.5
The answers are of studies/answers.py, half "claims": users, images and models on which nothing was chosen
(studies/statistic.py chose on the other half). Each model has users whose photos were marked, faintly marked, and
published unchanged.
"""

import itertools

import numpy as np
import pandas as pd

from attacks import exact
from kit import files, plots
from kit.errors import run_script
from kit.tables import markdown
from provenance.plan import VIEWS
from studies import answers, common

ALPHAS = (1e-3, 1e-4)
SELECTIONS = {"marked": exact.SELECTIONS, "faint": exact.SELECTIONS, "unchanged": 99_999}
GOOD, FIFTH = ("as many, 40 epochs", "as many, 100 epochs"), ("a fifth, 100 epochs",)
# (name, views, references, label alone, by key); None: the usual number of views of such photos.
TESTS = (
    ("as before: one view, no reference", 1, (), False),
    ("usual views, no reference", None, (), False),
    ("18 views, no reference", 18, (), False),
    ("18 views, reference of a fifth of the images", 18, FIFTH, False),
    ("usual views, reference of as many images", None, GOOD[:1], False),
    ("18 views, reference of as many images", 18, GOOD[:1], False),
    ("18 views, two references of as many images", 18, GOOD, False),
    # Version 2 of the statistic, which took the same share of a reference out under all keys.
    ("usual views, reference of as many images, alike for all keys", None, GOOD[:1], False, False),
    ("18 views, reference of as many images, alike for all keys", 18, GOOD[:1], False, False),
    ("label alone, one view, no reference", 1, (), True),
    ("label alone, 18 views, no reference", 18, (), True),
    ("label alone, 18 views, reference of as many images", 18, GOOD[:1], True),
)


# The curve over the number of photos, half of them published; by (name, references).
PHOTOS = (10, 20, 30, 40, 50)
CURVES = (("no reference", ()), ("reference", GOOD[:1]))


def p_of(user, views, references, label_alone, by_key=True, photos=None):
    """p of one user's audit. photos: how many, None for all."""
    views = views or (VIEWS if user.kind != "unchanged" else 18)
    return answers.audit_p(user, views, references, SELECTIONS[user.kind], label_alone, photos, by_key)


def rows(args, data, device):
    """One row for each user and test."""
    for seed in args.seeds:
        path = answers.answers_of(args, data, device, seed)
        with np.load(path) as stored:
            facts = {name: float(stored[name]) for name in ("train_accuracy", "test_accuracy")}
        for user in answers.users_of(path):
            for name, *test in TESTS:
                if not set(test[1]) <= set(user.references):
                    continue
                of = {"seed": seed, **facts, "user": user.number, "kind": user.kind}
                yield {**of, "test": name, "p": p_of(user, *test)}


def curve(args, data, device):
    """[{"kind", "test", "photos", "alpha", rate}]: users found with fewer photos, at alpha / 2 of a first judgement."""
    found = []
    for seed in args.seeds:
        for user in answers.users_of(answers.answers_of(args, data, device, seed)):
            for (name, references), photos in itertools.product(CURVES, PHOTOS):
                p = p_of(user, None, references, False, photos=photos)
                found.append({"kind": user.kind, "test": name, "photos": photos, "p": p})
    groups = pd.DataFrame(found).groupby(["kind", "test", "photos"], sort=False).p
    return [
        {**dict(zip(("kind", "test", "photos"), key, strict=True)), **common.rate((p <= ALPHAS[0] / 2).sum(), len(p))}
        for key, p in groups
    ]


def summary(table):
    """(markdown, {kind: {test: {alpha: rate}}})."""
    found, body = {}, []
    for (kind, name), part in table.groupby(["kind", "test"], sort=False):
        rates = {str(alpha): common.rate((part.p <= alpha).sum(), len(part)) for alpha in ALPHAS}
        found.setdefault(kind, {})[name] = rates
        shares = [plots.percent(one["share"], one["interval"]) for one in rates.values()]
        body.append([kind, name, *shares, f"{np.exp(np.log(part.p).mean()):.6f}", f"{part.p.max():.4f}"])
    head = ["photos", "test", *(f"found at alpha {alpha:g}" for alpha in ALPHAS), "geometric mean of p", "largest p"]
    return markdown(head, body), found


def main():
    args = answers.parser(__doc__, "claims", (301, 302, 303, 304)).parse_args()
    data, device = common.load(args)
    table = pd.DataFrame(rows(args, data, device))
    text, found = summary(table)
    models = table[["seed", "train_accuracy", "test_accuracy"]].drop_duplicates()
    text = (
        f"{len(models)} {args.net_type} models of {args.train_size:,} images, {args.epoch} epochs (training accuracy "
        f"{models.train_accuracy.mean():.1%}, test {models.test_accuracy.mean():.1%}); {args.users} users of each kind "
        f"in each, {args.photos // 2} published + {args.photos // 2} held out = "
        f"{args.photos / 2 / args.train_size:.2%} of the images\n\n{text}"
    )
    print(text)
    with files.atomic_path(f"{args.out}/claims.md") as path:
        path.write_text(text)
    names = ("half", "seeds", "users", "photos", "train_size", "epoch", "net_type")
    common.write_study(
        args.out,
        {
            "settings": {name: getattr(args, name) for name in names},
            "models": models.to_dict("records"),
            "found": found,
            "photos": curve(args, data, device),
            "users": table.drop(columns=["train_accuracy", "test_accuracy"]).to_dict("records"),
        },
        device,
    )


if __name__ == "__main__":
    run_script(main)

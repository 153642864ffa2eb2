"""Suspects, references and their answers, from which the statistic of the exact test is chosen and its power claimed.

Example: python -m studies.answers --data_root CIFAR10_FOLDER --half choice --seeds 201 202 203 --out results/answers
Each suspect is trained on the published photos of users of three kinds at once: marked, faintly marked, unchanged. It
and the references (networks on other images) are asked for every photo under every key in all views; the logits are
kept under --work, one file for each suspect. What is chosen on the half "choice" is claimed on the half "claims".

Public: KINDS, KEYS, Reference, ALL_REFERENCES, CLAIMED_REFERENCES, GOOD, ENSEMBLE, reference_of, User, users_of, p_of,
audit_p, answers_of, parser.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.special import logsumexp

import utils
from attacks import exact
from attacks.difficulty import taken_out
from experiment import training
from kit import files
from kit.errors import run_script
from studies import common

KINDS = {
    "marked": common.Kind(),
    "faint": common.Kind(common.FAINT),
    "unchanged": common.Kind(common.UNCHANGED),
}
KEYS = 19


@dataclass(frozen=True)
class Reference:
    """A network that has never seen the users' photos. share: of as many other images as the suspect was trained on.

    like: the name of the reference whose images it is trained on (its own choice, unless told); seed: of its training.
    """

    share: float
    epoch: int = 100
    net_type: str = "smallnet"
    like: str | None = None
    seed: int = 7


# Of the half "choice", beside those of the claims: of unequal quality, as people have them.
ALL_REFERENCES = {
    "as many, 100 epochs": Reference(1.0),
    "a fifth, 100 epochs": Reference(0.2),
    "as many, 40 epochs": Reference(1.0, 40),
    "twice as many, 40 epochs": Reference(2.0, 40),
    "half, 40 epochs": Reference(0.5, 40),
    "a tenth, 40 epochs": Reference(0.1, 40),
    "another network, as many": Reference(1.0, 40, "wideresnet-10-1"),
}
CLAIMED_REFERENCES = {name: ALL_REFERENCES[name] for name in list(ALL_REFERENCES)[:3]}
# Other networks on the same images: one reference whose own noise is averaged out.
GOOD = "as many, 40 epochs"
ENSEMBLE = (GOOD, *(f"{GOOD}, network {number}" for number in range(2, 9)))
ALL_REFERENCES |= {
    name: Reference(1.0, 40, like=GOOD, seed=6 + number) for number, name in enumerate(ENSEMBLE[1:], start=2)
}


def pools(data, half):
    """(rows of suspects and users, rows of references), disjoint. The half "choice" has both of its own; the references
    of the half "claims" are of the half "choice", so that a suspect may have nearly all of it."""
    choice, claims = common.halves(data)
    if half == "claims":
        return claims, choice
    order = utils.key_generator("studies", "references").permutation(choice)
    return np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])


def suspect_of(args, data, device, seed, kinds, tag):
    """(query, Cohort, record of the training) of one suspect; kinds: a Kind for each group of args.users users."""
    pool, _ = pools(data, args.half)
    settings = tuple(kind.settings for kind in kinds)
    cohort = common.make_cohort(data, pool, seed, args.users, args.photos, 0.5, args.train_size, settings)
    images, labels = common.published_images(data, cohort, np.repeat(kinds, args.users).tolist())
    name = f"{tag}{args.half}-{args.train_size}-{args.net_type}-{args.epoch}-{seed}"
    query, trained = training.train_on(
        f"{args.work}/{name}.safetensors",
        images,
        labels,
        len(data.class_names),
        seed,
        device,
        net_type=args.net_type,
        epoch=args.epoch,
    )
    return query, cohort, trained


def reference_of(args, data, device, name):
    """(query, record of the training) of a reference by its name."""
    kind, (_, pool) = ALL_REFERENCES[name], pools(data, args.half)
    count = min(round(kind.share * args.train_size), len(pool))
    net_type = args.net_type if kind.net_type == "smallnet" else kind.net_type
    rows = utils.key_generator("studies", "reference", kind.like or name).permutation(pool)[:count]
    path = f"{args.work}/reference-{args.half}-{count}-{net_type}-{kind.epoch}"
    path += f"{f'-{kind.seed}' if kind.like else ''}.safetensors"
    rows = torch.from_numpy(rows)
    return training.train_on(
        path,
        data.images[rows],
        data.labels[rows],
        len(data.class_names),
        kind.seed,
        device,
        net_type=net_type,
        epoch=kind.epoch,
    )


def answers_of(args, data, device, seed, kinds=None, tag=""):
    """The file with the answers of one suspect and of all references; what is missing in it is asked for.

    kinds: {name: Kind} of the users in it, args.users of each (KINDS of args.kinds, unless told); tag: what the names
    of files begin with that belong to such kinds alone.
    """
    kinds = kinds or {name: KINDS[name] for name in args.kinds}
    references = args.references
    if references is None:
        references = ALL_REFERENCES if args.half == "choice" else CLAIMED_REFERENCES
    path = Path(args.work) / f"answers-{tag}{args.half}-{args.train_size}-{args.net_type}-{args.epoch}-{seed}.npz"
    found = {}
    if path.exists():
        with np.load(path) as stored:
            found = {name: stored[name] for name in stored.files}
    missing = [name for name in references if f"{name} 0" not in found]
    if found and not missing:
        return path
    query, cohort, trained = suspect_of(args, data, device, seed, tuple(kinds.values()), tag)
    asked = {} if found else {"suspect": query}
    asked |= {name: reference_of(args, data, device, name)[0] for name in missing}
    test = torch.nonzero(data.is_test).ravel()
    found |= {"labels": cohort.classes, "kinds": np.array([*kinds]), "train_accuracy": trained["train_accuracy"]}
    has_test = len(test) > 0
    found["test_accuracy"] = utils.accuracy(query, data.images, data.labels, rows=test) if has_test else np.nan
    for user, (record, rows) in enumerate(zip(cohort.records, cohort.rows, strict=True)):
        keys, kind = 0 if record.settings.unmarked else KEYS, [*kinds.values()][user // args.users]
        found[f"selection {user}"] = record.published
        originals = data.images[torch.from_numpy(rows)]
        answers = common.ask_views(asked, originals, [key for (key,) in record.keys(keys)], kind)
        found |= {f"{name} {user}": logits.astype(np.float16) for name, logits in answers.items()}
    with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **found)
    return path


@dataclass(frozen=True)
class User:
    """One user's part of a file of answers: `stored` holds the arrays by name."""

    name: str
    number: int
    kind: str
    label: int
    references: tuple
    stored: dict

    @property
    def published(self):
        """bool (photos,)."""
        return self.stored[f"selection {self.number}"]

    def with_fewer(self, photos):
        """(the User with `photos` photos alone, half of them published; which these are, int (photos,))."""
        kept = np.sort(
            np.concatenate([np.flatnonzero(self.published == side)[: photos // 2] for side in (True, False)])
        )
        stored = {**self.stored, f"selection {self.number}": self.published[kept]}
        return replace(self, name=f"{self.name} {photos}", stored=stored), kept

    def logits(self, model):
        """What a model answered: float64 (photos, keys + 1, MOST_VIEWS, C). model: "suspect" or a reference's name."""
        return self.stored[f"{model} {self.number}"].astype(np.float64)

    def scores(self, model):
        """What each view adds to T: float64 (photos, keys + 1, MOST_VIEWS). model: "suspect" or a reference's name."""
        logits = self.logits(model)
        return exact.score(logits[..., self.label] - logsumexp(logits, axis=-1))

    def wrong(self, model):
        """Whether a view is given another label: float64 (photos, keys + 1, MOST_VIEWS)."""
        return (self.logits(model).argmax(axis=-1) != self.label).astype(np.float64)


def p_of(left, user, count):
    """p of what one user's photos add to T, (photos, keys + 1), low where remembered, with `count` selections."""
    return exact.p_value(exact.statistic_grid(left[:, :, None], _selections(user, count), 0)[0])


def audit_p(user, views, references, count, label_alone=False, photos=None, by_key=True):
    """p of one user's audit with `count` selections. views: how many; references: names; photos: how many, None for
    all; by_key: of `taken_out`."""
    scores = (user.wrong if label_alone else user.scores)("suspect")[:, :, :views].mean(axis=2)
    beside = [user.scores(name)[:, :, :views].mean(axis=2) for name in references]
    if photos is not None:
        user, kept = user.with_fewer(photos)
        scores, beside = scores[kept], [one[kept] for one in beside]
    left = taken_out(scores[:, :, None], np.stack(beside) if beside else (), by_key)[:, :, 0]
    return p_of(left, user, count)


def _selections(user, count):
    # Those of the last user are kept: a hundred thousand take a second.
    if _KEPT.get("name") != (user.name, count):
        draws = utils.key_generator("studies", "selections", user.name)
        drawn = exact.random_selections(draws, len(user.published), int(user.published.sum()), count)
        drawn[0] = user.published
        _KEPT.update(name=(user.name, count), drawn=drawn)
    return _KEPT["drawn"]


_KEPT = {}


def users_of(path):
    """The Users of a file of `answers_of`."""
    with np.load(path) as file:
        stored = {name: file[name] for name in file.files}
    labels = stored["labels"]
    names = {name.rsplit(" ", 1)[0] for name in stored if name.rsplit(" ", 1)[-1].isdecimal()}
    references = tuple(name for name in ALL_REFERENCES if name in names)
    kinds = stored["kinds"].tolist() if "kinds" in stored else list(KINDS)
    each = len(labels) // len(kinds)
    return [
        User(f"{Path(path).stem} {number}", number, kinds[number // each], int(label), references, stored)
        for number, label in enumerate(labels)
    ]


def parser(description, half="choice", seeds=(201, 202, 203)):
    """The flags of every study of these answers."""
    flags = common.parser(
        description, seeds=list(seeds), users=10, photos=50, train_size=5000, epoch=100, net_type="smallnet"
    )
    flags.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=list(KINDS), help="of users in each model")
    flags.add_argument("--references", nargs="*", choices=tuple(ALL_REFERENCES), help="default: those of the half")
    flags.add_argument("--half", choices=("choice", "claims"), default=half, help="of the data set")
    return flags


def main():
    args = parser(__doc__).parse_args()
    data, device = common.load(args)
    for seed in args.seeds:
        print(answers_of(args, data, device, seed), flush=True)


if __name__ == "__main__":
    run_script(main)

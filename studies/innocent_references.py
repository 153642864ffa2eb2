r"""How often innocent models are accused by audits with views and references: poor ones, good ones, and one that has
seen the user's photos.

Example: python -m studies.innocent_references --data_root CIFAR10_FOLDER --out results/innocent-references
Four models that saw none of the photos: overfitted, stopped early, untrained, another network. Users have ordinary
photos, those on which this very model is surest, photos that a reference was trained on, and photos of which it was
trained on a half that was chosen before any draw. Every accusation is false. Photos and keys come from pools, about
which each model is asked once; which half is published and which key is the user's own is drawn anew for each user, and
this draw is all that p rests on, so that users of one pool are independent.

Exit code 2, and the words in the tables, where more p than the exact binomial bound at 99.9 % are small.

Public: Pool, User, CASES, ALPHAS, KINDS, split, audit, counts, conclude.
"""

import hashlib
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from scipy.stats import binom, kstest

import utils
from attacks import exact
from kit import files
from kit.errors import UserError, run_script
from kit.tables import markdown
from provenance import grid, references
from provenance.plan import AuditPlan
from studies import attacks_world as places
from studies import common, innocent
from suspects.suspect import Answers

ALPHAS = innocent.ALPHAS
SURE = 0.999  # of the binomial bounds, and of Kolmogorov-Smirnov
KEYS, SELECTIONS = 4, 499
POOL_KEYS = KEYS + 1  # any of which may be the user's own
# (views, references, label alone, label guessed)
CASES = {
    "2 views": (2, (), False, False),
    "18 views": (18, (), False, False),
    "2 views, good reference": (2, ("good",), False, False),
    "18 views, good reference": (18, ("good",), False, False),
    "18 views, poor reference": (18, ("poor",), False, False),
    "2 views, reference that has seen photos": (2, ("seen",), False, False),
    "18 views, reference that has seen photos": (18, ("seen",), False, False),
    "18 views, good and poor reference": (18, ("good", "poor"), False, False),
    "18 views, good reference and one that has seen photos": (18, ("good", "seen"), False, False),
    "2 views, label guessed, good reference and one that has seen photos": (2, ("good", "seen"), False, True),
    "label alone, 18 views": (18, (), True, False),
    "label alone, 18 views, reference that has seen photos": (18, ("seen",), True, False),
}
SEEN = [case for case, options in CASES.items() if "seen" in options[1]]
KINDS = ("ordinary photos", "easy photos", "reference trained on all of them", "reference trained on a half of them")
OUT_OF_BOUNDS = "OUT OF BOUNDS"


@dataclass(frozen=True)
class Pool:
    """Photos of users, in classes of equal size. rows: int64 (n,), of the data set; labels: int64 (n,); digests:
    SHA-256 of each."""

    rows: np.ndarray
    labels: np.ndarray
    digests: list


def pool_of(data, rows):
    """The Pool of these rows."""
    digests = [hashlib.sha256(image.numpy().tobytes()).digest() for image in data.images[torch.from_numpy(rows)]]
    return Pool(rows, data.labels.numpy()[rows], digests)


# --- models and photos ---


def split(data, args):
    """Which training images are whose, {name: int64 rows}: of the suspects and references, of the pools (see KINDS),
    and "left", among which easy photos are looked for. Fixed before any draw.
    """
    order = utils.key_generator("studies", "innocent references").permutation(np.flatnonzero(~data.is_test.numpy()))
    parts, labels = {}, data.labels.numpy()
    for name in (KINDS[0], KINDS[2], KINDS[3]):
        parts[name] = _each_class(labels, order, args.photos + args.spare)
        order = order[~np.isin(order, parts[name])]
    half = utils.key_generator("studies", "innocent references", "half").permutation(parts[KINDS[3]])
    sizes = {"overfitted": 1, "stopped early": 1, "another network": 1, "good": 1, "poor": 0.1, "seen": 1}
    for name, share in sizes.items():
        count = max(1, round(share * args.train_size))
        parts[name], order = order[:count], order[count:]
    parts["seen"] = np.concatenate([parts["seen"], parts[KINDS[2]], half[: len(half) // 2]])
    return {**parts, "untrained": np.empty(0, np.int64), "left": order}


def _each_class(labels, rows, count):
    """The first `count` rows of each class; of classes that have fewer, none."""
    own = [rows[labels[rows] == label][:count] for label in np.unique(labels[rows])]
    return np.concatenate([part for part in own if len(part) == count])


def models_of(args, data, device, parts):
    """({name: (name with its training accuracy, query)} of the suspects, the same of the references)."""

    def trained(name, epoch, net_type="smallnet"):
        title, _, _, query = innocent.smallnet(
            data, args, device, f"{name} beside references", parts[name], max(1, epoch), net_type
        )
        return title.replace(" beside references", ""), query

    suspects = {
        "overfitted": trained("overfitted", args.epoch),
        "stopped early": trained("stopped early", args.epoch // 10),
        "untrained": ("untrained", innocent.untrained(data)[3]),
        "another network": trained("another network", args.epoch // 4, "wideresnet-10-1"),
    }
    return suspects, {name: trained(name, args.epoch) for name in ("good", "poor", "seen")}


def pools_of(args, data, parts, query):
    """{kind: Pool} for one suspect: those of all suspects, and its own easy photos, the surest tenth."""
    count = args.photos + args.spare
    left = parts["left"][: 10 * count * len(data.class_names)]
    surest = left[np.argsort(innocent.losses_of(query, data, left), kind="stable")]
    chosen = {kind: parts[kind] for kind in KINDS if kind in parts}
    chosen[KINDS[1]] = _each_class(data.labels.numpy(), surest, count)
    return {kind: pool_of(data, chosen[kind]) for kind in KINDS}


def keys_of_pools():
    """Keys under which photos are asked about."""
    return [utils.derive_key("studies", "innocent references", "key", number) for number in range(POOL_KEYS)]


# --- audits ---


def audit(pool, answers, photos, *parts):
    """p of every case for one user: {case: p}.

    pool: Pool; answers: {"suspect" or a reference's name: float32 (n, POOL_KEYS, views, C)}, logits; photos: how many
    the user has, half of which are published; parts: what names the user's draws.
    """
    draws = utils.key_generator("studies", "innocent references", "user", *parts)
    label = int(draws.choice(np.unique(pool.labels)))
    own = draws.choice(np.flatnonzero(pool.labels == label), photos, replace=False)
    record = places.commit([places.photo_of(pool, place) for place in own], draws.integers(2**60))
    draw = places.new_draw(places.drawn(record, draws.bytes(48).hex()), POOL_KEYS, KEYS, SELECTIONS)
    cells = draw.photos[:, None], draw.columns[draw.batches]
    user = User({name: logits[cells] for name, logits in answers.items()}, draw.selections, label)
    return {case: user.p(case) for case in CASES}


@dataclass(frozen=True)
class User:
    """What is judged of one user. asked: float32 (photos, KEYS + 1, views, C) by name; selections: bool (m + 1,
    photos); label: the photos' class."""

    asked: dict
    selections: np.ndarray
    label: int
    scores: dict = field(default_factory=dict)  # that were worked out for an earlier case

    def p(self, case):
        """p of one case, as an audit judges."""
        views, beside, label_alone, guessed = CASES[case]
        label, classes = exact.AUTO if guessed else self.label, self.asked["suspect"].shape[-1]
        used = "label only" if label_alone else "as given"
        plan = AuditPlan(label=str(label), answers=used, views=views, keys=KEYS, selections=SELECTIONS)
        answers = self._answers("suspect", views)
        record = SimpleNamespace(selections=lambda count, audit_seed: self.selections)
        scores = np.array([self._scores(name, views, label) for name in beside])
        order = np.arange(len(answers))
        result, _, _ = grid.judge(record, plan, label, plan.alpha, order, answers, classes, references=scores)
        return result["p_value"]

    def _answers(self, name, views):
        logits = self.asked[name][:, :, :views]
        return Answers(np.ascontiguousarray(logits).reshape(-1, logits.shape[-1]))

    def _scores(self, name, views, label):
        if (name, views, label) not in self.scores:
            logits = self.asked[name]
            one = references.Reference(SimpleNamespace(classes=logits.shape[-1]), name, label)
            found = references.scores_of_answers(self._answers(name, views), len(logits), one, views)
            self.scores[name, views, label] = found
        return self.scores[name, views, label]


def ask(data, pool, queries):
    """Answers for a pool: {name: float32 (n, POOL_KEYS, MOST_VIEWS, C)}."""
    originals = data.images[torch.from_numpy(pool.rows)]
    return common.ask_views(queries, originals, keys_of_pools(), common.Kind())


def all_audits(args, data, parts, suspects, beside):
    """One row for each user: the model, the kind of photos, p of every case."""
    queries, asked = {name: query for name, (_, query) in beside.items()}, {}
    for name, (title, query) in suspects.items():
        count = 0
        for kind, pool in pools_of(args, data, parts, query).items():
            if kind not in asked or kind == KINDS[1]:  # the others are the same for every suspect
                asked[kind] = ask(data, pool, queries)
            answers = {**asked[kind], **ask(data, pool, {"suspect": query})}
            for number in range(args.audits):
                yield {"model": title, "photos": kind, **audit(pool, answers, args.photos, name, kind, number)}
            count += args.audits
        print(f"{title}: {count} audits", flush=True)


# --- tables ---


def counts(p):
    """What is counted of many p: {"of", "below": {alpha: {"count", "bound"}}, "ks_p", "out"}. bound: so many or less at
    SURE, if p is uniform or larger; out: what is more than that, names."""
    below = {
        str(alpha): {"count": int((p <= alpha).sum()), "bound": int(binom.ppf(SURE, len(p), alpha))} for alpha in ALPHAS
    }
    ks = float(kstest(p, "uniform", alternative="greater").pvalue)
    out = [f"p <= {alpha}" for alpha, one in below.items() if one["count"] > one["bound"]]
    return {"of": len(p), "below": below, "ks_p": ks, "out": out + ["Kolmogorov-Smirnov"] * (ks < 1 - SURE)}


def _cells(found):
    def loudly(text, name):
        return f"**{text} {OUT_OF_BOUNDS}**" if name in found["out"] else text

    below = [loudly(str(one["count"]), f"p <= {alpha}") for alpha, one in found["below"].items()]
    return [*below, loudly(f"{found['ks_p']:.3f}", "Kolmogorov-Smirnov")]


def _table(first, rows):
    """Rows of counts, all of as many audits."""
    bounds = [one["bound"] for one in rows[0][1]["below"].values()]
    return markdown(
        [
            *first,
            *(f"p <= {alpha} (99.9 % bound {bound})" for alpha, bound in zip(ALPHAS, bounds, strict=True)),
            "Kolmogorov-Smirnov, p smaller than uniform",
        ],
        [[*names, *_cells(found)] for names, found in rows],
    )


def conclude(args, table, models, device):
    """Tables, CSV and result.json. Raises UserError where a count is out of its bound."""
    cases = [((case,), counts(table[case])) for case in CASES]
    kinds = [((kind, case), counts(part[case])) for kind, part in table.groupby("photos", sort=False) for case in SEEN]
    out = [f"{', '.join(names)}: {', '.join(found['out'])}" for names, found in cases + kinds if found["out"]]
    text = "\n".join(
        [
            f"{len(table):,} audits of {len(models['suspects'])} innocent models, {args.photos // 2} published + "
            f"{args.photos - args.photos // 2} held-out photos, {KEYS} other keys, {SELECTIONS} selections\n",
            _table(["test"], cases),
            f"By kind of photos, {kinds[0][1]['of']:,} audits each\n",
            _table(["photos", "test"], kinds),
            f"{OUT_OF_BOUNDS}: {'; '.join(out)}\n"
            if out
            else f"All counts are within bounds ({len(cases + kinds)} x 3).\n",
        ]
    )
    print(text)
    with files.atomic_path(f"{args.out}/innocent-references.md") as path:
        path.write_text(text)
    with files.atomic_path(f"{args.out}/audits.csv") as path:
        table.to_csv(path, index=False, float_format="%.6g")
    common.write_study(
        args.out,
        {
            "settings": {name: getattr(args, name) for name in ("audits", "photos", "spare", "train_size", "epoch")},
            **models,
            "audits": len(table),
            "cases": {case: found for (case,), found in cases},
            "kinds": [{"photos": kind, "test": case, **found} for (kind, case), found in kinds],
            "out": out,
        },
        device,
    )
    if out:
        raise UserError(f"innocent models are accused too often: {'; '.join(out)}", "the test is not exact")


def main():
    flags = common.parser(__doc__, audits=400, photos=24, spare=8, train_size=2500, epoch=30)
    args = flags.parse_args()
    data, device = common.load(args)
    parts = split(data, args)
    suspects, beside = models_of(args, data, device, parts)
    models = {"suspects": [title for title, _ in suspects.values()], "references": [one[0] for one in beside.values()]}
    conclude(args, pd.DataFrame(all_audits(args, data, parts, suspects, beside)), models, device)


if __name__ == "__main__":
    run_script(main)

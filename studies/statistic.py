"""Choose the statistic T of the exact test by measured power: how views are averaged, and how difficulty is taken out.

Example: python -m studies.statistic --data_root CIFAR10_FOLDER --out results/statistic
Users, images, models and references are others than those of the claims (studies/claims.py): see studies/answers.py,
half "choice". What one photo adds to T, the square root of its loss, was chosen before, among twelve
(studies/photo_statistic.py).
"""

from functools import partial

import numpy as np
import pandas as pd

from attacks.difficulty import KEPT, taken_out
from kit import environment, files
from kit.errors import run_script
from kit.tables import markdown
from studies import answers, common

ALPHAS = (1e-3, 1e-4)
SELECTIONS = 99_999
# Splits of queries between keys (the user's own included) and views.
SPLITS = ((20, 1), (20, 2), (10, 2), (5, 4), (5, 2), (2, 2), (1, 2), (20, 4), (5, 18), (1, 18), (20, 18))


def averages(scores, wrong):
    """{name: (n, L + 1)}: ways to make one number of the views of a marked photo. scores, wrong: (n, L + 1, views)."""
    return {
        "1 view (as before)": scores[:, :, 0],
        **{f"mean of {count} views": scores[:, :, :count].mean(axis=2) for count in (2, 4, 8, 18)},
        "root of the mean loss, 18 views": np.sqrt(np.square(scores).mean(axis=2)),
        "median of 18 views": np.median(scores, axis=2),
        "least of 18 views": scores.min(axis=2),
        "largest of 18 views": scores.max(axis=2),
        "mean over all keys, a fifth of it the own": 0.2 * scores.mean(axis=2)
        + 0.8 * scores.mean(axis=(1, 2))[:, None],
        "wrong label, 1 view": wrong[:, :, 0],
        "wrong label, mean of 18 views": wrong.mean(axis=2),
    }


def slope(scores, reference):
    """Of the least-squares line of scores on a reference, at least 0."""
    apart = reference - reference.mean()
    return max(0.0, float((apart * (scores - scores.mean())).sum() / max(np.square(apart).sum(), 1e-12)))


def chosen(scores, references):
    """What attacks/difficulty.py leaves of scores (n, L + 1); references: (R, n, L + 1)."""
    return taken_out(scores[:, :, None], references)[:, :, 0]


def of_one(scores, reference, wrong):
    """{name: (n, L + 1)}: ways to take out what one reference explains; all means of 18 views."""
    line = slope(scores, reference)
    return {
        **{f"minus {share} x": scores - share * reference for share in (0.25, 0.5, 0.75, 1)},
        **{f"minus {part} x least squares": scores - part * line * reference for part in (0.4, 0.6, 0.8, 1)},
        "chosen": chosen(scores, reference[None]),
        "chosen, wrong label": chosen(wrong, reference[None]),
    }


def of_all(scores, references):
    """{name: (n, L + 1)}: ways to take out what several references (R, n, L + 1) explain."""
    flat = references.reshape(len(references), -1)
    design = np.vstack([flat, np.ones(flat.shape[1])]).T
    every = np.linalg.lstsq(design, scores.ravel(), rcond=None)[0][:-1]
    mean = references.mean(axis=0)
    best = max(references, key=lambda one: abs(np.corrcoef(one.ravel(), scores.ravel())[0, 1]))
    return {
        "least squares on all": scores - np.tensordot(every, references, axes=1),
        "mean of all, minus 0.7 x least squares": scores - KEPT * slope(scores, mean) * mean,
        "the best one, minus 0.7 x least squares": scores - KEPT * slope(scores, best) * best,
        "chosen": chosen(scores, references),
    }


def of_networks(scores, references):
    """(way, (n, L + 1)): ways to take out what several networks on the same other images (R, n, L + 1) explain."""
    mean = references.mean(axis=0)
    line, hard = slope(scores, mean), mean.mean(axis=1, keepdims=True)
    # How unsure the networks are of a photo, which says how much its score says, shrunk to what is usual.
    apart = references.std(axis=0, ddof=1).mean(axis=1, keepdims=True)
    yield from ((f"mean, minus {part} x least squares", scores - part * line * mean) for part in (0.5, 0.7, 0.85, 1))
    yield "mean, divided by the difficulty + 0.2", (scores - 0.85 * line * mean) / (hard + 0.2)
    yield "mean, times the root of the difficulty", (scores - 0.85 * line * mean) * np.sqrt(hard)
    yield "mean, divided by the networks' spread", (scores - 0.85 * line * mean) / (apart + apart.mean())
    yield "chosen", chosen(scores, references)


def ways(user):
    """(reference, way, (n, L + 1)) of one user of `answers.users_of`."""
    scores, wrong = user.scores("suspect"), user.wrong("suspect")
    made = [("none", name, left) for name, left in averages(scores, wrong).items()]
    means = {name: user.scores(name).mean(axis=2) for name in user.references}
    scores, wrong = scores.mean(axis=2), wrong.mean(axis=2)
    unequal = [name for name in means if name not in answers.ENSEMBLE[1:]]
    for name in unequal:
        made += [(name, way, left) for way, left in of_one(scores, means[name], wrong).items()]
    made += [("all", way, left) for way, left in of_all(scores, np.stack([means[name] for name in unequal])).items()]
    networks = np.stack([means[name] for name in answers.ENSEMBLE if name in means])
    for count in (2, 4, 8):
        if count <= len(networks):
            made += [(f"{count} networks on as many", way, left) for way, left in of_networks(scores, networks[:count])]
    return made


def splits(user, reference):
    """(way, (n, L + 1)) for SPLITS, with the chosen way to take out one reference."""
    for keys, views in SPLITS:
        scores, beside = (
            user.scores(name)[:, :keys, :views].mean(axis=2) if name else None for name in ("suspect", reference)
        )
        left = scores if beside is None else chosen(scores, beside[None])
        yield f"{keys} keys x {views} views, {keys * views} queries a photo", left


def rows(args, data, device):
    """One row for each user and way."""
    for seed in args.seeds:
        path = answers.answers_of(args, data, device, seed)
        for user in answers.users_of(path):
            facts = {"seed": seed, "user": user.number, "kind": user.kind}
            for reference, way, left in ways(user):
                yield {
                    **facts,
                    "table": "ways",
                    "reference": reference,
                    "way": way,
                    "p": answers.p_of(left, user, SELECTIONS),
                }
            if user.kind != "unchanged":
                for reference in (None, "as many, 40 epochs"):
                    for way, left in splits(user, reference):
                        found = {
                            "reference": reference or "none",
                            "way": way,
                            "p": answers.p_of(left, user, SELECTIONS),
                        }
                        yield {**facts, "table": "splits", **found}
        print(f"seed {seed} done", flush=True)


def summary(table):
    """The table for people: a row for each reference and way, for each kind the geometric mean of p and shares."""
    groups = table.groupby(["reference", "way", "kind"], sort=False).p
    found = pd.DataFrame(
        {
            "geometric mean p": groups.apply(lambda p: float(np.exp(np.log(p).mean()))),
            **{f"p <= {alpha:g}": groups.apply(partial(_share, alpha=alpha)) for alpha in ALPHAS},
        }
    )
    kinds = [kind for kind in answers.KINDS if kind in set(table.kind)]
    shown = {
        (kind, name): found[name].unstack("kind")[kind].reindex(found.index.droplevel("kind").unique())
        for kind in kinds
        for name in found
    }
    head = ["reference", "way", *(f"{kind}: {name}" for kind, name in shown)]
    body = [
        [
            *place,
            *(
                f"{column[place]:.5f}" if "mean" in name else f"{column[place]:.0%}"
                for (_, name), column in shown.items()
            ),
        ]
        for place in found.index.droplevel("kind").unique()
    ]
    return markdown(head, body)


def _share(p, alpha):
    return float((p <= alpha).mean())


def main():
    args = answers.parser(__doc__).parse_args()
    data, device = common.load(args)
    table = pd.DataFrame(rows(args, data, device))
    users = table[["seed", "user"]].drop_duplicates()
    texts = {name: summary(part) for name, part in table.groupby("table", sort=False)}
    text = "\n".join(
        [
            f"{len(users)} users of {len(args.seeds)} models, {args.photos // 2} published + {args.photos // 2} held "
            f"out, {SELECTIONS:,} selections; references by their share of the suspect's {args.train_size:,} images",
            "",
            texts["ways"],
            "",
            "Queries split between keys and views, with the chosen way to take out a reference:",
            "",
            texts["splits"],
        ]
    )
    print(text)
    with files.atomic_path(f"{args.out}/statistic.md") as path:
        path.write_text(text)
    means = table.groupby(["table", "kind", "reference", "way"], sort=False).p
    files.write_json(
        f"{args.out}/result.json",
        {
            "settings": {name: getattr(args, name) for name in ("seeds", "users", "photos", "train_size", "epoch")},
            "selections": SELECTIONS,
            "geometric_mean_p": means.apply(lambda p: float(np.exp(np.log(p).mean()))).reset_index().to_dict("records"),
            "versions": environment.software_versions(),
        },
    )


if __name__ == "__main__":
    run_script(main)

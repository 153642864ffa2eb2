"""Choose what a photo adds to the statistic T of the exact test, by measured power.

Example: python -m studies.photo_statistic --data_root CIFAR10_FOLDER --out results/photo-statistic
Users, images and models are others than those of the claims (studies/power.py): the first half of the data set's
training images, other seeds. For every statistic: how often p is at most 0.001, and the geometric mean of p, with all
photos, with fewer, and without a hold-out.
"""

import numpy as np
import pandas as pd
import torch

import utils
from attacks import exact
from experiment import training
from kit import environment, files
from kit.errors import run_script
from kit.tables import markdown
from studies import common

# Statistics made of one number a photo, from log p of the label, log(p / (1 - p)) and the top class.
PER_PHOTO = {
    "mean loss": lambda loss, scaled: loss,
    **{f"loss cut at {cut:g}": (lambda loss, scaled, cut=cut: np.minimum(loss, cut)) for cut in (0.25, 0.5, 1, 2, 4)},
    "square root of the loss": lambda loss, scaled: np.sqrt(loss),
    "fourth root of the loss": lambda loss, scaled: loss**0.25,
    "logarithm of the loss": lambda loss, scaled: np.log(loss + 1e-6),
    "logit-scaled loss": lambda loss, scaled: scaled,
    "1 - probability": lambda loss, scaled: 1 - np.exp(-loss),
    "rank among all answers": lambda loss, scaled: np.argsort(np.argsort(loss, axis=None)).reshape(loss.shape) * 1.0,
    "wrong label": lambda loss, scaled: (scaled > 0) * 1.0,
}


def trimmed(loss, selections, share=0.1):
    """Mean without the `share` of a pair's photos with the largest loss: (m + 1, L + 1)."""
    kept = round(int(selections[0].sum()) * (1 - share))
    return np.stack([np.sort(loss[chosen], axis=0)[:kept].mean(axis=0) for chosen in selections])


def grids(loss, scaled, selections):
    """T of every statistic."""
    weights = selections / selections.sum(axis=1, keepdims=True)
    made = {name: weights @ part(loss, scaled) for name, part in PER_PHOTO.items()}
    made["trimmed mean, 10 %"] = trimmed(loss, selections)
    made["trimmed mean, 20 %"] = trimmed(loss, selections, 0.2)
    return made


def signals(answers, label, photos):
    """(cross-entropy, logit-scaled loss) of a grid, each (photos, keys)."""
    logits = torch.from_numpy(answers.values)
    found = utils.sample_signals(logits, torch.full((len(logits),), int(label)))
    return tuple(found[name].numpy().reshape(photos, -1) for name in utils.SIGNALS)


def cases(record, loss, scaled, settings):
    """The grids of one user in every situation: (name, {statistic: T})."""
    published = np.flatnonzero(record.published)
    held_out = np.flatnonzero(~record.published)
    for name, (used, held, keys) in settings.items():
        rows = np.concatenate([published[:used], held_out[:held]])
        draws = np.random.default_rng(int(record.commitments[0][:8], 16))
        own = np.arange(len(rows)) < used
        selections = np.stack([own, *(draws.permutation(own) for _ in range(999 if held else 0))])
        yield name, grids(loss[rows][:, : keys + 1], scaled[rows][:, : keys + 1], selections)


def main():
    args = common.parser(__doc__, seeds=[101, 102, 103, 104], users=5, photos=50, train_size=5000).parse_args()
    data, device = common.load(args)
    pool, classes = common.halves(data)[0], len(data.class_names)
    settings = {
        "25 + 25 photos, 19 keys": (25, 25, 19),
        "15 + 15 photos, 19 keys": (15, 15, 19),
        "10 + 10 photos, 19 keys": (10, 10, 19),
        "6 + 6 photos, 19 keys": (6, 6, 19),
        "25 + 25 photos, no fresh key": (25, 25, 0),
        "25 photos, no hold-out, 249 keys": (25, 0, 249),
    }
    found = []
    for seed in args.seeds:
        cohort = common.make_cohort(data, pool, seed, args.users, args.photos, 0.5, args.train_size)
        images, labels = common.published_images(data, cohort)
        query, _ = training.train_on(f"{args.work}/choice-{seed}.safetensors", images, labels, classes, seed, device)
        for record, rows, label in zip(cohort.records, cohort.rows, cohort.classes, strict=True):
            answers = common.ask_grid(query, data.images[torch.from_numpy(rows)], record, 249)
            loss, scaled = signals(answers, label, len(rows))
            found += [
                {"seed": seed, "situation": name, "statistic": statistic, "p": exact.p_value(grid)}
                for name, made in cases(record, loss, scaled, settings)
                for statistic, grid in made.items()
            ]
    table = pd.DataFrame(found)
    groups = table.groupby(["statistic", "situation"], sort=False).p
    # Without a hold-out 1/250 is the smallest p: what counts there is how often it is reached.
    summary = pd.DataFrame(
        {
            "geometric mean p": groups.apply(lambda p: float(np.exp(np.log(p).mean()))),
            "p <= 0.001": groups.apply(lambda p: float((p <= 1e-3).mean())),
            "p <= 0.01": groups.apply(lambda p: float((p <= 1e-2).mean())),
        }
    )
    wide = summary["geometric mean p"].unstack()[list(settings)]
    wide["all, geometric mean"] = np.exp(np.log(wide).mean(axis=1))
    wide = wide.sort_values("all, geometric mean")
    print(wide.to_string(float_format=lambda value: f"{value:.5f}"))
    files.write_json(
        f"{args.out}/result.json",
        {
            "seeds": args.seeds,
            "users": len(args.seeds) * args.users,
            "photos": args.photos,
            "train_size": args.train_size,
            "versions": environment.software_versions(),
            "geometric_mean_p": wide.to_dict(),
            "table": summary.reset_index().to_dict("records"),
        },
    )
    with files.atomic_path(f"{args.out}/statistic.md") as path:
        path.write_text(
            markdown(
                ["statistic", *wide.columns],
                [
                    [name, *(f"{value:.5f}" for value in row)]
                    for name, row in zip(wide.index, wide.to_numpy(), strict=True)
                ],
            )
        )


if __name__ == "__main__":
    run_script(main)

"""How often the exact test finds users whose photos were used, and with how many queries.

Example: python -m studies.power --data_root CIFAR10_FOLDER --train_size 2500 --out results/power-1.0
Users publish half of their photos, marked; a model is trained on those among others; the exact test is made with
probabilities, the top label alone, a guessed label, and without the hold-out, and Algorithm 1 with strangers from the
test images beside it. Users and images are others than those on which the statistic was chosen.
"""

import numpy as np
import pandas as pd
import torch

import utils
from experiment import training
from kit import files, plots
from kit.errors import run_script
from kit.tables import markdown
from studies import common

ALPHAS = (0.01, 0.001)
QUERIES = (250, 500, 1000, 2500, 5000)
CASES = {
    "probabilities": {},
    "label-only": {"label_only": True},
    "probabilities, label guessed": {"auto": True},
    "label-only, label guessed": {"label_only": True, "auto": True},
}


def audit(query, data, cohort, strangers, keys_alone):
    """One row for each user of a model: p of every case, and whether Algorithm 1 says "used" at 0.1 % FPR.

    keys_alone: fresh keys of the test without the hold-out, 0: leave it out.
    """
    theirs, _ = common.ask_strangers(query, data, strangers)
    for record, rows, label in zip(cohort.records, cohort.rows, cohort.classes, strict=True):
        originals, label = data.images[torch.from_numpy(rows)], int(label)
        answers = common.ask_grid(query, originals, record, max(QUERIES) // len(rows) - 1)
        found = {
            name: common.exact_p(
                answers, record, "auto" if case.get("auto") else label, case.get("label_only", False), keys=19
            )
            for name, case in CASES.items()
        }
        found |= {
            f"{queries} queries": common.exact_p(answers, record, label, keys=queries // len(rows) - 1)
            for queries in QUERIES
        }
        found["own key alone, a query a photo"] = common.exact_p(answers, record, label, keys=0)
        published = np.flatnonzero(record.published)
        own = answers.values.reshape(len(rows), -1, answers.values.shape[1])[published, 0]
        if keys_alone:
            alone = common.ask_grid(query, originals[published], record, keys_alone, published)
            found[f"no hold-out, {keys_alone} keys"] = common.exact_p(
                alone, record, label, selections=0, rows=published
            )
        losses = utils.sample_signals(torch.from_numpy(own), torch.full((len(own),), label))["cross_entropy"].numpy()
        found["Algorithm 1"] = bool(utils.verify_provenance(losses[None], theirs, 1e-3)[0][0])
        yield {"class": label, **found}


def main():
    args = common.parser(
        __doc__,
        seeds=[11, 12, 13, 14],
        users=5,
        photos=50,
        train_size=2500,
        epoch=100,
        strangers=1000,
        net_type="smallnet",
        keys_alone=999,
    ).parse_args()
    data, device = common.load(args)
    pool, classes, found = common.halves(data)[1], len(data.class_names), []
    for seed in args.seeds:
        cohort = common.make_cohort(data, pool, seed, args.users, args.photos, 0.5, args.train_size)
        images, labels = common.published_images(data, cohort)
        query, trained = training.train_on(
            f"{args.work}/power-{args.net_type}-{args.train_size}-{args.epoch}-{seed}.safetensors",
            images,
            labels,
            classes,
            seed,
            device,
            net_type=args.net_type,
            epoch=args.epoch,
        )
        strangers = utils.draw_non_member_users(
            data.labels,
            np.flatnonzero(data.is_test.numpy()),
            args.strangers,
            args.photos // 2,
            utils.derive_key(seed, "strangers"),
        )
        test = utils.accuracy(query, data.images, data.labels, rows=torch.nonzero(data.is_test).ravel())
        found += [
            {"seed": seed, "train_accuracy": trained["train_accuracy"], "test_accuracy": test, **row}
            for row in audit(query, data, cohort, strangers, args.keys_alone)
        ]
        print(f"seed {seed}: {len(found)} users", flush=True)
    conclude(args, pd.DataFrame(found), device)


def conclude(args, table, device):
    """Table, plot and result.json."""
    names = [
        name
        for name in table.columns
        if name not in ("seed", "train_accuracy", "test_accuracy", "class", "Algorithm 1")
    ]
    shares = {
        name: {str(alpha): common.rate((table[name] <= alpha).sum(), len(table)) for alpha in ALPHAS} for name in names
    }
    shares["Algorithm 1, 0.1 % FPR"] = {"0.001": common.rate(table["Algorithm 1"].sum(), len(table))}
    rows = [
        [
            name,
            *(
                plots.percent(found[str(alpha)]["share"], found[str(alpha)]["interval"]) if str(alpha) in found else "-"
                for alpha in ALPHAS
            ),
            f"{table[name].median():.5f}" if name in table else "-",
            f"{table[name].max():.5f}" if name in table else "-",
        ]
        for name, found in shares.items()
    ]
    head = ["audit", *(f"detected at alpha {alpha}" for alpha in ALPHAS), "median p", "largest p"]
    text = markdown(head, rows)
    print(
        f"{len(table)} users, {args.photos // 2} published + {args.photos // 2} held out, "
        f"{100 * args.photos / 2 / args.train_size:g} % of {args.train_size} training images each\n{text}"
    )
    with files.atomic_path(f"{args.out}/power.md") as path:
        path.write_text(text)
    draw(shares, f"{args.out}/queries.png")
    common.write_study(
        args.out,
        {
            "settings": {
                name: getattr(args, name)
                for name in ("seeds", "users", "photos", "train_size", "epoch", "strangers", "net_type", "keys_alone")
            },
            "detected": shares,
            "users": table.to_dict("records"),
        },
        device,
    )


def draw(shares, path):
    """Share detected against the number of queries."""
    figure, axes = plots.figure_of(1, 1, (6, 4))
    for alpha in ALPHAS:
        found = [shares[f"{queries} queries"][str(alpha)] for queries in QUERIES]
        share = np.array([one["share"] for one in found])
        low, high = np.array([one["interval"] for one in found]).T
        axes[0, 0].errorbar(
            QUERIES, share, [share - low, high - share], marker="o", capsize=3, label=f"alpha {alpha:g}"
        )
    axes[0, 0].set(
        xscale="log",
        xlabel="queries for one user",
        ylabel="share of users detected",
        ylim=(0, 1.03),
        xticks=QUERIES,
        xticklabels=QUERIES,
    )
    axes[0, 0].minorticks_off()
    axes[0, 0].grid(alpha=0.3)
    axes[0, 0].legend()
    plots.save_figure(figure, path)


if __name__ == "__main__":
    run_script(main)

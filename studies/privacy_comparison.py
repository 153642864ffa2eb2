"""Which membership inference attack is best at which budget: RMIA, LiRA, BASE, BaVarIA, quantile regression and others,
offline and online, with 1 to 16 reference models, with intervals over records and models.

Example: python -m studies.privacy_comparison --data_root CIFAR10_FOLDER --out results/privacy-comparison
Trains --models networks on halves of --size images (JOBS=4 trains several at once, LAUNCHER=ray elsewhere), each of
which is the target in turn. A budget of k means k reference models that were not trained on a record, and online as
many that were. What is finished is kept in --work, and the same command goes on there: models, signals, and each
budget's rates.
"""

from pathlib import Path

import numpy as np

from attacks import clustered, evaluation
from kit import cli, files, plots, tables
from kit.errors import UserError, run_script
from kit.progress import Progress
from privacy import config as configuration
from privacy import pipeline, training
from privacy.folds import ATTACKS, TITLES
from studies import common

ALONE = ("loss", "population", "quantile", "label_only")  # without references: one row serves all budgets
WITH = [name for name in ATTACKS if name not in ALONE]
FPRS = (1e-2, 1e-3, 1e-4)
ASKED = 1e-3
RESAMPLES = 200
FIRST = ("loss", "rmia_offline")  # of a cascade
KEPT = (0.01, 0.05, 0.2)  # shares of the records that its first attack passes on


def main():
    parser = common.parser(
        __doc__,
        models=64,
        size=10_000,
        population=10_000,
        budgets=[1, 2, 4, 8, 16],
        epochs=40,
        batch_size=64,
        queries=2,
        checkpoints=3,
    )
    parser.add_argument("--net_type", default="smallnet")
    parser.add_argument("--lr", type=cli.number(float, above=0), default=0.05)
    args = parser.parse_args()
    most = args.models // 2 - 1
    if max(args.budgets) > most:
        raise UserError(
            f"{args.models} models have at most {most} references on each side",
            advice="lower --budgets, or more --models",
        )
    if args.queries > len(configuration.QUERIES):
        raise UserError(f"--queries {args.queries}: there are {len(configuration.QUERIES)}")
    rows = [row for budget in [None, *sorted(set(args.budgets))] for row in of_budget(args, budget)]
    best = [best_of([row for row in rows if row["budget"] in (None, budget)], budget) for budget in args.budgets]
    last = max(best, key=lambda one: one["budget"])
    cascades = cascades_of(rows, last, min(args.budgets))
    for row in rows:
        row.pop("file", None)
    hours = trained_hours(args)
    result = {
        "rows": rows,
        "best": best,
        "cascades": cascades,
        "asked_fpr": ASKED,
        "hours_of_training": hours,
        "settings": {name: value for name, value in vars(args).items() if name not in ("out", "work", "data_root")},
    }
    from utils import choose_device

    common.write_study(args.out, result, choose_device(args.device))
    text = tables.markdown(*table_of(rows))
    with files.atomic_path(Path(args.out) / "table.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    plots.save_figure(figure_of(rows, args.budgets), Path(args.out) / "budgets.png")
    print(tables.markdown(*table_of(rows), aligned=True), end="")
    cli.show_rows(
        [
            *((f"best at {one['budget']}", f"{one['title']}; as good: {', '.join(one['as_good'])}") for one in best),
            *(
                (
                    f"first {one['title']}",
                    f"then {last['title']} for {100 * one['share']:g} %: TPR {100 * one['tpr']:.2f}, "
                    f"{100 * one['lost'][0]:.2f} to {100 * one['lost'][1]:.2f} less than for all",
                )
                for one in cascades
            ),
            ("hours of training", f"{hours:.2f}"),
        ]
    )


def config_of(args, budget, attacks):
    """The audit's Config; the models do not depend on the budget."""
    return configuration.Config(
        run=configuration.Run(log_dir=str(Path(args.work) / "privacy-comparison"), num_experiments=args.models),
        audit=configuration.Audit(
            algorithm=attacks,
            num_ref_models=budget,
            population_size=args.population,
            queries=list(configuration.QUERIES[: args.queries]),
            device=args.device,
            fprs=list(FPRS),
            asked_fpr=ASKED,
        ),
        train=configuration.Train(
            model_name=args.net_type,
            batch_size=args.batch_size,
            learning_rate=args.lr,
            epochs=args.epochs,
            device=args.device,
            checkpoints=args.checkpoints,
        ),
        data=configuration.Data(dataset=args.dataset, data_dir=args.data_root, size=args.size),
    )


def of_budget(args, budget):
    """Rows of a budget (None: attacks without references), kept in a file with the settings that they depend on."""
    config = config_of(args, budget, list(ALONE if budget is None else WITH))
    path = Path(config.run.log_dir) / f"budget_{budget or 0}.npz"
    wanted = {name: value for name, value in config.model_dump().items() if name != "run"}
    wanted = {"settings": files.canonical_digest(wanted), "models": args.models}
    stored = path.with_suffix(".json")
    if path.exists() and stored.exists():
        found = files.read_json(stored)
        files.check_same_settings(found["made_with"], wanted, stored, "use the same flags, or another --work", None)
    else:
        results, _ = pipeline.run(config, "audit")
        scores, inside = results["arrays"]["scores"], results["arrays"]["membership"]
        rows = [
            row_of(name, values, inside, budget) for name, values in Progress(scores.items(), f"budget {budget or 0}")
        ]
        found = {"made_with": wanted, "rows": rows, "skipped": results["skipped"], "offline_a": results["offline_a"]}
        files.write_arrays(
            path, membership=inside, **{name: values.astype(np.float32) for name, values in scores.items()}
        )
        files.write_json(stored, found)
    return [{**row, "file": path} for row in found["rows"]]


def row_of(name, scores, inside, budget):
    """One attack at one budget: rates over all targets with their intervals."""
    rates = evaluation.evaluate(scores.ravel(), inside.ravel(), FPRS, resamples=1)
    found = clustered.intervals(scores, inside, FPRS, RESAMPLES)
    others = np.sort(scores[~inside])[::-1]
    return {
        "budget": budget,
        "attack": name,
        "title": TITLES[name],
        "auc": rates["auc"],
        "auc_interval": found["auc_interval"],
        "tpr_at_fpr": [
            {
                "fpr": fpr,
                "tpr": one["tpr"],
                "interval": other["interval"],
                "stability": clustered.stability(scores, inside, others[min(int(fpr * len(others)), len(others) - 1)]),
            }
            for fpr, one, other in zip(FPRS, rates["tpr_at_fpr"], found["tpr_at_fpr"], strict=True)
        ],
    }


def asked(row):
    """The rate of a row that the comparison is about."""
    return next(point for point in row["tpr_at_fpr"] if point["fpr"] == ASKED)


def best_of(rows, budget):
    """The attack with the highest TPR at ASKED, and those whose paired difference from it may be 0."""
    best = max(rows, key=lambda row: (asked(row)["tpr"], row["auc"]))
    scores = {row["attack"]: files.read_arrays(row["file"]) for row in rows}
    top, inside = scores[best["attack"]][best["attack"]], scores[best["attack"]]["membership"]
    as_good = [
        row["title"]
        for row in rows
        if row is not best
        and clustered.differences(top, scores[row["attack"]][row["attack"]], inside, ASKED, RESAMPLES)[0] <= 0
    ]
    return {"budget": budget, "attack": best["attack"], "title": best["title"], "as_good": as_good}


def cascades_of(rows, last, least):
    """Does it do to ask the references of the best attack about few records, which a cheaper attack has picked?

    last: an entry of `best_of`; least: the budget of the first attack, where it needs references. A list of dicts: the
    first attack, the share that it passes on, the cascade's TPR at ASKED and what is lost, a 95 % interval.
    """
    found = []
    file_of = {row["attack"]: row["file"] for row in rows if row["budget"] in (None, last["budget"])}
    arrays = files.read_arrays(file_of[last["attack"]])
    top, inside = arrays[last["attack"]], arrays["membership"]
    for first in (row for row in rows if row["attack"] in FIRST and row["budget"] in (None, least)):
        cheap = files.read_arrays(first["file"])[first["attack"]]
        for share in KEPT:
            scores = cascade(cheap, top, share)
            tpr = evaluation.evaluate(scores.ravel(), inside.ravel(), (ASKED,), resamples=1)["tpr_at_fpr"][0]["tpr"]
            lost = clustered.differences(top, scores, inside, ASKED, RESAMPLES)
            found.append({"first": first["attack"], "title": first["title"], "share": share, "tpr": tpr, "lost": lost})
    return found


def cascade(first, second, share):
    """Scores (T, N): `second` for the `share` of each target's records that `first` ranks highest, the others last."""
    ranks = np.argsort(np.argsort(-first, axis=1, kind="stable"), axis=1)
    return np.where(ranks < round(share * first.shape[1]), second, second.min() - 1)


def trained_hours(args):
    folder = Path(args.work) / "privacy-comparison" / "models"
    paths = [training.model_path(folder, number) for number in range(args.models)]
    return sum(training.read_record(path)["train_seconds"] for path in paths) / 3600


def table_of(rows):
    """(head, rows) of the table that is printed and written."""
    head = ["references", "attack", "AUC", *(f"TPR at {100 * fpr:g} % FPR" for fpr in FPRS), "found in all models"]
    lines = []
    for row in rows:
        same, (low, high) = asked(row)["stability"], row["auc_interval"]
        lines.append(
            [
                row["budget"] or "none",
                row["title"],
                f"{row['auc']:.4f} ({low:.4f}-{high:.4f})",
                *(
                    f"{100 * point['tpr']:.2f} ({100 * point['interval'][0]:.2f}-{100 * point['interval'][1]:.2f})"
                    for point in row["tpr_at_fpr"]
                ),
                f"{same['all']} of {same['any']}",
            ]
        )
    return head, lines


def figure_of(rows, budgets):
    """TPR at ASKED against the budget, a line for each attack."""
    figure, axes = plots.figure_of(1, 1, (7, 5))
    axis = axes[0, 0]
    names = list(dict.fromkeys(row["attack"] for row in rows))
    for place, name in enumerate(names):
        look = {"color": f"C{place % 10}", "linestyle": "-" if place < 10 else "--"}  # there are ten colours
        mine = [row for row in rows if row["attack"] == name]
        if mine[0]["budget"] is None:
            axis.axhline(100 * asked(mine[0])["tpr"], **{**look, "linestyle": ":"}, linewidth=1, label=mine[0]["title"])
        else:
            values = np.array([[asked(row)["tpr"], *asked(row)["interval"]] for row in mine]) * 100
            places = [row["budget"] for row in mine]
            axis.plot(places, values[:, 0], marker="o", markersize=3, label=mine[0]["title"], **look)
            axis.fill_between(places, *values[:, 1:].T, color=look["color"], alpha=0.06)
    axis.set(
        xscale="log",
        xlabel="reference models that were not trained on a record",
        ylabel=f"TPR at {100 * ASKED:g} % FPR, %",
    )
    axis.minorticks_off()
    axis.set_xticks(sorted(budgets), [str(budget) for budget in sorted(budgets)])
    axis.legend(fontsize=6, ncols=2)
    return figure


if __name__ == "__main__":
    run_script(main)

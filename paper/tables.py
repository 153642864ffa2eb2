"""Turn the finished runs of a sweep into the paper's tables, ours next to the paper's figures (Markdown and CSV).

Example: python -m paper.tables single-target --res_folder saved_res
Runs are found by the settings inside their result.json, whatever their folders are called. The accuracy drop is the
difference to the clean run (--clean_train 1) of the same data set, network and size, averaged over the same seeds.
Public: collect, to_markdown.
"""

import math
from pathlib import Path

import pandas as pd

from dataset import recipe
from experiment.folder import in_todays_words
from kit import cli, files
from kit.errors import UserError, run_script
from kit.tables import markdown
from paper import ablation
from paper.ablation import MARKS, SAME, pooled, shown
from paper.reported import COMPONENTS, MAIN

# What tells the rows of each table apart; in the paper Tables 2, 6 and 7 are about CIFAR-100 only.
ROWS = {"Table 1": "dataset", "Table 6": "net_type", "Table 7": "train_size", "Table 2": "users"}
SWEEPS = {
    "single-target": ("Table 1", "Table 6", "Table 7"),
    "multi-target": ("Table 2",),
    "components": ("Tables 8 and 9",),
    "ablation": tuple(ablation.ABLATIONS),
    "countermeasures": ("Countermeasures",),
}


def collect(res_folder):
    """Every finished run below a folder as a row of a DataFrame."""
    rows = []
    for path in sorted(Path(res_folder).glob("*/result.json")):
        if not (path.parent / "config.json").exists():
            continue  # written by eval.py: the same model again
        result = files.read_json(path)
        training, audit = in_todays_words(result["settings"]["training"]), result["audit"]
        if training.get("other_images"):
            continue  # a reference of --calibrate, which is no cell of a table
        rows.append(
            {
                **{name: training[name] for name in (*SAME, *MARKS, "seed", "clean_train")},
                "used_share": training.get("used_share", 1.0),
                "countermeasure": training.get("countermeasure") or "none",
                "classes": str([row["class"] for row in result["verdict"]["users"] if row["trained_on"]]),
                "users": sum(row["trained_on"] for row in result["verdict"]["users"]),
                "false_positives": audit["set"]["false_positives"],
                "non_members": audit["set"]["non_members"],
                "instance_false": audit["instance"]["false_positives"],
                "instances": audit["instance"]["non_members"],
                **_calibrated(result.get("calibrated")),
                "set_auc": audit["set"]["auc"],
                "instance_auc": audit["instance"]["auc"],
                "accuracy": result["accuracy"]["test"],
                "detected": result["verdict"]["targets_detected"],
                "accused": result["verdict"]["controls_detected"],
                "seconds": sum(result["seconds"].values()),
                "hardware": result["hardware"]["train"],
                **{
                    f"exact_{name}": [
                        row.get("exact_p") for row in result["verdict"]["users"] if row["trained_on"] == trained_on
                    ]
                    for name, trained_on in (("target", True), ("control", False))
                },
                "more": {
                    name: value for name, value in (result.get("countermeasure") or {}).items() if value is not None
                },
            }
        )
    if not rows:
        raise UserError(f"no finished run (*/result.json) below {res_folder}", advice="run the sweep script first")
    return pd.DataFrame(rows).drop_duplicates(
        [*SAME, *MARKS, "seed", "clean_train", "classes", "used_share", "countermeasure"]
    )


def _calibrated(section):
    """What --calibrate found for sets: false positives with and without, among the same non-members; NaN without it."""
    found, plain = (section[name]["set"] if section else {} for name in ("audit", "plain"))
    return {
        "calibrated_false": found.get("false_positives", math.nan),
        "calibrated_plain": plain.get("false_positives", math.nan),
        "calibrated_others": found.get("non_members", math.nan),
    }


def summarize(marked, clean, table):
    """One row for each value of the table's variable, in the paper's columns, with the paper's figures beside."""
    rows = []
    for (value, *_), group in marked.groupby([ROWS[table], *SAME, *MARKS], sort=False):
        reference = clean
        for name in SAME:
            reference = reference[reference[name] == group[name].iloc[0]]
        reference = reference[reference["seed"].isin(group["seed"])]
        accuracy = group["accuracy"].mean()
        drop = f"{100 * (accuracy - reference['accuracy'].mean()):+.2f}" if len(reference) else "no clean run"
        paper_fpr, paper_accuracy, paper_drop = MAIN[table].get(value, (None,) * 3)
        rows.append(
            {
                ROWS[table]: value,
                "runs": len(group),
                "detected": f"{group['detected'].sum()}/{group['users'].sum()}",
                "accused": f"{group['accused'].sum()}/{group['users'].sum()}",
                "FPR@100%TPR": pooled(group["false_positives"], group["non_members"]),
                "paper FPR": shown(paper_fpr),
                "unmarked, instance-based": pooled(reference["instance_false"], reference["instances"]),
                "accuracy": f"{100 * accuracy:.2f}",
                "paper accuracy": shown(paper_accuracy),
                "drop": drop,
                "paper drop": shown(paper_drop, "+"),
                "data, network, size": " ".join(str(group[name].iloc[0]) for name in SAME[:3]),
                "s/run": f"{group['seconds'].mean():.0f}",
                "hardware": ", ".join(sorted(group["hardware"].unique())),
            }
        )
    order = {value: place for place, value in enumerate(MAIN[table])}
    return pd.DataFrame(sorted(rows, key=lambda row: order.get(row[ROWS[table]], len(order))))


def summarize_components(frame):
    """Marked or not x set- or instance-based, for each number of samples per user (Tables 8 and 9)."""
    rows = []
    for (samples, clean, *same), group in frame.groupby(["marked_samples_per_user", "clean_train", *SAME, "users"]):
        by_set, by_instance = COMPONENTS.get((samples, not clean), (None, None))
        rows.append(
            {
                "samples per user": samples,
                "marked": "no" if clean else "yes",
                "runs": len(group),
                "users per run": group["users"].iloc[0],
                "set-based FPR@100%TPR": pooled(group["false_positives"], group["non_members"]),
                "paper, set-based": shown(by_set),
                "instance-based FPR@100%TPR": pooled(group["instance_false"], group["instances"]),
                "paper, instance-based": shown(by_instance),
                "set AUC": f"{group['set_auc'].mean():.4f}",
                "instance AUC": f"{group['instance_auc'].mean():.4f}",
                "accuracy": f"{100 * group['accuracy'].mean():.2f}",
                "data, network, size": " ".join(map(str, same[:3])),
                "s/run": f"{group['seconds'].mean():.0f}",
                "hardware": ", ".join(sorted(group["hardware"].unique())),
            }
        )
    return pd.DataFrame(rows)


def choose(frame, table):
    """The runs that belong to a table: Tables 6 and 7 vary what the data set's recipe says in Table 1."""
    if table == "Table 2":
        return frame[frame["users"] > 1]
    single = frame[frame["users"] == 1]
    usual = {name: recipe(name) for name in single["dataset"].unique()}
    by_recipe = {
        setting: single[setting] == [getattr(usual[name], setting) for name in single["dataset"]]
        for setting in ("net_type", "train_size")
    }
    if table == "Table 1":
        return single[by_recipe["net_type"] & by_recipe["train_size"]]
    # The paper varies them on CIFAR-100; a small sweep has one data set only.
    main = "cifar100" if "cifar100" in usual else single["dataset"].iloc[0] if len(single) else None
    return single[(single["dataset"] == main) & by_recipe["train_size" if table == "Table 6" else "net_type"]]


def to_markdown(frame):
    """A DataFrame as a Markdown table."""
    return markdown(frame.columns, frame.itertuples(index=False, name=None))


def main():
    parser = cli.Parser(__doc__)
    parser.add_argument("sweep", choices=sorted(SWEEPS))
    parser.add_argument("--res_folder", default="./saved_res", help="where the runs are")
    parser.add_argument("--out", help="folder of the tables (default: the same folder)")
    args = parser.parse_args()
    frame = collect(args.res_folder)
    plain = frame[(frame["countermeasure"] == "none") & (frame["used_share"] == 1)]
    marked, clean = plain[plain["clean_train"] == 0], plain[plain["clean_train"] == 1]
    parts = []
    for table in SWEEPS[args.sweep]:
        if args.sweep == "components":
            rows = summarize_components(plain)
        elif args.sweep in ("ablation", "countermeasures"):
            rows = ablation.ABLATIONS[table](frame) if args.sweep == "ablation" else ablation.countermeasures(frame)
            if len(rows) == 0:
                continue
            rows = rows.fillna("-")  # rows of runs without --calibrate
        else:
            chosen = choose(marked, table)
            if len(chosen) == 0:
                continue
            rows = summarize(chosen, clean, table)
        name = f"{args.sweep}-{table.lower().replace(' ', '')}"
        with files.atomic_path(Path(args.out or args.res_folder) / f"{name}.csv") as path:
            rows.to_csv(path, index=False)
        parts.append(f"### {table}{': by ' + ROWS[table] if table in ROWS else ''}\n\n{to_markdown(rows)}")
        if args.sweep in ("ablation", "countermeasures"):
            parts[-1] += f"\n{ablation.agreement(rows)}\n"
    if not parts:
        raise UserError(
            f"no run below {args.res_folder} belongs to the {args.sweep} tables", advice="run the sweep first"
        )
    parts.append(
        "All rates in %; FPR@100%TPR set-based, pooled over runs, with its 95 % Clopper-Pearson "
        "interval; the paper's figures are for its own settings.\n"
    )
    text = "\n".join(parts)
    with files.atomic_path(Path(args.out or args.res_folder) / f"{args.sweep}.md") as path:
        path.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    run_script(main)

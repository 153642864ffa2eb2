"""Merge the results of a comparison over its seeds: pooled figures beside the paper's, and which conclusions agree.

Example: python -m baselines.summary --folder saved_res/comparison
Reads every METHOD-seedN/result.json of the folder; writes comparison.json, comparison.md and comparison.csv there (or
in --out) and prints the table of conclusions last. Rates are pooled: hits over tries of all seeds, with the 95 %
Clopper-Pearson interval; other figures are means, with the range over seeds.

Public: collect, pool, judge.
"""

import operator
from pathlib import Path

import pandas as pd

from baselines import common
from kit import files
from kit.cli import Parser
from kit.errors import UserError, run_script
from paper import tables

RELATIONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
# May differ between the runs of one method that are merged.
APART = ("seed", "data_root", "device", "work", "out", "save_tag", "ckpt_folder", "res_folder")


def collect(folder):
    """{method: [results of its seeds]} of a folder. UserError when there is none, or seeds have different settings."""
    found = {}
    for path in sorted(Path(folder).glob("*/result.json")):
        result = files.read_json(path)
        if isinstance(result, dict) and {"method", "rows", "claims", "settings"} <= set(result):
            found.setdefault(result["method"], []).append((path, result))
    if not found:
        raise UserError(f"no method's result (*/result.json) in {folder}", advice="run comparison.sh first")
    for group in found.values():
        first = group[0][1]["settings"]
        for path, result in group[1:]:
            files.check_same_settings(result["settings"], first, path, APART, "Merge one comparison at a time")
            if [other["settings"]["seed"] for _, other in group].count(result["settings"]["seed"]) > 1:
                raise UserError(f"{path}: another result of {result['method']} has the same seed", advice="remove one")
    return {method: [result for _, result in group] for method, group in found.items()}


def pool(results):
    """Rows of one method pooled over its results: dicts as of `common.rate` and `common.row`, with "seeds"."""
    groups = {}
    for result in results:
        for row in result["rows"]:
            groups.setdefault((row["setting"], row["figure"]), []).append(row)
    pooled = []
    for (setting, figure), rows in groups.items():
        if "of" in rows[0]:
            one = common.rate(
                setting, figure, sum(row["hits"] for row in rows), sum(row["of"] for row in rows), rows[0]["paper"]
            )
        else:
            values = [row["value"] for row in rows]
            one = {
                **common.row(setting, figure, sum(values) / len(values), rows[0]["paper"]),
                "interval": [min(values), max(values)] if len(values) > 1 else None,
            }
        pooled.append({**one, "seeds": len(rows)})
    return pooled


def judge(claims, rows):
    """Hold conclusions against pooled rows: dicts with "claim", "agrees" (or None: no such row) and "ours".

    "clear" says that it also holds between the nearer ends of the intervals.
    """
    known, judged = {(row["setting"], row["figure"]): row for row in rows}, []
    for claim in claims:
        sides = [
            known.get(tuple(side)) if isinstance(side, list | tuple) else {"value": side, "interval": None}
            for side in (claim["left"], claim["right"])
        ]
        if None in sides:
            judged.append({"claim": claim["claim"], "agrees": None, "clear": None, "ours": "not measured"})
            continue
        holds = RELATIONS[claim["relation"]]
        low_left, high_left, low_right, high_right = (
            (side["interval"] or [side["value"]] * 2)[end] for side in sides for end in (0, 1)
        )
        near = (high_left, low_right) if claim["relation"] in ("<", "<=") else (low_left, high_right)
        agrees = bool(holds(sides[0]["value"], sides[1]["value"]))
        judged.append(
            {
                "claim": claim["claim"],
                "agrees": agrees,
                "clear": agrees and bool(holds(*near)),
                "ours": f"{_text(sides[0], sides[1])} {claim['relation']} {_text(sides[1], sides[0])}",
            }
        )
    return judged


def _text(side, other):
    as_rate = "of" in side or "of" in other
    return common.shown({**side, "interval": None} | ({"of": 1} if as_rate else {}))


def verdict(one):
    """A judged conclusion in a word or two."""
    if one["agrees"] is None:
        return "not measured"
    return ("yes" if one["clear"] else "yes, within the intervals") if one["agrees"] else "no"


def as_table(rows):
    """Pooled rows as a DataFrame of texts."""
    return pd.DataFrame(
        [
            {
                "setting": row["setting"],
                "figure": row["figure"],
                "ours (95 % interval, or range over seeds)": common.shown(row)
                if "of" in row or row["interval"] is None
                else f"{row['value']:.4f} ({row['interval'][0]:.4f}-{row['interval'][1]:.4f})",
                "paper": common.shown_paper(row),
                "seeds": row["seeds"],
            }
            for row in rows
        ]
    )


def to_text(method, results, rows, judged):
    """The Markdown section of one method."""
    settings, models = results[0]["settings"], [model for result in results for model in result["models"]]
    low, high = (bound(model["train_accuracy"] for model in models) for bound in (min, max))
    conclusions = pd.DataFrame(
        [{"conclusion of the paper": one["claim"], "ours": one["ours"], "agrees": verdict(one)} for one in judged]
    )
    notes = sorted({note for result in results for note in result["notes"]})
    return "\n".join(
        [
            f"## {method}\n",
            f"{settings['dataset']}, {settings['net_type']}, {settings['train_size']} training images, "
            f"{settings['epoch']} epochs, {len(results)} seeds; {len(models)} models with a training accuracy of "
            f"{100 * low:.1f}-{100 * high:.1f} %. {'; '.join(notes)}\n",
            tables.to_markdown(conclusions),
            tables.to_markdown(as_table(rows)),
        ]
    )


def main():
    flags = Parser(__doc__)
    flags.add_argument("--folder", required=True, help="where the results of comparison.sh are")
    flags.add_argument("--out", help="folder of the tables (default: the same folder)")
    args = flags.parse_args()
    out, merged, parts, conclusions = Path(args.out or args.folder), {}, [], []
    for method, results in collect(args.folder).items():
        rows = pool(results)
        judged = judge(results[0]["claims"], rows)
        merged[method] = {
            "seeds": [result["settings"]["seed"] for result in results],
            "rows": rows,
            "conclusions": judged,
            "settings": {name: value for name, value in results[0]["settings"].items() if name not in APART},
            "models": [result["models"] for result in results],
            "hardware": sorted({result["hardware"] for result in results}),
            "versions": results[0]["versions"],
        }
        parts.append(to_text(method, results, rows, judged))
        conclusions += [
            {"method": method, "conclusion": one["claim"], "ours": one["ours"], "agrees": verdict(one)}
            for one in judged
        ]
    parts.append(
        "Rates are pooled over seeds; users and samples of one model are not independent of each other, so "
        'that the intervals are the narrowest that one may think of. "-": the paper gives no figure.\n'
    )
    files.write_json(out / "comparison.json", merged)
    with files.atomic_path(out / "comparison.md") as path:
        path.write_text("\n".join(parts), encoding="utf-8")
    with files.atomic_path(out / "comparison.csv") as path:
        pd.concat([as_table(found["rows"]).assign(method=method) for method, found in merged.items()]).to_csv(
            path, index=False
        )
    print(tables.to_markdown(pd.DataFrame(conclusions)))
    print(f"tables: {out / 'comparison.md'}")


if __name__ == "__main__":
    run_script(main)

"""What the privacy report says beyond single records: epsilon, changed copies, shares of data sets, users.

Public: section.
"""

from kit.markup import element, join, table
from privacy import cells

SHOWN_USERS = 30


def section(results):
    """HTML; results: of `run_attacks`."""
    parts = [
        join(element("h3", title), element("p", found["skipped"]) if "skipped" in found else content(found))
        for name, (title, content) in PARTS.items()
        if (found := results[name]) is not None
    ]
    return join(*parts) if parts else element("p", "Not asked for in the configuration.")


def _epsilon(found):
    rows = [
        [
            f"Model {row['target']}",
            f"{row['epsilon']:.2f}",
            f"{row['provable']:.2f}",
            f"{best['correct']} of {best['guesses']}",
        ]
        for row in found["rows"]
        for best in [max(row["tests"], key=lambda test: test["epsilon"])]
    ]
    sure = cells.percent(found["confidence"], 0)
    text = (
        "Differential privacy limits what any attack can learn by a number epsilon: around 1 is strong, above 10 "
        "says little. An audit can't show that a model is private, but it can refute claims. "
    )
    text += (
        (
            f"With {sure} confidence, the training procedure is not differentially private with any epsilon below "
            f"{found['epsilon']:.2f} (delta {found['delta']:g}). "
        )
        if found["epsilon"]
        else f"At {sure} confidence, this audit refutes no epsilon at all (delta {found['delta']:g}). "
    )
    text += (
        f"Counted are the right guesses of {found['title']} on each target's one run (Steinke, Nasr and "
        "Jagielski, 2023); the bound is the highest of all targets, corrected for having tried them all."
    )
    return join(
        element("p", text),
        cells.folded(
            len(rows),
            table(
                f"Lower bound of each target by itself, at {sure} confidence; provable is "
                "what would have been shown if every guess had been right",
                ["Target", "Epsilon is at least", "Provable", "Right guesses"],
                rows,
            ),
        ),
    )


def _ramia(found):
    names = {
        "record": "The record itself",
        "one_point": "One changed copy",
        "range": f"{found['points']} changed copies together",
    }
    rows = [
        [
            name,
            cells.auc(found[kind]),
            *(cells.rate(point["tpr"], point["interval"]) for point in found[kind]["tpr_at_fpr"]),
        ]
        for kind, name in names.items()
    ]
    return join(
        element(
            "p",
            "Somebody who holds not the record but a changed copy of it (shifted, mirrored, "
            "perturbed) can still ask whether anything like it was used. Scores of several "
            "copies are averaged (RaMIA, Tao and Shokri, 2024).",
        ),
        table(
            f"{found['title']} with what the attacker holds, 95 % intervals",
            [
                "Attacker holds",
                "AUC",
                *(f"Found at {cells.percent(point['fpr'])} FPR" for point in found["range"]["tpr_at_fpr"]),
            ],
            rows,
        ),
    )


def _duci(found):
    rows = [
        [
            cells.percent(row["share"], 0),
            "-" if row["mean"] is None else cells.percent(row["mean"], 1),
            "-" if row["error"] is None else f"{100 * row['error']:.1f} points",
            f"{100 * row['width']:.1f} points",
            cells.percent(row["covered"], 1),
        ]
        for row in found["rows"]
    ]
    parts = [
        element(
            "p",
            "From guesses about single records, corrected for their known error rates, one can "
            "estimate which share of a whole data set a model was trained on (DUCI, Tong and "
            "others, 2024). Here on data sets for which the share is known, drawn from the "
            "audited records.",
        ),
        table(
            f"Estimates by {found['title']}: {found['rows'][0]['sets']:,} data sets of "
            f"{found['rows'][0]['size']:,} records for each share",
            ["Share used", "Mean estimate", "Mean error", "Width of 95 % interval", "Intervals that hold it"],
            rows,
        ),
    ]
    if found["models"] < 2:
        parts.append(
            element(
                "p",
                "The attack's error rates are known from one model only, so that the intervals leave "
                "out how much models differ.",
                class_="soft",
            )
        )
    if found["groups"]:
        parts.append(
            cells.folded(
                len(found["groups"]),
                table(
                    "Estimates for the groups of the data",
                    ["Group", "Target", "Records", "Used", "Estimate", "95 % interval"],
                    [
                        [
                            row["value"],
                            row["target"],
                            row["records"],
                            cells.percent(row["true"], 1),
                            "-" if row["share"] is None else cells.percent(row["share"], 1),
                            cells.between(row["interval"]),
                        ]
                        for row in found["groups"]
                    ],
                ),
            )
        )
    return join(*parts)


def _users(found):
    audit, parts = found["audit"], []
    if audit is None:
        parts.append(
            element(
                "p",
                f"{found['users']} users are known, but no model was trained on all records of some "
                "and on none of others; nothing can be compared.",
            )
        )
    else:
        rates = "; ".join(
            f"at {cells.percent(point['fpr'])} false positives {cells.percent(point['tpr'])} "
            f"({cells.between(point['interval'])})"
            for point in audit["tpr_at_fpr"]
        )
        parts.append(
            element(
                "p",
                f"A user's records together say more than one alone. Judged by their mean loss "
                f"(set-based membership inference), {audit['members']:,} cases of users whose "
                f"records were used are told from {audit['non_members']:,} of users whose records "
                f"were not: AUC {audit['auc']:.4f}; users found {rates}. To find all of them, "
                f"{cells.percent(audit['fpr_at_100_tpr'])} of the others "
                f"({cells.between(audit['fpr_interval'])}) would be accused.",
            )
        )
    rows = [
        [
            row["user"],
            row["records"],
            f"{row['models_in']} / {row['models_out']}",
            cells.number(row["loss_in"]),
            cells.number(row["loss_out"]),
        ]
        for row in found["rows"][:SHOWN_USERS]
    ]
    more = f" The first {SHOWN_USERS} of {found['users']} are shown." if found["users"] > SHOWN_USERS else ""
    parts.append(
        table(
            f"Users, the largest difference first.{more}",
            ["User", "Records", "Models in / out", "Mean loss if in", "Mean loss if out"],
            rows,
        )
    )
    if found["in_part"]:
        parts.append(
            element(
                "p",
                f"{found['in_part']:,} pairs of user and model were left out because the model was "
                "trained on part of the user's records.",
                class_="soft",
            )
        )
    return join(*parts)


PARTS = {
    "epsilon": ("A lower bound on epsilon", _epsilon),
    "ramia": ("Changed copies of a record (range membership)", _ramia),
    "duci": ("How much of a data set was used", _duci),
    "users": ("Users with several records", _users),
}

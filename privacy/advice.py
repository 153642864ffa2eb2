"""What the report says beside the numbers: what to do, what that costs, what was not tested, what an audit can't say.

Public: steps, countermeasures, untested, limits, MEASURED.
"""

import csv
from pathlib import Path

from privacy.folds import TITLES

# What paper/tables.py wrote of the sweeps of countermeasures.sh.
COSTS = Path(__file__).resolve().parent.parent / "results" / "countermeasures" / "countermeasures-countermeasures.csv"
MEASURED = (
    "Measured in this repository on CIFAR-10, on models and users of its own and not on yours: whether users whose "
    "marked images were trained on are still found by their mean loss at 0.1 % false positives, and what it does to "
    "the accuracy. A countermeasure that hides users from this test need not hide single records from every attack; "
    "audit again with it."
)
# No attack here looks at these.
ALWAYS = (
    "The weights or gradients themselves (white-box attacks): whoever has the model's file may see more.",
    "An attacker who adds records to the training set to make others more visible (poisoning).",
    "Content: what a record looked like, a field of it that is not known, text that is repeated word by word.",
    "Two versions of a model, before and after some records came in or were deleted.",
    "Label-only attacks that search the decision boundary with thousands of questions a record.",
)


def steps(level):
    """What to do at a level of the verdict, in order: a list of texts."""
    fewer = [
        "Train for fewer epochs, or stop when the loss on held-out records no longer falls; use weight decay, "
        "augmentation and, where there are any, more records. The gap between training and test accuracy is the "
        "first thing to close.",
        "Remove duplicates, and where they are not needed, records that are one of a kind (see the most exposed).",
        "Let the model answer with the class alone, or with rounded probabilities; this makes attacks weaker but "
        "does not end them.",
        "For a promise rather than a measurement: train with differential privacy (DP-SGD) and audit again.",
    ]
    by_level = {
        "high": [
            "Treat the model as personal data: a person's membership can be shown from its answers. Do not "
            "publish it or its unrestricted interface as it is.",
            "Carry out, or bring up to date, the data protection impact assessment (in the European Union: "
            "Article 35 GDPR) with these numbers.",
            *fewer,
        ],
        "moderate": [
            "Decide with the numbers for the groups below whether the purpose bears this risk, and write the "
            "decision down in the data protection impact assessment.",
            *fewer,
        ],
        "low": [
            "Keep this report with the documentation of the model. It speaks about this procedure, these records "
            "and these attacks; audit again when any of them changes.",
            "Look at single groups and records below all the same: an average can hide a few who are exposed.",
            "No finding is no proof. Where the data are sensitive, ask for differential privacy (DP-SGD), which "
            "bounds what any attack can do.",
        ],
    }
    return by_level[level]


def countermeasures():
    """(caption, head, rows) of what each countermeasure does and costs, from COSTS; None without that file."""
    try:
        with open(COSTS, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return None
    most = max((int(row["users per run"]) for row in rows), default=0)
    shown = [row for row in rows if int(row["users per run"]) == most]
    if not shown:
        return None
    caption = f"{shown[0]['runs']} runs with {most} users each, {shown[0]['data, network, size']} training images"
    head = ["Countermeasure", "Setting", "Users still found", "Accuracy", "Change of the accuracy, points"]
    return (
        caption,
        head,
        [[row["countermeasure"], row["setting"], row["detected"], row["accuracy"], row["drop"]] for row in shown],
    )


def untested(results):
    """{heading: list of texts}: attacks that could not run, those not asked for, and what no attack here does.

    results: of `privacy.attack.run_attacks`.
    """
    ran = {one["name"] for one in results["attacks"]}
    left = [title for name, title in TITLES.items() if name not in ran and name not in results["skipped"]]
    more = [
        text
        for name, text in (
            ("ramia", "Changed copies of a record (audit.ramia)."),
            ("duci", "Which share of a data set was used (audit.duci)."),
            ("epsilon", "A lower bound on epsilon (audit.epsilon)."),
            ("users", "People with several records (a grouping called user)."),
        )
        if results[name] is None
    ]
    return {
        "Could not run here": [f"{TITLES[name]}: {reason}" for name, reason in results["skipped"].items()],
        "Not asked for": ([f"Attacks: {'; '.join(left)}."] if left else []) + more,
        "By no attack of this program": list(ALWAYS),
    }


def limits(results):
    """What the audit can't say: a list of texts."""
    points = [
        "Attacks show a lower bound of the risk: a better attack may find more, and none finding anything is no "
        "proof of safety.",
        "What was audited is a training procedure, by models trained with it on parts of these records. A model "
        "trained on more records, or for longer, leaks less or more.",
        "Members and non-members come from the same data set. Records of other origin, duplicates and people "
        "with several records are not covered.",
        "The attacker here can train models of the same kind on records of the same kind. Many can't; some can.",
        f"The strongest of {len(results['attacks'])} attacks was picked after seeing the results, which makes "
        "the risk look slightly higher than a single attack would.",
        "Rates over all targets count each pair of record and model as a case; how much wider intervals are that "
        "do not, stands under How sure this is. All targets share one threshold; the mean over targets gives each "
        "its own.",
    ]
    if results["epsilon"] is not None:
        points.append(
            "The bound on epsilon takes each record's membership for a coin of its own. Where exactly half "
            "of the records are used, that holds but for a small correction."
        )
    return points

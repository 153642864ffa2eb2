"""What a choice costs in detection power: measured figures, read from results/ whenever the page is drawn.

Public: summary, of_photos, marking_table, photos_table, noise_table, format_table, holdout_table. A file that is
missing leaves out its rows; nothing is made up.
"""

import csv
import json
from pathlib import Path

from attacks import exact
from kit.errors import UserError
from kit.markup import Raw, element, join, table
from page import look
from provenance.plan import AuditPlan
from provenance.record import published_share

RESULTS = Path(__file__).resolve().parents[2] / "results"
FIGURE_12, TABLE_8 = "ablation/ablation-figure12.csv", "ablation/ablation-table8.csv"
NOISE, POWER, SURVIVAL = "ablation/ablation-noise.csv", "power-1.0/result.json", "survival/result.json"
HELD_OUT, ALONE = "probabilities", "no hold-out, 999 keys"  # audits of studies/power.py
# The rows of Table 8 beside the full mark, as (blending ratio, noise norm).
COMPONENTS = {"blend and noise": (0.7, 8.0), "blend only": (0.7, 0.0), "noise only": (1.0, 8.0), "unmarked": (1.0, 0.0)}
UNMARKED = COMPONENTS["unmarked"]
RATE = "FPR@100%TPR"


def _rows(name):
    try:
        with open(RESULTS / name, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []


def marking_rows():
    """(blending ratio, noise norm, rate, runs, photos a user, users a run, data, file) of all that was measured."""
    found = {}
    for row in _rows(TABLE_8):
        if row["samples"] == "5" and row["marking"] in COMPONENTS:
            found[COMPONENTS[row["marking"]]] = (row, TABLE_8)
    for row in _rows(FIGURE_12):
        if row["samples"] == "5" and row["varied"] in ("img_blending_ratio", "noise_norm"):
            value = float(row["value"])
            found.setdefault((value, 8.0) if row["varied"] == "img_blending_ratio" else (0.7, value), (row, FIGURE_12))
    return [
        (*place, row[RATE], _runs(row), row["samples"], row["users per run"], row["data, network, size"], name)
        for place, (row, name) in sorted(found.items())
    ]


def _runs(row):
    return f"{row['runs']} ({row['runs from-to']} %)"


def nearest(rows, ratio, norm):
    """The place in `rows` of the marking most like a choice: 0.3 in ratio counts as much as 8 in norm."""
    return min(
        range(len(rows)), key=lambda place: ((rows[place][0] - ratio) / 0.3) ** 2 + ((rows[place][1] - norm) / 8) ** 2
    )


def of_photos(photos, holdout, marked=True):
    """What so many photos can prove, for people; nothing without photos. holdout: the share that is held back; marked:
    whether they get a mark, as those of the study did."""
    if not photos:
        return Raw("")
    if not _reachable(photos, holdout, marked):
        enough = next((more for more in range(photos, 1000) if _reachable(more, holdout, marked)), None)
        return look.notice(
            "warn",
            f"{photos:,} photo{'' if photos == 1 else 's'} can prove nothing: there are too few ways to choose a half. "
            + (f"{enough} are enough." if enough else "Hold half of more photos back."),
        )
    plan, measured = AuditPlan.usual(holdout > 0, marked), marked and _power(HELD_OUT if holdout else ALONE)
    grid = exact.Plan(photos, plan.keys, plan.selections, plan.views)
    text = (
        f"You have {photos:,} photos. An audit will ask {grid.queries:,} questions, and the strongest result that can "
        f"come out is one that chance gives in {exact.one_in(grid.smallest_p)} audits."
    )
    if measured:
        of = _study()["settings"]["photos"]
        text += f" With {of} photos and the plain mark, {_share(measured)} users of a small model could prove it."
        text += " Fewer photos prove less." if photos < of else ""
    return element("p", text)


def _reachable(photos, holdout, marked):
    """Whether a first audit, as it is usually planned, could be a proof."""
    plan, published = AuditPlan.usual(holdout > 0, marked), published_share(photos, holdout)
    try:
        exact.plan_grid(photos, [(published, photos)], plan.alpha / 2, plan.keys, plan.selections)
    except UserError:
        return False
    return True


def summary(ratio, norm):
    """One paragraph: the nearest choice that was measured, and the hold-out."""
    rows = marking_rows()
    if not rows:
        return element("p", "No figures were found in results/ablation; run ablation.sh to measure them.")
    row = rows[nearest(rows, ratio, norm)]
    words = "This very choice was measured" if row[:2] == (ratio, norm) else "The nearest choice that was measured"
    held, alone = (_power(name) for name in (HELD_OUT, ALONE))
    holdout = (
        f" Users that could be proven with the held-out half: {_share(held)}; without it: {_share(alone)}."
        if held and alone and (ratio, norm) != UNMARKED
        else ""
    )
    return join(
        element(
            "p",
            f"{words} (blending ratio {row[0]:g}, noise norm {row[1]:g}, {row[4]} photos): when all "
            f"marked users are to be found, {row[2]} % of strangers look as suspicious. Lower is "
            f"better; in brackets 95 % intervals.{holdout}",
        ),
        _source({row[7], POWER} if holdout else {row[7]}),
    )


def marking_table(ratio, norm):
    """How blending ratio and noise norm change the rate of strangers that look as suspicious as a marked user."""
    rows = marking_rows()
    if not rows:
        return Raw("")
    place = nearest(rows, ratio, norm)
    mine = " — yours" if rows[place][:2] == (ratio, norm) else " — nearest"
    lines = [
        [f"{row[0]:g}{mine if number == place else ''}", f"{row[1]:g}", f"{row[2]} %", row[3]]
        for number, row in enumerate(rows)
    ]
    return join(
        table(
            f"Measured with {rows[0][4]} photos a user, {rows[0][5]} users a run (data, network, training images: "
            f"{rows[0][6]}). No choice makes a wrong accusation more likely; a weaker mark finds less.",
            ["blending ratio", "noise norm", "strangers as suspicious", "runs (best-worst)"],
            lines,
        ),
        _source({row[7] for row in rows}),
    )


def photos_table():
    """How the number of photos changes it."""
    rows = [row for row in _rows(TABLE_8) if row["marking"] == "blend and noise"]
    if not rows:
        return Raw("")
    return join(
        table(
            "More photos of one person (the same measurement, blending ratio 0.7, noise norm 8)",
            ["photos a user", "strangers as suspicious", "runs (best-worst)"],
            [[row["samples"], f"{row[RATE]} %", _runs(row)] for row in rows],
        ),
        _source({TABLE_8}),
    )


def noise_table():
    """How the kind of noise changes it."""
    rows = _rows(NOISE)
    if not rows:
        return Raw("")
    return join(
        table(
            f"Kinds of noise (the same measurement, {rows[0]['samples']} photos a user)",
            ["noise", "strangers as suspicious", "runs (best-worst)"],
            [[row["noise"], f"{row[RATE]} %", _runs(row)] for row in rows],
        ),
        _source({NOISE}),
    )


def format_table():
    """What writing JPEG files does."""
    try:
        stored = json.loads((RESULTS / SURVIVAL).read_text(encoding="utf-8"))
        lines = [
            [title, _share(stored["detected"][name]["0.001"])]
            for title, name in (
                ("PNG", "none"),
                ("JPEG, quality 95", "JPEG 95"),
                ("JPEG, quality 75", "JPEG 75"),
                ("JPEG, quality 50", "JPEG 50"),
            )
        ]
        photos = stored["settings"]["photos"]
    except (OSError, ValueError, KeyError, TypeError):
        return Raw("")
    return join(
        table(
            f"File formats: users proven with p at most 0.001 ({photos} photos a user, half held out)",
            ["published as", "users proven (95 % interval)"],
            lines,
        ),
        _source({SURVIVAL}),
    )


def _study():
    """The result of studies/power.py, {} where there is none."""
    try:
        return json.loads((RESULTS / POWER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _power(name):
    """Users proven at 0.001 in one of the audits of studies/power.py, or None."""
    try:
        return _study()["detected"][name]["0.001"]
    except (KeyError, TypeError):
        return None


def holdout_table():
    """What publishing half instead of all does for the exact test."""
    held, alone = (_power(name) for name in (HELD_OUT, ALONE))
    if held is None or alone is None:
        return element("p", f"No figures were found in results/{POWER}; run studies/power.py to measure them.")
    settings = _study()["settings"]
    return join(
        table(
            f"Users whose {settings['photos'] // 2} published photos were used, among {settings['train_size']:,} "
            "training images of CIFAR-10: proven with p at most 0.001 (small network)",
            ["the test compares", "users proven (95 % interval)"],
            [["with the half that was held out", _share(held)], ["from the published photos alone", _share(alone)]],
        ),
        _source({POWER}),
    )


def _share(entry):
    low, high = entry["interval"]
    return f"{entry['hits']} of {entry['of']} ({100 * low:.0f}-{100 * high:.0f} %)"


def _source(names):
    return element("p", "Source: ", ", ".join(f"results/{name}" for name in sorted(names)), class_="soft")

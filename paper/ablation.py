"""Tables of the paper's ablation and countermeasures out of finished runs, ours beside the paper's figures.

Every function takes the DataFrame of `tables.collect`, one row a run, and returns one with a row for each line of the
table: what varies, FPR@100%TPR pooled over the runs with its interval, the paper's, and what else was measured.
Public: ABLATIONS, countermeasures, agreement, marking_varied, main_setting, outlier_name, pooled,
shown, MARKS, SAME.
"""

from itertools import combinations

import numpy as np
import pandas as pd

import countermeasures as defences
from paper import reported
from utils import clopper_pearson

# Runs with different values of these are different experiments; a clean run has the first list in common with the
# marked runs that it is compared with.
SAME = ["dataset", "net_type", "train_size", "epoch", "device", "data", "lr", "batch_size", "precision"]
MARKS = ["marked_samples_per_user", "img_blending_ratio", "noise_injection_type", "noise_norm", "ood_pattern"]
ALPHA = 1e-3


def pooled(false, total):
    """A rate pooled over runs in %, with its 95 % Clopper-Pearson interval."""
    if total.sum() == 0:
        return "-"
    low, high = clopper_pearson(false.sum(), total.sum())
    return f"{100 * false.sum() / total.sum():.2f} ({100 * low:.2f}-{100 * high:.2f})"


def shown(figure, sign=""):
    return "-" if figure is None else f"{figure:{sign}.2f}"


def _line(group, named, paper_fpr=None, kind="set"):
    """One row of a table: `named` (a dict: what varies), then what the runs of a group gave."""
    false, total = ("false_positives", "non_members") if kind == "set" else ("instance_false", "instances")
    return {
        **named,
        "runs": len(group),
        "users per run": "/".join(map(str, sorted(group["users"].unique()))),
        "FPR@100%TPR": pooled(group[false], group[total]),
        "runs from-to": _spread(group[false] / group[total]),
        "paper FPR": shown(paper_fpr),
        **(_calibrated(group) if kind == "set" else {}),
        "AUC": f"{group[f'{kind}_auc'].mean():.4f}",
        "detected": f"{group['detected'].sum()}/{group['users'].sum()}",
        f"exact p <= {ALPHA:g}": _significant(group["exact_target"]),
        "controls": _significant(group["exact_control"]),
        "accuracy": f"{100 * group['accuracy'].mean():.2f}",
        "data, network, size": " ".join(str(group[name].iloc[0]) for name in SAME[:3]),
    }


def _calibrated(group):
    """FPR@100%TPR of the runs with --calibrate, and without it among the same non-members; {} where there are none."""
    group = group.dropna(subset=["calibrated_false"])
    if len(group) == 0:
        return {}
    return {
        f"FPR@100%TPR, {name}": pooled(group[column].astype(int), group["calibrated_others"].astype(int))
        for name, column in (("calibrated", "calibrated_false"), ("plain, same users", "calibrated_plain"))
    }


def _spread(rates):
    """The intervals do not know that a run's users share a model; the smallest and the largest run show it."""
    return f"{100 * rates.min():.2f}-{100 * rates.max():.2f}"


def _significant(lists):
    """How many of the users' p are at most ALPHA, "4/5"."""
    values = [p for ps in lists for p in ps if p is not None]
    return f"{sum(p <= ALPHA for p in values)}/{len(values)}" if values else "-"


def _plain(frame):
    return frame[(frame["countermeasure"] == "none") & (frame["used_share"] == 1)]


def _variant(run):
    """What Table 8 calls a row, or None for a run that belongs to none of its rows."""
    if run["clean_train"]:
        return "unmarked"
    blend, noise = run["img_blending_ratio"] < 1, run["noise_injection_type"] != "none" and run["noise_norm"] > 0
    usual = (not blend or run["img_blending_ratio"] == 0.7) and (
        not noise or (run["noise_injection_type"] == "perlin" and run["noise_norm"] == 8)
    )
    if not usual or (blend and run["ood_pattern"] != "color_stripes"):
        return None
    names = {(True, True): "blend and noise", (True, False): "blend only", (False, True): "noise only"}
    return names.get((blend, noise))


def _fully_marked(frame):
    """The runs with the paper's marking: blend and noise."""
    return frame[np.array([_variant(run) == "blend and noise" for _, run in frame.iterrows()], dtype=bool)]


def _many(frame):
    """The runs with the largest number of users, which is what most tables are about."""
    return frame[frame["users"] == frame["users"].max()] if len(frame) else frame


def table_8(frame):
    """Table 8: what marking consists of, by samples per user."""
    frame = _many(_plain(frame)).copy()
    frame["variant"] = [_variant(run) for _, run in frame.iterrows()]
    frame = frame[frame.groupby("marked_samples_per_user")["variant"].transform("nunique") > 1]
    return pd.DataFrame(
        [
            _line(group, {"marking": variant, "samples": samples}, reported.TABLE_8.get((variant, samples)))
            for variant in ("blend and noise", "blend only", "noise only", "unmarked")
            for samples, group in frame[frame["variant"] == variant].groupby("marked_samples_per_user", sort=True)
        ]
    )


def table_9(frame):
    """Table 9: instance-based against set-based, by samples per user."""
    frame = _fully_marked(_many(_plain(frame)))
    return pd.DataFrame(
        [
            _line(
                group,
                {"inference": f"{kind}-based", "samples": samples},
                reported.TABLE_9.get((f"{kind}-based", samples)),
                kind,
            )
            for kind in ("instance", "set")
            for samples, group in frame.groupby("marked_samples_per_user", sort=True)
        ]
    )


USUAL = {"img_blending_ratio": 0.7, "noise_injection_type": "perlin", "noise_norm": 8.0, "ood_pattern": "color_stripes"}


def marking_varied(frame, column):
    """Runs with blend and noise that differ from the usual marking in `column` alone, and those with the usual one.

    Only numbers of samples with which several values were tried: a comparison has at least two.
    """
    frame = _many(_plain(frame))
    frame = frame[
        (frame["clean_train"] == 0)
        & (frame["img_blending_ratio"] < 1)
        & (frame["noise_norm"] > 0)
        & (frame["noise_injection_type"] != "none")
    ]
    for name in set(USUAL) - {column}:
        frame = frame[frame[name] == USUAL[name]]
    return frame[frame.groupby("marked_samples_per_user")[column].transform("nunique") > 1]


def outlier_name(source):
    """A folder of outlier images by its name, ".../tinyimagenet32/train" as "tinyimagenet32"."""
    parts = [part for part in str(source).split("/") if part and part not in ("train", "test", "val")]
    return parts[-1] if parts else str(source)


def figure_12(frame):
    """Fig. 12: blending ratio and noise norm (whose figures the paper only draws: stronger is better)."""
    return pd.DataFrame(
        [
            _line(group, {"varied": column, "value": value, "samples": samples})
            for column in ("img_blending_ratio", "noise_norm")
            for (samples, value), group in marking_varied(frame, column).groupby(
                ["marked_samples_per_user", column], sort=True
            )
        ]
    )


def figure_13(frame):
    """Fig. 13: where outlier features come from, by samples per user (0.00 at 20 and 25 samples in the paper)."""
    chosen = marking_varied(frame, "ood_pattern")
    return pd.DataFrame(
        [
            _line(
                group,
                {"outlier features": outlier_name(source), "samples": samples},
                0.0 if samples in (20, 25) else None,
            )
            for (source, samples), group in chosen.groupby(["ood_pattern", "marked_samples_per_user"], sort=True)
        ]
    )


def noise_types(frame):
    """Appendix C.1.3: Perlin against uniform noise (the paper: Perlin is better), and Gabor noise."""
    chosen = marking_varied(frame, "noise_injection_type")
    return pd.DataFrame(
        [
            _line(group, {"noise": noise, "samples": samples})
            for (noise, samples), group in chosen.groupby(
                ["noise_injection_type", "marked_samples_per_user"], sort=False
            )
        ]
    )


def table_5(frame):
    """Table 5: share of each user's marked samples that the model was trained on, many users and few."""
    frame = frame[(frame["countermeasure"] == "none") & (frame["clean_train"] == 0)]
    marked = frame[frame["used_share"] < 1]["marked_samples_per_user"].unique()
    frame = frame[frame["marked_samples_per_user"].isin(marked)]
    frame = _fully_marked(frame)
    counts = frame[frame["used_share"] < 1]["users"]
    rows = []
    for users, some in frame.groupby("users", sort=False):
        which = "many" if len(counts) and users == counts.max() and users > 5 else "few"
        rows += [
            _line(group, {"share used": share, "samples": samples}, reported.TABLE_5.get((share, which)))
            for (samples, share), group in sorted(
                some.groupby(["marked_samples_per_user", "used_share"]), key=lambda pair: -pair[0][1]
            )
        ]
    return pd.DataFrame(rows)


ABLATIONS = {
    "Table 8": table_8,
    "Table 9": table_9,
    "Figure 12": figure_12,
    "Figure 13": figure_13,
    "Noise": noise_types,
    "Table 5": table_5,
}


def countermeasures(frame):
    """Section 5.2: one row for each countermeasure and number of users; the drop is to the runs without any."""
    frame = frame[(frame["clean_train"] == 0) & (frame["used_share"] == 1)]
    rows = []
    for users, some in frame.groupby("users", sort=True):
        figures = reported.COUNTERMEASURES if users == 1 else reported.COUNTERMEASURES_MANY
        for (name, value), group in _by_countermeasure(some):
            reference = some[
                (some["countermeasure"] == "none")
                & some["seed"].isin(group["seed"])
                & some["classes"].isin(group["classes"])
            ]
            fpr, accuracy, drop = figures.get((name, value), (None,) * 3)
            line = _line(group, {"countermeasure": name, "setting": "-" if value is None else f"{value:g}"}, fpr)
            line["paper accuracy"] = shown(accuracy)
            line["drop"] = (
                f"{100 * (group['accuracy'].mean() - reference['accuracy'].mean()):+.2f}" if len(reference) else "-"
            )
            line["paper drop"] = shown(drop, "+")
            line["more"] = _more(group["more"])
            rows.append(line)
    return pd.DataFrame(rows)


def main_setting(text):
    """(name, value of the setting that the paper varies, or None) of a countermeasure as runs store it."""
    if text == "none":
        return "none", None
    defence = defences.parse(text)
    setting = reported.MAIN_SETTING.get(defence.name)
    return defence.name, getattr(defence, setting) if setting else None


def _by_countermeasure(frame):
    groups = {main_setting(text): group for text, group in frame.groupby("countermeasure")}
    known = list(dict.fromkeys(name for name, _ in reported.COUNTERMEASURES))

    def place(item):
        (name, value), _ = item
        return known.index(name) if name in known else len(known), name, 0 if value is None else value

    return sorted(groups.items(), key=place)


def _more(dicts):
    """What countermeasures report, for example epsilons, averaged over runs."""
    names = sorted({name for found in dicts for name in found})
    means = {name: np.mean([found[name] for found in dicts if name in found]) for name in names}
    return ", ".join(f"{name} {mean:.3g}" for name, mean in means.items()) or "-"


def agreement(rows):
    """One sentence: of the pairs of rows, with as many users a run, that the paper's FPR orders, how many ours order
    in the same way."""
    have = [
        (float(row["paper FPR"]), *_bounds(row["FPR@100%TPR"])[1:], row["users per run"])
        for _, row in rows.iterrows()
        if row["paper FPR"] != "-" and row["FPR@100%TPR"] != "-"
    ]
    same = opposite = open_ = 0
    for one, other in combinations(have, 2):
        if one[0] == other[0] or one[3] != other[3]:
            continue
        small, large = sorted((one, other))
        if small[2] < large[1]:
            same += 1
        elif large[2] < small[1]:
            opposite += 1
        else:
            open_ += 1
    if not same + opposite + open_:
        return "Order: the paper gives no figures that order these rows."
    return (
        f"Order: of {same + opposite + open_} pairs of rows that the paper's figures order, ours order {same} in "
        f"the same way and {opposite} the other way round; in {open_} the 95 % intervals overlap."
    )


def _bounds(text):
    """(rate, low, high) out of "0.13 (0.04-0.34)"."""
    rate, interval = text.split(" (")
    low, high = interval.rstrip(")").split("-")
    return float(rate), float(low), float(high)

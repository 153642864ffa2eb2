"""Files below <log_dir>/report: tables, curves, scores, and the page that people read.

    attack_result_average.csv   every attack: mean and spread over the targets, and all targets under one threshold
    ROC_average.png, ROC_log_average.png
    exp/TARGET/                 attack_result.csv, ROC.png, ROC_log.png, scores.npz of each target
    most_exposed.csv            the records that are found most surely
    result.json                 everything above as numbers, as report.schema.json (a JSON schema) says
    report.html, report.pdf     one page with everything inside (`privacy.html`), and the same on paper

Public: write_report, AVERAGE_COLUMNS, SCHEMA, FORMAT.
"""

import csv
from pathlib import Path

import numpy as np

from attacks import evaluation
from kit.files import atomic_path, write_arrays, write_json
from kit.plots import figure_of, png_of, save_figure
from kit.progress import Progress
from privacy import html, pdf

FORMAT = "membershiptracker-privacy-report-1"
SCHEMA = Path(__file__).with_name("report.schema.json")
# Families of attacks have a colour; the line says which member of the family.
STYLES = {
    "loss": ("#767676", "-"),
    "population": ("#8c6d1f", "-"),
    "reference": ("#2c8a4b", "-"),
    "rmia_offline": ("#2f74c0", "--"),
    "rmia_online": ("#2f74c0", "-"),
    "lira_offline": ("#c2571a", "--"),
    "lira_online": ("#c2571a", "-"),
    "lira_offline_fixed": ("#a33ea1", "--"),
    "lira_online_fixed": ("#a33ea1", "-"),
    "base_offline": ("#008b8b", "--"),
    "base_online": ("#008b8b", "-"),
    "bavaria_offline": ("#d1323d", "--"),
    "bavaria_online": ("#d1323d", "-"),
    "ensemble_offline": ("#5b5fc7", "--"),
    "ensemble_online": ("#5b5fc7", "-"),
    "quantile": ("#6f7d1c", "-"),
    "label_only": ("#8a6d9b", "--"),
    "label_only_offline": ("#8a6d9b", "-"),
    "trajectory": ("#94705a", "-"),
}
INKS = {"light": ("#ffffff", "#1b1f24"), "dark": ("#161b22", "#e6e8eb")}
AVERAGE_COLUMNS = (
    "attack",
    "targets",
    "auc_mean",
    "auc_std",
    "auc_pooled",
    "auc_pooled_low",
    "auc_pooled_high",
    "fpr_at_100_tpr_mean",
    "fpr_at_100_tpr_pooled",
)


def write_report(folder, signals, results, context):
    """Write all files of the report; each is there whole or not at all, and the page comes last.

    signals: `privacy.signals.Signals`; results: of `privacy.attack.run_attacks`; context: a JSON-ready dict for the
    page, of which these keys have a place of their own: dataset, kind, model_name, models, accuracy [{model, train,
    test}], seconds {stage: s}, hardware, versions, config; others are listed as they are.
    """
    folder = Path(folder)
    arrays = results["arrays"]
    numbers = {name: value for name, value in results.items() if name != "arrays"}
    _write_csv(folder / "attack_result_average.csv", [_average_row(one) for one in results["attacks"]])
    _write_csv(folder / "most_exposed.csv", results["exposed"])
    for place, target in enumerate(Progress(results["targets"], "report", leave=True)):
        scores = {name: rows[place] for name, rows in arrays["scores"].items()}
        _write_target(folder / "exp" / str(target), numbers, signals, place, scores, arrays["membership"][place])
    for scale, name in (("linear", "ROC_average.png"), ("log", "ROC_log_average.png")):
        save_figure(_average_figure(results, scale), folder / name)
    with atomic_path(folder / SCHEMA.name) as temporary:
        temporary.write_bytes(SCHEMA.read_bytes())
    write_json(folder / "result.json", {"format": FORMAT, **numbers, "context": context})
    figures = {
        scale: {ink: png_of(_average_figure(results, scale, ink)) for ink in INKS} for scale in ("linear", "log")
    }
    text = html.render(numbers, context, figures, signals.image_of)
    with atomic_path(folder / "report.html") as temporary:
        temporary.write_text(text, encoding="utf-8")
    lines = pdf.short(numbers, context, html.title(context), html.sentence(numbers))
    pdf.write(folder / "report.pdf", text, lines, [_average_figure(results, scale) for scale in ("log", "linear")])


def _write_target(folder, results, signals, place, scores, is_member):
    rows = [_target_row(one["name"], one["targets"][place]) for one in results["attacks"]]
    _write_csv(folder / "attack_result.csv", rows)
    write_arrays(folder / "scores.npz", records=signals.records, membership=is_member, **scores)
    curves = {name: evaluation.roc(values, is_member)[:2] for name, values in scores.items()}
    labels = {one["name"]: f"{one['title']}, AUC {one['targets'][place]['auc']:.3f}" for one in results["attacks"]}
    for scale, name in (("linear", "ROC.png"), ("log", "ROC_log.png")):
        title = f"Model {results['targets'][place]} as target"
        save_figure(_figure(curves, labels, title, scale, int((~is_member).sum())), folder / name)


def _average_figure(results, scale, ink="light"):
    curves = {
        one["name"]: tuple(np.array(one["mean_roc"][side]) for side in ("fpr", "tpr")) for one in results["attacks"]
    }
    labels = {one["name"]: f"{one['title']}, AUC {one['average']['auc']['mean']:.3f}" for one in results["attacks"]}
    count = len(results["targets"])
    title = f"Mean of {count} target models" if count > 1 else f"Model {results['targets'][0]} as target"
    return _figure(curves, labels, title, scale, results["attacks"][0]["targets"][0]["non_members"], ink)


def _figure(curves, labels, title, scale, non_members, ink="light"):
    """ROC curves {attack: (fpr, tpr)} in one pair of axes."""
    paper, pen = INKS[ink]
    figure, axes = figure_of(1, 1, (5.6, 5.6))
    axis = axes[0, 0]
    # A rate of 0 has no place on a logarithmic axis: below one false positive everything is drawn at half of one.
    least = 0.5 / non_members
    for name, (fpr, tpr) in curves.items():
        fpr, tpr = _corners(np.maximum(fpr, least) if scale == "log" else fpr, tpr)
        color, line = STYLES[name]
        axis.plot(fpr, tpr, line, color=color, linewidth=1.6, label=labels[name])
    axis.plot([1e-6, 1], [1e-6, 1], ":", color=pen, linewidth=1, label="guessing")
    axis.set(
        xscale=scale,
        yscale=scale,
        title=title,
        xlabel="false positive rate (non-members called members)",
        ylabel="true positive rate (members found)",
    )
    if scale == "log":
        axis.set(xlim=(least, 1.2), ylim=(least, 1.2))
    figure.set_facecolor(paper)
    axis.set_facecolor(paper)
    axis.tick_params(which="both", colors=pen)
    for text in (axis.title, axis.xaxis.label, axis.yaxis.label):
        text.set_color(pen)
    for spine in axis.spines.values():
        spine.set_color(pen)
    axis.grid(alpha=0.25, color=pen)
    figure.legend(
        *axis.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        fontsize=8,
        frameon=False,
        labelcolor=pen,
    )
    return figure


def _corners(fpr, tpr):
    """The points where a step curve turns: tens of thousands of points look no different."""
    keep = np.ones(len(fpr), dtype=bool)
    keep[1:-1] = ~(
        ((fpr[1:-1] == fpr[:-2]) & (fpr[1:-1] == fpr[2:])) | ((tpr[1:-1] == tpr[:-2]) & (tpr[1:-1] == tpr[2:]))
    )
    return fpr[keep], tpr[keep]


def _average_row(one):
    pooled, average = one["pooled"], one["average"]
    values = (
        one["name"],
        len(one["targets"]),
        average["auc"]["mean"],
        average["auc"]["std"],
        pooled["auc"],
        *pooled["auc_interval"],
        average["fpr_at_100_tpr"]["mean"],
        pooled["fpr_at_100_tpr"],
    )
    row = dict(zip(AVERAGE_COLUMNS, values, strict=True))
    for mean, point in zip(average["tpr_at_fpr"], pooled["tpr_at_fpr"], strict=True):
        name = f"tpr_at_{100 * point['fpr']:g}%_fpr"
        row |= {
            f"{name}_mean": mean["mean"],
            f"{name}_std": mean["std"],
            f"{name}_pooled": point["tpr"],
            f"{name}_pooled_low": point["interval"][0],
            f"{name}_pooled_high": point["interval"][1],
        }
    return row


def _target_row(name, found):
    row = {
        "attack": name,
        "a": found.get("a"),
        "members": found["members"],
        "non_members": found["non_members"],
        "auc": found["auc"],
        "auc_low": found["auc_interval"][0],
        "auc_high": found["auc_interval"][1],
    }
    for point in found["tpr_at_fpr"]:
        rate = f"tpr_at_{100 * point['fpr']:g}%_fpr"
        row |= {rate: point["tpr"], f"{rate}_low": point["interval"][0], f"{rate}_high": point["interval"][1]}
    return {
        **row,
        "fpr_at_100_tpr": found["fpr_at_100_tpr"],
        "fpr_at_100_tpr_low": found["fpr_interval"][0],
        "fpr_at_100_tpr_high": found["fpr_interval"][1],
    }


def _write_csv(path, rows):
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value):
    # A class may be called =HYPERLINK(...): spreadsheets take what begins like this for a formula.
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value

"""The tab Audit: look around in a finished run of train.py or privacy-audit.py.

Public: build, Found.
"""

import hashlib
import itertools
from functools import lru_cache
from pathlib import Path

import gradio as gr
import numpy as np

from experiment.audit import Audit
from kit import plots
from kit.errors import UserError
from kit.files import read_arrays, read_json
from kit.markup import element, table
from page import look
from page.desk import typed_path
from page.jobs import reason
from utils import clopper_pearson, threshold_at_fpr

MOST_RUNS, MOST_FOLDERS, DEPTH = 200, 5000, 4
EXPOSED = 24
HINT = "Open a finished run of train.py, eval.py or privacy-audit.py."


class Found:
    """Finished runs below some folders, and the reports that were opened, by a number that says nothing of paths."""

    def __init__(self, folders):
        self._folders, self._reports = [Path(folder) for folder in folders], {}

    def choices(self):
        """[(name, path)] of at most MOST_RUNS runs, sorted by name."""
        names = {}
        for root in self._folders:
            # The current folder may be somebody's home.
            for path in itertools.islice(_below(root, DEPTH), MOST_FOLDERS):
                if kind := kind_of(path):
                    names[str(path)] = f"{path} ({kind})"
        return [(name, path) for path, name in sorted(names.items())[:MOST_RUNS]]

    def offer(self, path):
        """The address under which the page may show a report.html."""
        number = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
        self._reports[number] = path
        return f"report/{number}"

    def report(self, number):
        """The path of a report that was offered, None for any other."""
        path = self._reports.get(number)
        return path if path is not None and path.is_file() else None


def _below(folder, depth):
    yield folder
    if depth == 0:
        return
    try:
        inside = sorted(
            path
            for path in folder.iterdir()
            if path.is_dir() and not path.is_symlink() and not path.name.startswith((".", "_"))
        )
    except OSError:
        return
    for path in inside:
        yield from _below(path, depth - 1)


def kind_of(folder):
    """ "train.py" or "privacy-audit.py" for the results of one, None for anything else."""
    try:
        if (folder / "losses.npz").is_file() and (folder / "result.json").is_file():
            return "train.py"
        if (folder / "report.html").is_file() and (folder / "result.json").is_file():
            return "privacy-audit.py"
    except OSError:  # other people's folders
        pass
    return None


def build(found):
    """Fill the tab; returns the dropdown of runs."""
    gr.HTML(look.shown(element("p", HINT)))
    with gr.Row():
        choice = gr.Dropdown(
            found.choices(), value=None, label="Finished runs found here", interactive=True, min_width=300
        )
        folder = gr.Textbox(label="Or the folder of a run", max_lines=1, min_width=300)
    opened = gr.Button("Open", variant="primary", elem_id="audit-open")
    view = gr.HTML(elem_id="audit-view")
    with gr.Group(visible=False) as controls:
        rate = gr.Slider(
            0,
            5,
            0.1,
            step=0.01,
            label="False positive rate that is allowed, in %",
            elem_id="audit-rate",
            info="Of users whose photos were not used, how many may be called used.",
        )
    at_rate, exposed = gr.HTML(elem_id="audit-rates"), gr.HTML(elem_id="audit-exposed")
    path = gr.State(None)
    shown = opened.click(
        lambda choice, folder: _open(found, choice, folder),
        [choice, folder],
        [view, controls, exposed, path],
        **look.ASKED,
    )
    shown.then(_at_rate, [path, rate], at_rate, **look.QUIETLY)
    rate.change(_at_rate, [path, rate], at_rate, trigger_mode="always_last", **look.QUIETLY)
    return choice


def _open(found, choice, typed):
    """(page of the run, its slider, its most exposed records, its folder where there are losses)."""
    text = (typed or "").strip() or choice
    nothing = gr.update(visible=False), "", None
    if not text:
        return look.shown(look.failed("choose a run, or name its folder")), *nothing
    try:
        folder = _report_folder(typed_path(text))
        if kind_of(folder) == "train.py":
            return (_training_page(folder), gr.update(visible=True), _exposed(folder), str(folder))
        return _privacy_page(found, folder), *nothing
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        message = f"{text} has results that neither train.py nor privacy-audit.py wrote; open another folder"
    except Exception as error:
        message = reason(error)
    return look.shown(look.failed(message)), *nothing


def _report_folder(folder):
    """The folder that has the results: the one that was named, or the report below a log_dir."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder", advice="name the folder of a run")
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    for path in (folder, *inside):
        if kind_of(path):
            return path
    raise UserError(
        f"{folder} has no finished run: neither losses.npz nor report.html lies beside a result.json",
        advice="name the folder that train.py or privacy-audit.py printed last",
    )


def _training_page(folder):
    result = read_json(folder / "result.json")
    audit, settings = result["audit"], result["settings"]["training"]
    users = result["verdict"]["users"]
    rows = [
        [
            row["user"],
            row["class"],
            "yes" if row["trained_on"] else "no",
            f"{row['mean_loss']:.4f}",
            "-" if row.get("exact_p") is None else f"{row['exact_p']:.2g}",
            "USED" if row["used"] else "not used",
        ]
        for row in users[:100]
    ]
    kinds = [
        [
            f"{name}-based",
            plots.percent(audit[name]["fpr_at_100_tpr"], audit[name]["fpr_interval"]),
            *(plots.percent(point["tpr"], point["interval"]) for point in audit[name]["tpr_at_fpr"]),
            f"{audit[name]['auc']:.4f}",
        ]
        for name in ("set", "instance")
    ]
    rates = [f"TPR@{100 * point['fpr']:g}%FPR" for point in audit["set"]["tpr_at_fpr"]]
    accuracy = [
        (f"accuracy, {name}", plots.percent(result["accuracy"][name]))
        for name in ("test", "train", "marked")
        if result["accuracy"].get(name) is not None
    ]
    return look.shown(
        element("h2", folder.resolve().name, role="status"),
        look.facts(
            [
                ("data set", settings["dataset"]),
                ("network", settings["net_type"]),
                ("training images", f"{settings['train_size']:,}"),
                ("marked samples a user", settings["marked_samples_per_user"]),
                *accuracy,
                ("hardware", ", ".join(sorted(set(result["hardware"].values())))),
            ]
        ),
        table(
            f"Users; verdict at {plots.percent(result['verdict']['fpr'])} false positives",
            ["user", "class", "trained on", "mean loss", "exact p", "verdict"],
            rows,
        ),
        table("Rates with 95 % intervals", ["inference", "FPR@100%TPR", *rates, "AUC"], kinds),
        _plot(
            folder / "roc.png",
            "ROC of set- and instance-based membership inference, in linear and logarithmic axes",
            "ROC",
        ),
        _plot(
            folder / "losses.png",
            "Histograms of the losses of members and non-members: single samples, and the averages of users",
            "Losses",
        ),
        _plot(folder / "marks.png", "Original, outlier feature, noise and marked copy of some images", "Marks"),
    )


def _plot(path, description, caption):
    return look.figure(path.read_bytes(), description, caption, class_="plot") if path.is_file() else ""


def _losses(folder):
    """(members' losses (users, K), non-members' losses, the members' classes) of a run of train.py."""
    return _losses_of(folder, (folder / "losses.npz").stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _losses_of(folder, _changed):
    answers = Audit.load(folder / "losses.npz")
    return answers.losses("target"), answers.losses("non_member"), answers.classes["target"]


def _exposed(folder):
    """The marked images that the model knows best."""
    member, other, classes = _losses(folder)
    images = read_arrays(folder / "marks.npz").get("images") if (folder / "marks.npz").is_file() else None
    level = (1 + np.searchsorted(np.sort(other.ravel()), member, side="right")) / (1 + other.size)
    order = np.argsort(member, axis=None, kind="stable")[:EXPOSED]
    cards = []
    for user, place in zip(*np.unravel_index(order, member.shape), strict=True):
        picture = ""
        if images is not None and images.shape[:2] == member.shape:
            pixels = np.ascontiguousarray(images[user, place].transpose(1, 2, 0))
            picture = element(
                "img", src=look.data_uri(look.jpeg(pixels, 95), "jpeg"), alt=f"marked image {place} of user {user}"
            )
        cards.append(
            element(
                "li",
                picture,
                element("strong", f"user {user}, image {place}"),
                element("span", f"class {np.ravel(classes[user])[0]}"),
                element("span", f"loss {member[user, place]:.4f}"),
                element("span", f"{100 * level[user, place]:.2f} % of others as low"),
            )
        )
    return look.shown(
        element("h2", "Most exposed records"),
        element(
            "p",
            "The target users' images with the lowest loss: those that the model gives away "
            "most surely. Also a model that gives nothing away has a top of this list; look at "
            "the share of other images that are as low.",
        ),
        element("ul", *cards, class_="cards"),
    )


def _at_rate(folder, percent):
    """Users and samples that are found when so many non-members may be accused."""
    if folder is None:
        return ""
    try:
        member, other, _ = _losses(Path(folder))
    except (UserError, OSError, KeyError) as error:
        return look.shown(look.failed(error))
    rows = []
    for name, inside, outside in (
        ("users (average loss)", member.mean(axis=1), other.mean(axis=1)),
        ("single images", member.ravel(), other.ravel()),
    ):
        threshold = threshold_at_fpr(outside, percent / 100)
        hits, false = int((inside < threshold).sum()), int((outside < threshold).sum())
        rows.append(
            [
                name,
                f"{threshold:.4g}",
                f"{hits:,} of {len(inside):,}",
                plots.percent(hits / len(inside), clopper_pearson(hits, len(inside))),
                f"{false:,} of {len(outside):,}",
            ]
        )
    return look.shown(
        table(
            f"At most {percent:g} % false positives",
            ["inference", "threshold", "found", "true positive rate", "false positives"],
            rows,
        )
    )


def _privacy_page(found, folder):
    """A privacy audit: its headline, its losses, and its report as it is."""
    result = read_json(folder / "result.json")
    rates = [point["fpr"] for point in result["attacks"][0]["pooled"]["tpr_at_fpr"]]
    rows = [
        [
            one["title"],
            f"{one['pooled']['auc']:.4f} ({one['pooled']['auc_interval'][0]:.4f}-"
            f"{one['pooled']['auc_interval'][1]:.4f})",
            *(plots.percent(point["tpr"], point["interval"]) for point in one["pooled"]["tpr_at_fpr"]),
        ]
        for one in result["attacks"]
    ]
    frame = element("iframe", src=found.offer(folder / "report.html"), title="The report of this audit", sandbox="")
    return look.shown(
        element("h2", "/".join(folder.resolve().parts[-2:]), role="status"),
        table(
            "Attacks, all target models under one threshold (95 % intervals)",
            ["attack", "AUC", *(f"TPR@{100 * fpr:g}%FPR" for fpr in rates)],
            rows,
        ),
        _plot(folder / "ROC_log_average.png", "ROC of all attacks in logarithmic axes", "ROC"),
        _privacy_losses(folder, result["targets"][0]),
        element("h2", "The report: risk, most exposed records, groups, everything else"),
        element("p", "It is shown without running anything in it."),
        frame,
    )


def _privacy_losses(folder, target):
    """Losses of the first target's members and non-members."""
    scores = folder / "exp" / str(int(target)) / "scores.npz"
    arrays = read_arrays(scores) if scores.is_file() else {}
    if "loss" not in arrays:
        return ""
    figure, axes = plots.figure_of(1, 1, (6.4, 4))
    inside = arrays["membership"]
    plots.draw_shares(
        axes[0, 0], (-arrays["loss"][~inside], -arrays["loss"][inside]), f"Losses under target model {target}", "loss"
    )
    return look.figure(
        plots.png_of(figure),
        f"Histograms of the losses of members and non-members of model {target}",
        "Losses",
        class_="plot",
    )

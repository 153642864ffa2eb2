"""The report as PDF: the page printed by a Chromium without a window, or plain pages by matplotlib where there is none.

Public: write, short, system_chromium.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from kit.files import atomic_path
from kit.plots import figure_of
from privacy import advice

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 120
WIDTH, LINES = 98, 62  # characters and lines of a page of text


def system_chromium():
    """The path of a Chromium that is installed, or None."""
    return next(filter(None, map(shutil.which, CHROMIUMS)), None)


def write(path, page, lines, figures):
    """Write the PDF whole or not at all; a line on stderr says where a Chromium was there and failed.

    page: the text of report.html; lines: the same in short as plain text, for pages without a Chromium; figures:
    matplotlib figures that follow them.
    """
    with atomic_path(path) as temporary:
        chromium = system_chromium()
        if chromium is not None:
            problem = _printed(chromium, page, temporary)
            if problem is None:
                return
            print(f"note: {chromium} could not print the report ({problem}); the PDF is plain", file=sys.stderr)
        _plain(temporary, lines, figures)


def _printed(chromium, page, path):
    """Print a page; None, or what went wrong. The page has no script and fetches nothing."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "report.html", Path(folder) / "report.pdf"
        # Nobody can unfold paper.
        source.write_text(page.replace("<details>", "<details open>"), encoding="utf-8")
        command = [
            chromium,
            "--headless",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--no-pdf-header-footer",
            f"--user-data-dir={folder}/profile",
            f"--print-to-pdf={target}",
            # Its sandbox refuses to run as root, as in containers.
            *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
            source.as_uri(),
        ]
        try:
            done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return type(error).__name__
        if done.returncode or not target.exists() or not target.read_bytes().startswith(b"%PDF"):
            return f"exit code {done.returncode}"
        shutil.copyfile(target, path)
    return None


def _plain(path, lines, figures):
    from matplotlib.backends.backend_pdf import PdfPages

    wrapped = [part for line in lines for part in (textwrap.wrap(line, WIDTH, subsequent_indent="  ") or [""])]
    with PdfPages(path) as pages:
        for start in range(0, len(wrapped), LINES):
            figure, axes = figure_of(1, 1, (8.27, 11.69))
            axes[0, 0].axis("off")
            text = "\n".join(wrapped[start : start + LINES])
            # Names from elsewhere are no formulas.
            axes[0, 0].text(0, 1, text, va="top", family="monospace", fontsize=8, parse_math=False)
            pages.savefig(figure)
        for figure in figures:
            pages.savefig(figure)


def short(results, context, title, sentence):
    """The report in plain lines: the verdict first, then who is most exposed, what to do, and what was not tested."""
    head = results["headline"]
    lines = [title, "", results["verdict"]["level"].upper() + " RISK", sentence, *results["fairness"]["warnings"], ""]
    lines += ["How well each attack works, all targets under one threshold (95 % intervals):"]
    for one in results["attacks"]:
        pooled = one["pooled"]
        rates = ", ".join(f"{100 * point['tpr']:.2f} % at {100 * point['fpr']:g} %" for point in pooled["tpr_at_fpr"])
        low, high = pooled["auc_clustered"]
        lines.append(f"- {one['title']}: AUC {pooled['auc']:.4f} ({low:.4f}-{high:.4f}); found {rates}")
    lines += ["", f"Most exposed groups, by {head['title']}:"]
    lines += [
        f"- {table['name']} {row['value']}: {100 * (row['tpr'] or 0):.2f} % found of {row['members']}"
        for table in results["groups"]
        for row in table["rows"][:5]
    ]
    lines += ["", "Most exposed records (row, class, found in so many of the models trained on it):"]
    lines += [
        f"- {row['record']}, {row['class']}, {row['found_in']} of {row['models_in']}" for row in results["exposed"][:10]
    ]
    lines += ["", "What to do:", *(f"- {text}" for text in advice.steps(results["verdict"]["level"]))]
    if measured := advice.countermeasures():
        lines += ["", advice.MEASURED, measured[0], *("- " + ", ".join(row) for row in [measured[1], *measured[2]])]
    for heading, points in advice.untested(results).items():
        lines += ["", f"Not tested. {heading}:", *(f"- {text}" for text in points)] if points else []
    facts = [f"{name}: {context[name]}" for name in ("dataset", "model_name", "models", "versions") if name in context]
    return [*lines, "", *facts]

"""The report of a pipeline's audit: files, numbers, and the page that people read."""

import csv
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from attacks import evaluation
from kit import markup
from privacy import advice, attack, html, pdf, report, risk
from tests.privacy.parts import SETTINGS, world

HOSTILE = '<script>alert("1")</script>'
CLINIC = '<i>clinic" onfocus="x'


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report on two targets with everything in it and names that mean harm."""
    owners = np.where(np.arange(96) < 48, np.arange(96) // 8, -1)
    signals = world(
        models=6,
        queries=3,
        records=96,
        population=80,
        targets=[1, 4],
        class_names=[HOSTILE, "=HYPERLINK(1)", '" onload="x', "plain"],
        groups={CLINIC: np.repeat(["a&b", "<u>"], 48), "user": owners},
    )
    for user in range(6):
        signals.membership[:, owners == user] = signals.membership[:, [user * 8]]
    signals.image_of = lambda row: torch.full((3, 40, 30), row % 256, dtype=torch.uint8)
    results = attack.run_attacks(
        signals, {**SETTINGS, "ramia": {}, "duci": {"sets": 2, "group": CLINIC}, "epsilon": {}}
    )
    context = {
        "dataset": HOSTILE,
        "model_name": "mlp",
        "models": 6,
        "config": {"run": {"log_dir": HOSTILE}},
        "accuracy": [{"model": number, "train": 0.9, "test": 0.7} for number in range(6)],
        "seconds": {"data": 1.0},
        "versions": {"python": "3"},
        "hardware": {"train": ["a <cpu>"]},
        "outside": False,
        "note": HOSTILE,
    }
    folder = tmp_path_factory.mktemp("audit") / "report"
    report.write_report(folder, signals, results, context)
    return folder, signals, results, context


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_promised_file_is_there(written):
    folder, *_ = written
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "attack_result_average.csv",
        "ROC_average.png",
        "ROC_log_average.png",
        "most_exposed.csv",
        "result.json",
        "report.schema.json",
        "report.html",
        "report.pdf",
    } | {
        f"exp/{target}/{name}"
        for target in (1, 4)
        for name in ("attack_result.csv", "ROC.png", "ROC_log.png", "scores.npz")
    }


def test_the_average_file_has_the_right_numbers(written):
    # Defect 23: the file that was promised and never written.
    folder, signals, results, _ = written
    average = {row["attack"]: row for row in rows_of(folder / "attack_result_average.csv")}
    single = [{row["attack"]: row for row in rows_of(folder / "exp" / target / "attack_result.csv")} for target in "14"]
    assert set(average) == set(results["arrays"]["scores"]) == set(single[0])
    for name, row in average.items():
        scores, inside = results["arrays"]["scores"][name], signals.membership[[1, 4]]
        aucs = [roc_auc_score(*pair) for pair in zip(inside, scores, strict=True)]
        assert [float(one[name]["auc"]) for one in single] == pytest.approx(aucs)
        assert float(row["auc_mean"]) == pytest.approx(np.mean(aucs)) and row["targets"] == "2"
        assert float(row["auc_std"]) == pytest.approx(np.std(aucs, ddof=1))
        pooled = evaluation.evaluate(scores.ravel(), inside.ravel(), resamples=2)
        assert float(row["auc_pooled"]) == pytest.approx(pooled["auc"])
        for point, fpr in zip(pooled["tpr_at_fpr"], ("1", "0.1", "0.01", "0"), strict=True):
            assert float(row[f"tpr_at_{fpr}%_fpr_pooled"]) == pytest.approx(point["tpr"])
            assert float(row[f"tpr_at_{fpr}%_fpr_pooled_high"]) == pytest.approx(point["interval"][1])
            assert float(row[f"tpr_at_{fpr}%_fpr_mean"]) == pytest.approx(
                np.mean([float(one[name][f"tpr_at_{fpr}%_fpr"]) for one in single])
            )


def test_scores_and_results_can_be_read_again(written):
    folder, signals, results, _ = written
    with np.load(folder / "exp" / "4" / "scores.npz", allow_pickle=False) as stored:
        assert np.array_equal(stored["membership"], signals.membership[4])
        assert np.array_equal(stored["rmia_offline"], results["arrays"]["scores"]["rmia_offline"][1])
        assert np.array_equal(stored["records"], signals.records)
    numbers = json.loads((folder / "result.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert numbers["headline"] == results["headline"] and "arrays" not in numbers
    assert numbers["context"]["dataset"] == HOSTILE
    for path in folder.rglob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_names_cannot_become_formulas_in_a_spreadsheet(written):
    folder, *_ = written
    rows = rows_of(folder / "most_exposed.csv")
    assert {row["class"] for row in rows} == {HOSTILE, "'=HYPERLINK(1)", '" onload="x', "plain"}
    assert not any(value.startswith(("=", "+", "@")) for row in rows for value in row.values())


class Reader(HTMLParser):
    """Tags with their attributes, headings in order, text, and whether all tags are closed."""

    EMPTY = ("meta", "img", "source", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def read_page(folder):
    return Reader((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_holds_everything_and_runs_nothing(written):
    folder, *_ = written
    reader = read_page(folder)
    assert not reader.open
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object", "base", "form", "b", "i", "u"}
    for tag, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "srcset", "href", "data", "action"):
            value = attributes.get(name, "#")
            assert value.startswith(("data:image/png;base64,", "#")), (tag, value[:80])
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?:", text)


def test_names_that_mean_harm_are_shown_as_text(written):
    folder, *_ = written
    text = "".join(read_page(folder).text)
    for name in (HOSTILE, '" onload="x', "=HYPERLINK(1)", "a&b", "<u>", CLINIC, "a <cpu>"):
        assert name in text
    assert "<script" not in (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_can_be_read_by_everybody(written):
    folder, *_ = written
    reader = read_page(folder)
    assert reader.all("html")[0]["lang"] == "en" and len(reader.all("h1")) == len(reader.all("title")) == 1
    headings = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and all(after <= before + 1 for before, after in pairwise(headings))
    assert all(one.get("scope") in ("col", "row") for one in reader.all("th"))
    assert len(reader.all("caption")) == len(reader.all("table")) > 6
    assert all(one["alt"] for one in reader.all("img")) and len(reader.all("img")) == 2 + risk.EXPOSED
    assert len(reader.all("main")) == 1 and "width=device-width" in str(reader.all("meta"))
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and {one["href"][1:] for one in reader.all("a")} == set(ids)


def contrast(one, other):
    """Of two colours #rrggbb: WCAG 2.1."""

    def luminance(color):
        parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_enough_in_light_and_dark():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{([^}]*)\}", markup.CSS)
    )
    dark = {**light, **dark}
    for colors in (light, dark):
        for ink in ("ink", "soft", "link"):
            assert min(contrast(colors[ink], colors[paper]) for paper in ("paper", "tint")) >= 4.5
        assert min(contrast("#ffffff", colors[level]) for level in html.LEVELS) >= 4.5
    for paper, pen in report.INKS.values():
        assert contrast(paper, pen) >= 7
        assert min(contrast(color, paper) for color, _ in report.STYLES.values()) >= 3  # lines, not text


def test_the_page_says_the_numbers_in_plain_words(written):
    folder, _, results, _ = written
    text = " ".join("".join(read_page(folder).text).split())
    head = results["headline"]
    assert f"{head['hits']:,} of {head['members']:,} members found" in text
    assert html.LEVELS[results["verdict"]["level"]] in text
    for one in results["attacks"]:
        assert f"{one['pooled']['auc']:.4f}" in text
    sentence = html.sentence({"headline": {"fpr": 1e-3, "tpr": 0.037, "non_members": 5000}})
    assert sentence == (
        "Of 1,000 records that were NOT used, at most 1 would be called a member; the attack finds 37 "
        "of 1,000 that were."
    )
    rare = html.sentence({"headline": {"fpr": 1e-4, "tpr": 0.00125, "non_members": 50_000}})
    assert "Of 10,000 records" in rare and "finds 12 of 10,000" in rare


@pytest.mark.parametrize("level", html.LEVELS)
def test_every_level_has_its_words_and_its_advice(written, level):
    _, _, results, context = written
    figures = {scale: {"light": b"png", "dark": b"png"} for scale in ("log", "linear")}
    numbers = {name: value for name, value in results.items() if name != "arrays"}
    numbers["verdict"] = {**results["verdict"], "level": level, "ratio": {"high": 12, "moderate": 1, "low": 1}[level]}
    text = html.render(numbers, context, figures)
    assert html.LEVELS[level] in text and f'class="verdict {level}"' in text
    others = set(html.LEVELS) - {level}
    assert not any(f'class="verdict {other}"' in text for other in others)
    assert ("data protection impact assessment" in text) == (level != "low")
    assert "Most exposed records" in text  # without images, a table


def test_a_page_of_the_least_that_an_audit_gives(tmp_path):
    signals = world(models=4, records=40, population=20, targets=[0])
    results = attack.run_attacks(signals, {**SETTINGS, "attacks": ["loss"], "fprs": [0.0]})
    report.write_report(tmp_path, signals, results, {})
    text = "".join(read_page(tmp_path).text)
    assert "At a threshold above all 20 records" in text and "nan" not in text.lower().split()


def test_a_report_that_fails_leaves_the_old_one(written, tmp_path, monkeypatch):
    _, signals, _, context = written
    few = attack.run_attacks(signals, {**SETTINGS, "attacks": ["loss"]})
    report.write_report(tmp_path, signals, few, context)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report.html, "render", fail)
    with pytest.raises(KeyboardInterrupt):
        report.write_report(tmp_path, signals, few, {**context, "dataset": "another"})
    assert (tmp_path / "report.html").read_bytes() == before[tmp_path / "report.html"]
    monkeypatch.setattr(report, "_cell", fail)
    with pytest.raises(KeyboardInterrupt):
        report.write_report(tmp_path, signals, few, context)
    path = tmp_path / "attack_result_average.csv"
    assert path.read_bytes() == before[path]
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(before)


def test_result_json_is_what_the_schema_says(written):
    jsonschema = pytest.importorskip("jsonschema")
    folder, *_ = written
    schema, numbers = (json.loads((folder / name).read_text()) for name in ("report.schema.json", "result.json"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(numbers)
    # A schema that lets everything pass is none.
    for change in (
        lambda one: one.pop("verdict"),
        lambda one: one["verdict"].update(level="fine"),
        lambda one: one["attacks"][0]["pooled"].update(auc=1.2),
        lambda one: one["attacks"][0]["pooled"]["tpr_at_fpr"][0].pop("clustered"),
        lambda one: one.update(more=1),
    ):
        wrong = json.loads(json.dumps(numbers))
        change(wrong)
        assert not validator.is_valid(wrong)


def text_of_pdf(path):
    return path.read_bytes()[:5]


def test_a_chromium_prints_the_page(written, chromium, tmp_path, monkeypatch, capfd):
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    folder, *_ = written
    monkeypatch.setattr(pdf, "system_chromium", lambda: chromium)
    pdf.write(tmp_path / "report.pdf", (folder / "report.html").read_text(), ["plain"], [])
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF-") and capfd.readouterr().err == ""
    # Matplotlib did not draw it, and it has the pages that all of the report needs.
    assert b"atplotlib" not in content and len(re.findall(rb"/Type\s*/Page\b", content)) > 3


def test_a_pdf_is_drawn_without_a_browser(written, tmp_path, monkeypatch, capfd):
    folder, _, results, context = written
    assert text_of_pdf(folder / "report.pdf") == b"%PDF-"
    lines = pdf.short(results, context, "A title", "A sentence.")
    text = "\n".join(lines)
    # The verdict first, then groups, records, what to do, what was not tested.
    parts = [
        "RISK",
        "Most exposed groups",
        "Most exposed records",
        "What to do",
        "Not tested. By",
    ]
    assert sorted(parts, key=text.index) == parts and text.index("A sentence.") < text.index(parts[1])
    assert HOSTILE in text and results["attacks"][0]["title"] in text
    pdf.write(tmp_path / "plain.pdf", "", [*lines, "$a^$ \\frac"], [])
    assert text_of_pdf(tmp_path / "plain.pdf") == b"%PDF-" and capfd.readouterr().err == ""
    # A browser that fails is named, and there is a PDF all the same.
    monkeypatch.setattr(pdf, "system_chromium", lambda: "/bin/false")
    pdf.write(tmp_path / "other.pdf", "", lines, [])
    assert text_of_pdf(tmp_path / "other.pdf") == b"%PDF-" and "could not print" in capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"plain.pdf", "other.pdf"}


def test_the_page_begins_with_the_verdict_and_who_is_exposed_and_names_what_was_not_tested(written):
    folder, _, results, _ = written
    reader = read_page(folder)
    places = [attributes["id"] for tag, attributes in reader.tags if tag == "h2"]
    assert places[:5] == ["words", "groups", "exposed", "do", "untested"]
    text = "".join(reader.text)
    assert "Countermeasures that this program measures" in text
    untested = advice.untested(results)
    assert untested["By no attack of this program"] and all(p in text for points in untested.values() for p in points)
    few = advice.untested({**results, "attacks": results["attacks"][:1], "skipped": {"lira_online": "too few"}})
    assert "RMIA, online" in few["Not asked for"][0] and "LiRA, online;" not in few["Not asked for"][0]
    assert few["Could not run here"] == ["LiRA, online: too few"]


def test_costs_of_countermeasures_are_read_and_not_made_up(tmp_path, monkeypatch):
    caption, head, rows = advice.countermeasures()
    with open(advice.COSTS, newline="") as file:
        stored = [row for row in csv.DictReader(file) if row["users per run"] == "10"]
    assert rows and len(rows[0]) == len(head) and "10 users" in caption
    assert [row[4] for row in rows] == [row["drop"] for row in stored]
    monkeypatch.setattr(advice, "COSTS", tmp_path / "none.csv")
    assert advice.countermeasures() is None


def test_an_unfair_comparison_stands_in_the_verdict(written):
    _, _, results, context = written
    figures = {scale: {"light": b"png", "dark": b"png"} for scale in ("log", "linear")}
    numbers = {name: value for name, value in results.items() if name != "arrays"}
    numbers["fairness"] = {**results["fairness"], "warnings": ["members are <easier>"]}
    text = html.render(numbers, context, figures)
    assert "members are &lt;easier&gt;" in text.split("<nav")[0]
    assert "Not a fair comparison" not in html.render({**numbers, "fairness": results["fairness"]}, context, figures)

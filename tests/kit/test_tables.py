"""Tables of text, rows `name value`, bars that keep quiet, and the base style sheet."""

import re

import pytest

from kit import cli, markup, tables
from kit.environment import software_versions
from kit.progress import Progress, watched


@pytest.mark.parametrize(
    "aligned, wanted",
    [
        (False, "| a | long |\n| --- | --- |\n| 1 | x |\n| None | 2.5 |\n"),
        (True, "| a    | long |\n| ---- | ---- |\n| 1    | x    |\n| None | 2.5  |\n"),
    ],
)
def test_markdown(aligned, wanted):
    assert tables.markdown(["a", "long"], [[1, " x "], [None, 2.5]], aligned) == wanted


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError):
        tables.markdown(["a", "b"], [[1]])


def test_columns_stand_below_each_other():
    assert tables.columns([["a", "b", "c"], ["long", "", "x"]]) == ["a     b  c", "long     x"]
    assert tables.columns([["a", "b"], ["long", ""]], [3, 5]) == ["a  b", "long"]  # a cell that is too long is not cut


@pytest.mark.parametrize("width, wanted", [(None, "a    1\nbcd  x\n"), (8, "a       1\nbcd     x\n")])
def test_rows(capsys, width, wanted):
    cli.show_rows([("a", 1), ("bcd", "x")], width)
    assert capsys.readouterr().out == wanted


def test_a_bar_that_is_not_shown_is_not_told():
    told = []
    with watched(lambda *step: told.append(step)):
        assert list(Progress([1, 2], "short", disable=True)) == [1, 2]
        with Progress(total=2, desc="counted", leave=True) as bar:
            bar.update(2)
            bar.set_postfix(loss="0.1")
    assert told == [("counted", 0, 2), ("counted", 2, 2)]


def test_the_build_is_part_of_a_version():
    torch = pytest.importorskip("torch")
    found = software_versions("no-such-package")
    assert found["torch"] == str(torch.__version__) and "no-such-package" not in found
    assert {"membershiptracker", "python", "numpy", "pillow"} < found.keys()


def test_every_rule_of_the_base_is_below_its_scope():
    scoped, plain = markup.base_style(".mt"), markup.base_style()
    selectors = [
        one.strip() for found in re.findall(r"([^{}]+){", scoped) for one in found.split(",") if "@media" not in found
    ]
    assert selectors and all(one.startswith(".mt ") for one in selectors)
    assert re.sub(r"\s+", " ", scoped.replace(".mt ", "")) == re.sub(r"\s+", " ", plain)
    assert plain in markup.CSS

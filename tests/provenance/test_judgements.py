"""The log of judgements: the k-th is made at alpha / 2^k, and what was judged before is not hidden where it shows."""

import json
import shutil
from types import SimpleNamespace

import pytest

from attacks.exact import AUTO
from provenance import judgements
from provenance.judgements import Judgement, check_log, next_judgement, open_judgement, read_log
from suspects.suspect import Preprocessing
from tests.parts import user_error
from tests.provenance.parts import COMMITTED, QUERIES, bundle_record, flat, make_record, refused

pytestmark = pytest.mark.usefixtures("without_plots")

FREE = ("--device", "cpu")  # as it was committed, at alpha 0.5


def suspect(name="m", sha256=None):
    identity = {"kind": "test", "file": name, **({"sha256": sha256} if sha256 else {})}
    return SimpleNamespace(identity=identity, preprocessing=Preprocessing((32, 32)))


def judge(entries, record, model, asking=1, left_out=(), **changes):
    plan = record.plan.model_copy(update=changes)
    return next_judgement(entries, record, plan, record.plan, model, [], 1, asking, left_out)


def logged(path, record, *wanted):
    """A log with a judgement for each (suspect, asking, changes)."""
    for model, asking, changes in wanted:
        open_judgement(path, judge(read_log(path), record, model, asking, **changes))
    return read_log(path)


# --- k ---


def test_the_k_th_judgement_of_a_model_is_made_at_alpha_over_two_to_the_k(tmp_path):
    record, a, b = bundle_record(), suspect("a"), suspect("b")
    wanted = [(a, 1, {}), (b, 1, {}), (a, 1, {"label": "1"}), (a, 2, {}), (b, 1, {"alpha": 0.05})]
    entries = logged(tmp_path / "log.json", record, *wanted)
    assert [entry.number for entry in entries] == [1, 1, 2, 3, 2]
    assert [entry.alpha for entry in entries] == [0.05, 0.05, 0.025, 0.0125, 0.0125]


def test_a_file_is_one_model_under_every_name(tmp_path):
    """Copies of one file under other names were judged at alpha / 2 each."""
    copies = [(suspect(name, "ab" * 32), 1, {"label": str(n)}) for n, name in enumerate(("a.pt", "b.pt", "c.pt"))]
    entries = logged(tmp_path / "log.json", bundle_record(), *copies, (suspect("a.pt", "cd" * 32), 1, {}))
    assert [entry.number for entry in entries] == [1, 2, 3, 1]


def test_batches_count_as_looks(tmp_path):
    """Their maker could have stopped before each of them."""
    record = make_record((10, 0.5), (6, 0.5), (4, 0.5), plan=bundle_record().plan)
    entries = logged(tmp_path / "log.json", record, (suspect(), 1, {}), (suspect(), 1, {"label": "1"}))
    assert [(entry.number, entry.alpha) for entry in entries] == [(3, 0.1 / 8), (4, 0.1 / 16)]


def test_the_same_again_is_the_same_judgement(tmp_path):
    record, path = bundle_record(), tmp_path / "log.json"
    first = logged(path, record, (suspect(), 1, {}))
    again = judge(read_log(path), record, suspect())
    assert again == first[0] and open_judgement(path, again) == (again, first)
    for changes in ({"asking": 2}, {"left_out": [3]}, {"label": "1"}, {"audit_seed": "court"}):
        assert judge(read_log(path), record, suspect(), **changes).number == 2
    assert judge(read_log(path), record, suspect("other")).number == 1


# --- a log that somebody changed ---


@pytest.fixture
def entries(tmp_path):
    found = logged(
        tmp_path / "log.json", bundle_record(), *((suspect(), 1, {"label": str(number)}) for number in range(4))
    )
    return [entry.model_dump(mode="json") for entry in found]


CHANGES = {
    "the first deleted": lambda log: log.pop(0),
    "one deleted": lambda log: log.pop(1),
    "two exchanged": lambda log: log.__setitem__(slice(0, 2), log[1::-1]),
    "reversed": lambda log: log.reverse(),
    "twice": lambda log: log.append(log[0]),
    "label": lambda log: log[1]["plan"].update(label="9"),
    "alpha": lambda log: log[0].update(alpha=0.04),
    "begun": lambda log: log[2].update(begun="yesterday"),
    "number": lambda log: log[3].update(number=2),
    "previous": lambda log: log[1].update(previous="0" * 64),
    "model": lambda log: log[0].update(model={}),
    "asking": lambda log: log[0].update(asking=2),
    "left out": lambda log: log[0].update(left_out=[1]),
    "departures": lambda log: log[0].update(departures=["x"]),
    "more": lambda log: log[0].update(more=1),
    "p 0": lambda log: log[3].update(p_value=0.0),
    "p no number": lambda log: log[3].update(p_value="x"),
    "no entry": lambda log: log.append(None),
}


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in CHANGES.items()])
def test_a_changed_log_is_refused(entries, tmp_path, change):
    change(entries)
    (tmp_path / "log.json").write_text(json.dumps(entries))
    user_error(lambda: read_log(tmp_path / "log.json"), "log.json")
    user_error(lambda: check_log(entries, "bundle"), "bundle")


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"null", b"5", b"[[]]", b"\xff", b"[" * 100_000])
def test_files_that_are_no_log(tmp_path, content):
    (tmp_path / "log.json").write_bytes(content)
    user_error(lambda: read_log(tmp_path / "log.json"), "log.json")


def test_nothing_comes_between_plan_and_log(tmp_path):
    """Two audits at once: the second one's plan was made for another log."""
    record, path = bundle_record(), tmp_path / "log.json"
    first, second = judge([], record, suspect()), judge([], record, suspect(), label="1")
    open_judgement(path, first)
    user_error(lambda: open_judgement(path, second), "meanwhile")
    assert [entry.digest for entry in read_log(path)] == [first.digest]


def test_what_came_out_is_noted_and_is_not_part_of_the_plan(tmp_path):
    path = tmp_path / "log.json"
    first, second = logged(path, bundle_record(), (suspect(), 1, {}), (suspect(), 1, {"label": "1"}))
    noted = judgements.conclude_judgement(path, second, 0.25)
    assert [entry.p_value for entry in noted] == [None, 0.25] == [entry.p_value for entry in read_log(path)]
    assert [entry.digest for entry in noted] == [first.digest, second.digest]


def test_a_digest_is_of_every_field():
    record = bundle_record()
    entry = judge([], record, suspect())
    other = {
        "begun": "x",
        "commitments": [],
        "plan": entry.plan.model_copy(update={"keys": 5}),
        "model": {},
        "preprocessing": "x",
        "asking": 2,
        "number": 2,
        "departures": ["x"],
        "left_out": [1],
        "alpha": 0.01,
        "previous": "ab" * 32,
    }
    assert other.keys() | {"p_value"} == Judgement.model_fields.keys()
    assert len({entry.model_copy(update={name: value}).digest for name, value in other.items()} | {entry.digest}) == 12


# --- eval.py ---


def log_of(record):
    return json.loads((record.parent / "judgements.json").read_text())


def test_other_plans_other_folders_and_other_names_are_counted(audit, asked, innocent, record, tmp_path):
    """The whole way: alpha / 2, then with another label, in another folder, and as a renamed file."""
    checkpoint, flags = innocent
    done = audit(tmp_path / "a", *flags, checkpoint=checkpoint, grid=FREE)
    assert done.code == 0 and done.result["alpha"] == 0.25 and len(asked.images) == QUERIES
    asked.images = []
    done = audit(tmp_path / "a", *flags, "--label", "1", checkpoint=checkpoint, grid=FREE)
    assert done.result["alpha"] == 0.5 / 4 / (2 * 8 * 2 * 5) and asked.images == [], "the stored answers are used"
    assert "judgement 2 of this model" in flat(done.out) and "what came out of all of them: p " in flat(done.out)
    done = audit(tmp_path / "b", *flags, checkpoint=checkpoint, grid=FREE)
    assert done.result["alpha"] == 0.5 / 8 and len(asked.images) == QUERIES, "asked anew, and counted"
    copy = shutil.copy(checkpoint, tmp_path / "renamed.pt")
    done = audit(tmp_path / "c", *flags, checkpoint=copy, grid=FREE)
    assert done.result["alpha"] == 0.5 / 16
    asked.images = []
    done = audit(tmp_path / "a", *flags, checkpoint=checkpoint, grid=FREE)
    assert done.result["alpha"] == 0.25 and asked.images == [], "the same audit again is the same judgement"
    assert [entry["number"] for entry in log_of(record)] == [1, 2, 3, 4]
    assert [entry["asking"] for entry in log_of(record)] == [1, 1, 2, 3]
    assert all(entry["p_value"] is not None for entry in log_of(record))


def test_other_models_are_said(audit, innocent, script, tmp_path):
    checkpoint, flags = innocent
    assert audit(tmp_path / "a", *flags, checkpoint=checkpoint).code == 0
    done = audit(tmp_path / "b")
    assert done.code == 0 and done.result["alpha"] == 0.0005, "each model has its own alpha"
    assert "1 other model was audited with this record" in flat(done.out)
    done = script("eval", "--replay", tmp_path / "b" / "evidence.zip")
    assert "1 other model was audited with this record" in flat(done.out)


def test_a_log_that_was_deleted_is_missed_where_its_plan_lies(audit, asked, record, tmp_path):
    assert audit(tmp_path / "a").code == 0
    log, asked.images = record.parent / "judgements.json", []
    log.rename(tmp_path / "hidden.json")
    refused(audit(tmp_path / "a"), "not in the log of judgements")
    refused(audit(tmp_path / "a", "--label", "1", grid=FREE), "not in the log of judgements")
    (tmp_path / "hidden.json").rename(log)
    log.write_text(log.read_text()[:-30])
    refused(audit(tmp_path / "b"), "judgements.json")
    assert asked.images == []


def test_the_bundle_of_a_judgement_keeps_those_before_it(audit, script, tmp_path):
    assert audit(tmp_path / "a", grid=FREE).code == 0
    assert audit(tmp_path / "a", "--label", "0", grid=FREE).code == 0
    kept = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"evidence-judgement-1.zip", "result-judgement-1.json", "grid-judgement-1.png"} <= kept
    for name in ("evidence.zip", "evidence-judgement-1.zip"):
        assert script("eval", "--replay", tmp_path / "a" / name).code == 0
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["judgement"]["number"] == 2 and result["judgement"]["plan"]["label"] == "0" != COMMITTED[1] != AUTO
    plan = json.loads((tmp_path / "a" / "plan.json").read_text())
    assert plan["plan_sha256"] == result["plan_sha256"] and "p_value" not in plan


def test_a_damaged_plan_is_one_line(audit, tmp_path):
    assert audit(tmp_path / "a").code == 0
    for content in ("", "[]", "{}", '{"plan_sha256": 5}'):
        (tmp_path / "a" / "plan.json").write_text(content)
        refused(audit(tmp_path / "a"), "plan.json")

"""Audits from files alone: formats, scales, what can be said from what, and files that mean harm."""

import importlib
import json

import numpy as np
import pandas
import pytest
import yaml
from scipy.special import log_softmax

import utils
from attacks import base, lira
from attacks.signals import scaled_from_losses
from privacy import scores
from privacy.pipeline import Clock
from tests.privacy.parts import error_of

RECORDS, CLASSES, MODELS = 600, 3, 5


def made(seed=0, leak=1.5):
    """Logits (M, N, C), labels (N,), membership (M, N) of models that leak."""
    draws = np.random.default_rng(seed)
    labels = np.arange(RECORDS) % CLASSES
    inside = draws.random((MODELS, RECORDS)) < 0.4
    inside[:, RECORDS // 2 :] &= np.arange(RECORDS // 2) % 2 == 0  # the others are nobody's
    logits = draws.normal(0, 0.5, (MODELS, RECORDS, CLASSES))
    logits[:, np.arange(RECORDS), labels] += draws.normal(1, 1, RECORDS) + leak * inside
    return logits, labels, inside


LOGITS, LABELS, INSIDE = made()
LOSSES = -np.take_along_axis(log_softmax(LOGITS, axis=2), LABELS[None, :, None], axis=2)[..., 0]


def table_of(values, kind="csv"):
    """Columns of every model: values (M, N) or (M, N, C)."""
    columns = {
        "label": LABELS,
        "city": np.where(np.arange(RECORDS) % 2, "Bern", "Graz"),
        "age": np.arange(RECORDS) % 90,
    }
    for model, rows in enumerate(values):
        columns[f"in_{model}"] = INSIDE[model].astype(int)
        if rows.ndim == 1 or kind == "npz":
            columns[f"v_{model}"] = rows
        else:
            columns |= {f"v_{model}_{label}": rows[:, label] for label in range(CLASSES)}
    return columns


def names_of(model, values, kind):
    return f"v_{model}" if values.ndim == 2 or kind == "npz" else [f"v_{model}_{label}" for label in range(CLASSES)]


def write_folder(folder, numbers, scale, kind="csv", references=True, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    columns, path = table_of(numbers, kind), folder / f"scores.{kind}"
    if kind == "npz":
        np.savez(path, **{name: column for name, column in columns.items() if column.dtype.kind != "U"})
    else:
        getattr(pandas.DataFrame(columns), {"csv": "to_csv", "parquet": "to_parquet"}[kind])(path, index=False)
    content = {
        "table": path.name,
        "values": scale,
        "label": "label",
        "member": "in_0",
        "target": names_of(0, numbers, kind),
        **(
            {
                "references": [
                    {"values": names_of(model, numbers, kind), "member": f"in_{model}"} for model in range(1, MODELS)
                ]
            }
            if references
            else {}
        ),
        **changes,
    }
    text = yaml.safe_dump({name: value for name, value in content.items() if value is not None})
    (folder / "scores.yaml").write_text(text)
    return folder


def signals_of(folder):
    return scores._signals(folder, scores.load(folder))


def test_every_scale_gives_the_signals_of_the_logits(tmp_path):
    chances = np.exp(log_softmax(LOGITS, axis=2))
    found = {
        "logits": signals_of(write_folder(tmp_path / "a", LOGITS, "logits"))[0],
        "chances": signals_of(write_folder(tmp_path / "b", chances, "probabilities"))[0],
        "right": signals_of(write_folder(tmp_path / "c", np.exp(-LOSSES), "probabilities"))[0],
        "losses": signals_of(write_folder(tmp_path / "d", LOSSES, "losses"))[0],
        "margins": signals_of(write_folder(tmp_path / "e", scaled_from_losses(LOSSES), "logits"))[0],
    }
    rows = found["logits"].records
    for name, one in found.items():
        assert np.array_equal(one.records, rows) and np.array_equal(one.membership, INSIDE[:, rows])
        assert np.allclose(one.losses[:, 0], LOSSES[:, rows], rtol=1e-5, atol=1e-6), name
        assert np.allclose(one.scaled[:, 0], scaled_from_losses(LOSSES[:, rows]), rtol=1e-4, atol=1e-4), name
        assert len(one.population_labels) + len(rows) == (~INSIDE[1:].all(axis=0)).sum() and one.target_ids == [0]
    assert np.array_equal(found["logits"].hits[:, 0], (LOGITS.argmax(axis=2) == LABELS)[:, rows])
    assert found["losses"].hits is None


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_formats_give_the_same_signals(kind, tmp_path):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    plain, _ = signals_of(write_folder(tmp_path / "csv", LOGITS, "logits"))
    other, _ = signals_of(write_folder(tmp_path / kind, LOGITS, "logits", kind))
    for name in ("losses", "scaled", "membership", "population_losses", "labels", "records", "features"):
        assert np.array_equal(getattr(plain, name), getattr(other, name)), name


def test_the_population_is_in_no_models_training_set_and_leaves_non_members(tmp_path):
    found, _ = signals_of(write_folder(tmp_path / "a", LOSSES, "losses"))
    free = np.flatnonzero(~INSIDE.any(axis=0))
    # The target has more other non-members than there are free records, so that all of these serve.
    assert np.array_equal(found.population_losses[:, 0], LOSSES[:, free].astype(np.float32))
    assert not np.isin(free, found.records).any() and (~found.membership[0]).sum() > 100
    alone, _ = signals_of(write_folder(tmp_path / "b", LOSSES, "losses", references=False))
    free = np.flatnonzero(~INSIDE[0])
    assert len(alone.population_labels) == len(free) // 2 and (~alone.membership[0]).sum() == len(free) - len(free) // 2
    named = table_of(LOSSES)
    named["out"] = (~INSIDE.any(axis=0)) & (np.arange(RECORDS) % 3 == 0)
    pandas.DataFrame(named).to_csv(tmp_path / "a" / "scores.csv", index=False)
    settings = scores.load(tmp_path / "a").model_copy(update={"population": "out"})
    found, _ = scores._signals(tmp_path / "a", settings)
    assert np.array_equal(found.population_losses[:, 0], LOSSES[:, named["out"]].astype(np.float32))
    settings = settings.model_copy(update={"population": "in_1"})
    assert "training records" in error_of(scores._signals, tmp_path / "a", settings)


def test_an_audit_of_files_is_that_of_the_same_arrays(tmp_path, script):
    folder = write_folder(tmp_path, LOGITS, "logits", groups=["city"], features=["age", "city"])
    done = script("privacy-audit", "--scores", folder)
    assert done.code == 0, done.err
    nobodys = int(INSIDE[1:].all(axis=0).sum())
    assert nobodys > 0 and f"note: {nobodys} records that all references were trained on are left out" in done.err
    assert "all attacks that these models allow" in done.out and "BASE, offline" in done.out
    numbers = json.loads((folder / "report" / "result.json").read_text())
    with np.load(folder / "report" / "exp" / "0" / "scores.npz") as stored:
        rows, names = stored["records"], set(stored.files)
        losses, inside = LOSSES[:, rows], INSIDE[1:, rows]
        usable = base.offline(losses[0].astype(np.float32), losses[1:].astype(np.float32), inside)
        assert np.allclose(stored["base_offline"], usable, rtol=1e-5)
        scaled = scaled_from_losses(losses.astype(np.float32)).astype(np.float32)
        expected = lira.offline(scaled[0], scaled[1:], inside, "fixed")
        assert np.allclose(stored["lira_offline_fixed"], expected, rtol=1e-3, atol=1e-3)
    assert {"loss", "quantile", "rmia_offline", "bavaria_offline"} <= names
    assert numbers["headline"]["auc"] > 0.6
    assert {row["value"] for row in numbers["groups"][1]["rows"]} == {"Bern", "Graz"}
    assert numbers["context"]["config"]["table"] == "scores.csv" and str(tmp_path) not in json.dumps(numbers)
    assert (folder / "report" / "report.pdf").read_bytes().startswith(b"%PDF")


def test_less_is_said_of_less(tmp_path, script):
    holdout = script("privacy-audit", "--scores", write_folder(tmp_path / "a", LOSSES, "losses", references=False))
    assert holdout.code == 0 and "attacks without reference models" in holdout.out
    assert "LOSS" in holdout.out and "left out: lira_online" in holdout.out and "scores of one or more" in holdout.out
    for number, changes in enumerate(({"member": None}, {"member": "everybody"})):
        folder = write_folder(tmp_path / f"b{number}", LOSSES, "losses", references=False, **changes)
        pandas.DataFrame({**table_of(LOSSES), "everybody": 1}).to_csv(folder / "scores.csv", index=False)
        alone = script("privacy-audit", "--scores", folder, "--out", tmp_path / f"out{number}")
        assert alone.code == 0 and "nothing about who was in its training set" in alone.out
        stored = json.loads((tmp_path / f"out{number}" / "result.json").read_text())
        assert stored["knows"] == "target" and stored["records"] == RECORDS
        assert stored["mean_loss"] == pytest.approx(LOSSES[0].mean(), rel=1e-5)
        limited = script("privacy-audit", "--scores", folder, "--fail_if", "auc > 0.99")
        assert limited.code == 2 and "can't be judged" in limited.err


def test_limits_have_exit_code_3(tmp_path, script):
    folder = write_folder(tmp_path, LOSSES, "losses", attacks=["loss", "BASE"])
    broken = script("privacy-audit", "--scores", folder, "--fail_if", "auc > 0.55")
    assert broken.code == 3 and "\nlimit broken: auc > 0.55 (" in broken.err
    kept = script("privacy-audit", "--scores", folder, "--fail_if", "auc > 0.999 or tpr@0.01 > 0.999")
    assert kept.code == 0 and "limit broken" not in kept.err
    unknown = script("privacy-audit", "--scores", folder, "--fail_if", "lira_online: auc > 0.5")
    assert unknown.code == 2 and unknown.err.count("\n") == 1
    config = script("privacy-audit", "--cf", "configs/digits.yaml", "--fail_if", "auc > 0.5", "--stop_after", "models")
    assert config.code == 2 and "--stop_after is models" in config.err


def test_every_model_can_be_the_target(tmp_path):
    folder = write_folder(tmp_path, LOSSES, "losses", every_model_as_target=True, attacks="base")
    results, knows = scores.run(folder, tmp_path / "report", scores.load(folder), Clock(None))
    assert results["targets"] == list(range(MODELS)) and knows == "references"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"table": "../scores.csv"}, "must lie in"),
        ({"table": "/etc/passwd"}, "must lie in"),
        ({"table": "none.csv"}, "does not exist"),
        ({"tabel": "x"}, "tabel is unknown"),
        ({"values": "odds"}, "values is wrong"),
        ({"member": "label"}, "must be 1 or 0"),
        ({"member": "nobody"}, "no column 'nobody'"),
        ({"target": "city"}, "no numbers"),
        ({"target": ["v_0", "v_1"]}, "losses have one column"),
        ({"values": "probabilities"}, "logits or losses"),
        ({"target": None}, "target is wrong"),
    ],
)
def test_bad_settings_are_one_line(changes, words, tmp_path, script):
    folder = write_folder(tmp_path, LOSSES, "losses", **changes)
    done = script("privacy-audit", "--scores", folder)
    assert done.code == 2 and done.err.count("\n") == 1 and words in done.err, done.err
    assert not (folder / "report").exists()


def test_bad_tables_are_one_line(tmp_path, script, monkeypatch):
    def failing(change):
        columns = pandas.DataFrame(table_of(LOSSES))
        change(columns)
        columns.to_csv(tmp_path / "scores.csv", index=False)
        done = script("privacy-audit", "--scores", tmp_path)
        assert done.code == 2 and done.err.count("\n") == 1
        return done.err

    write_folder(tmp_path, LOSSES, "losses")
    assert "not finite" in failing(lambda one: one.__setitem__("v_1", one["v_1"].where(one.index != 3)))
    assert "never negative" in failing(lambda one: one.__setitem__("v_0", -one["v_0"]))
    monkeypatch.setattr(scores, "MOST_BYTES", 100)
    assert "GiB" in failing(lambda one: None)


def test_probabilities_that_are_none_and_classes_that_do_not_fit_are_refused(tmp_path):
    chances = np.exp(log_softmax(LOGITS, axis=2))
    folder = write_folder(tmp_path / "a", 0.5 * chances, "probabilities")
    assert "do not sum to 1" in error_of(signals_of, folder)
    folder = write_folder(tmp_path / "b", LOGITS, "logits", label=None)
    assert "column label" in error_of(signals_of, folder)
    folder = write_folder(tmp_path / "c", LOGITS, "logits", label="city")
    assert "in the order of the columns" in error_of(signals_of, folder)
    folder = write_folder(tmp_path / "d", LOGITS, "logits", label="age")
    assert "labels go up to 89" in error_of(signals_of, folder)


def test_a_probability_near_one_keeps_its_digits():
    """1 - p has none left: two records whose rests are 1e-20 and 1e-18 would be the same."""
    values = np.array([[1.0, 1e-20], [1.0, 1e-18], [0.5, 0.5]])
    losses, scaled, hits = scores._of_probabilities(values, np.zeros(3, dtype=int), "x")
    assert scaled[2] == 0 and losses[2] == pytest.approx(np.log(2)) and hits.tolist() == [True, True, True]
    assert scaled[0] >= scaled[1] > 36 and np.isfinite(losses).all()


def test_an_archive_that_unpacks_to_too_much_or_holds_objects_is_refused(tmp_path, monkeypatch):
    folder = write_folder(tmp_path, LOSSES, "losses", "npz")
    np.savez(folder / "scores.npz", v_0=np.array([{}, {}], dtype=object))
    assert "scores.npz" in error_of(signals_of, folder)
    np.savez_compressed(folder / "scores.npz", v_0=np.zeros(200_000))
    monkeypatch.setattr(scores, "MOST_BYTES", 100_000)
    assert (folder / "scores.npz").stat().st_size < 100_000
    assert "unpacks to more" in error_of(signals_of, folder)


def test_parquet_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    def gone(name):
        raise ImportError(name)

    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(importlib, "import_module", gone)
    assert "pip install pyarrow" in error_of(scores.read_table, tmp_path / "a.parquet", {"x"})


def test_logits_are_taken_as_the_pipeline_takes_them():
    import torch

    expected = utils.sample_signals(torch.from_numpy(LOGITS[0]), torch.from_numpy(LABELS))
    losses, scaled, _ = scores._of_model(LOGITS[0], "logits", LABELS, "x", "y")
    assert np.array_equal(losses, expected["cross_entropy"].numpy())
    assert np.array_equal(scaled, -expected["scaled_loss"].numpy())

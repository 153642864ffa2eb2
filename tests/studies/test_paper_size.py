"""studies/paper_size.py at toy size, by the real scripts: who is asked about, under which marks, with what result."""

import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import utils
from dataset import load_dataset
from experiment import setup
from kit import files
from studies import common, paper_size
from tests.parts import user_error

CLASSES, SAMPLES, KEYS = 4, 3, 2
SIZES = {
    "classes": CLASSES,
    "users": CLASSES,
    "samples": SAMPLES,
    "train_size": 80,
    "epoch": 2,
    "reference_epoch": 1,
    "non_members": 20,
    "keys": KEYS,
    "net_type": "smallnet",
    "device": "cpu",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The study, run twice, and once without an unmarked model: its folders, and the scripts that the calls started."""
    top = tmp_path_factory.mktemp("paper-size")
    draws = np.random.default_rng(1)
    for label in range(2 * CLASSES):
        for part, count in (("train", 40), ("test", 2 * SAMPLES)):
            folder = top / "source" / part / f"n{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    started, found = [], []
    with pytest.MonkeyPatch.context() as patch:

        def call(script, *arguments):
            started.append(script)
            patch.setattr(sys, "argv", [script, *map(str, arguments)])
            importlib.import_module(script.removesuffix(".py")).main()

        patch.setattr(common, "call", call)
        for out, clean in (("first", 1), ("again", 1), ("unclean", 0)):
            flags = {**SIZES, "clean": clean, "data_root": top / "source", "work": top / "work", "out": top / out}
            patch.setattr(sys, "argv", ["", *(str(word) for name in flags for word in (f"--{name}", flags[name]))])
            paper_size.main()
            found.append(json.loads((top / out / "result.json").read_text()))
    folder = top / "work" / "smallnet-80-2-seed1"
    return SimpleNamespace(top=top, folder=folder, data=top / "work" / "classes-4", started=started, found=found)


@pytest.fixture(scope="module")
def experiment(run):
    config = files.read_json(run.folder / "marked" / "config.json")
    return setup.prepare(config["training"], config["audit"], load_dataset("imagefolder", run.data))


def test_every_stage_is_there_and_is_taken_up_again(run):
    first, again, _ = run.found
    expected = ["train.py"] * 3 + ["eval.py"] + ["train.py"] * 3 + ["train.py"] * 2
    assert run.started == expected, "the later calls only show what is there"
    assert {**first, "settings": 0} == {**again, "settings": 0}
    assert len(first["users"]) == CLASSES * len(paper_size.GROUPS) * len(paper_size.TESTS)
    guilty = {(row["group"], row["test"]) for row in first["users"] if row["trained_on"]}
    assert guilty == {
        (group, test) for group in ("marked", "unchanged") for test, model, *_ in paper_size.TESTS if model == "suspect"
    }
    assert all((run.top / "first" / name).stat().st_size for name in ("p.png", "paper-size.md", "seed1/losses.png"))
    assert [path.name for path in sorted((run.data / "train").iterdir())] == ["n0", "n2", "n4", "n6"]


def test_without_an_unmarked_model_all_else_is_said(run):
    first, _, found = run.found
    assert "clean" in first["audit"] and "clean" not in found["audit"] and "clean" not in found["settings"]["runs"]
    assert found["exact"] == first["exact"] and found["accuracy"]["marked"] == first["accuracy"]["marked"]
    texts = [(run.top / name / "paper-size.md").read_text() for name in ("first", "unclean")]
    left_out = [line.split("|")[1].strip() for line in texts[0].splitlines() if line not in texts[1]]
    assert len(left_out) == 5 and all("unmarked" in name or "by marking" in name for name in left_out)


def test_the_figures_are_those_of_the_runs(run):
    result = run.found[0]
    marked, clean, beside = (
        files.read_json(run.folder / name / "result.json") for name in ("marked", "clean", "calibrated")
    )
    for kind in ("set", "instance"):
        for name, audit in (
            ("marked", marked["audit"]),
            ("clean", clean["audit"]),
            ("calibrated", beside["calibrated"]["audit"]),
        ):
            assert result["audit"][name][kind]["fpr_at_100_tpr"]["hits"] == audit[kind]["false_positives"]
    assert marked["settings"]["training"]["clean_train"] == 0 and clean["settings"]["training"]["clean_train"] == 1
    assert result["accuracy"]["marked"]["share"] == pytest.approx(marked["accuracy"]["test"])
    assert result["accuracy"]["change"] == [
        pytest.approx(100 * (marked["accuracy"]["test"] - clean["accuracy"]["test"]))
    ]
    assert result["train.py"]["target"]["exact_p"]["0.05"]["of"] == CLASSES


def test_nobody_has_seen_what_is_held_out(run, experiment):
    reference = files.read_json(run.folder / "reference" / "config.json")["training"]
    seen = setup.splits_of(reference, experiment.data).train.numpy()
    assert len(seen) == 160 - 80 - 2 * SAMPLES * CLASSES and not len(setup.splits_of(reference, experiment.data).val)
    users = paper_size.make_users(experiment, setup.unseen_rows(reference, experiment.data).numpy())
    ours = torch.cat([experiment.splits.train, experiment.splits.val]).numpy()
    assert not np.isin(users["innocent"].samples, [*ours, *seen]).any()
    published = []
    for name in ("marked", "unchanged"):
        own, held_out = np.split(users[name].samples, 2, axis=1)
        assert np.isin(own, experiment.splits.train).all() and not np.isin(held_out, [*ours, *seen]).any()
        assert not experiment.data.is_test[torch.from_numpy(held_out)].any()
        published.append(own.ravel())
    assert (users["marked"].samples[:, :SAMPLES] == experiment.users.samples).all()
    assert not np.isin(*published).any(), "what is published unchanged is nobody's marked photo"
    rows = np.concatenate([one.samples.ravel() for one in users.values()])
    assert len(np.unique(rows)) == len(rows)
    labels = experiment.data.labels.numpy()
    assert all((labels[one.samples] == one.classes[:, None]).all() for one in users.values())


def test_more_users_than_photos_are_refused(experiment):
    nothing = np.array([], dtype=np.int64)
    user_error(lambda: paper_size.make_users(experiment, nothing), "no room", "--samples")


def test_column_zero_is_what_was_published(run, experiment):
    shown, users = [], experiment.users

    def query(images):
        shown.append(images.clone())
        return torch.zeros(len(images), CLASSES)

    group = paper_size.GROUPS["marked"]
    losses = paper_size.ask_group({"suspect": query}, experiment.data, users, group, KEYS)["suspect"]
    assert losses.shape == (CLASSES, SAMPLES, KEYS + 1, group.views) and np.allclose(losses, np.log(CLASSES))
    published = files.read_arrays(run.folder / "marked" / "marks.npz")["images"]
    for user in range(CLASSES):
        own, fresh = (shown[user * (KEYS + 1) + key][:: group.views].numpy() for key in (0, 1))
        assert (own == published[user]).all() and (fresh != published[user]).any()


def test_p_is_small_for_what_is_remembered_and_smaller_without_difficulty():
    draws = np.random.default_rng(1)
    difficulty = draws.gamma(2, 1, (6, 20, 1, 1)) + np.zeros((6, 20, 3, 2))
    noise = draws.uniform(0, 0.05, difficulty.shape)
    losses = difficulty + noise
    selections = paper_size.exact.random_selections(utils.key_generator("test"), 20, 10, 999)
    innocent = paper_size.exact_p(losses, None, None, selections)
    assert innocent.min() > 0.001
    losses[:, :10, 0] *= 0.75
    alone = paper_size.exact_p(losses, None, None, selections)
    beside = paper_size.exact_p(losses, difficulty, None, selections)
    assert (beside <= alone).all() and np.median(beside) < np.median(alone) / 3
    assert np.allclose(paper_size.exact_p(np.ones((1, 20, 3, 2)), None, 1, selections), 1)


def test_rates_are_pooled_by_what_they_count():
    points = {"tpr_at_fpr": [], "auc": 1.0}
    runs = [
        {"set": {"false_positives": hits, "non_members": of, "fpr_at_100_tpr": hits / of, **points}}
        for hits, of in ((1, 10), (0, 90))
    ]
    found = paper_size.pooled(runs, "set")["fpr_at_100_tpr"]
    assert found["share"] == 0.01 and found["interval"] == utils.clopper_pearson(1, 100)


def test_too_few_classes_are_one_line(tmp_path):
    args = SimpleNamespace(data_root=tmp_path, work=tmp_path / "work", classes=3)
    user_error(lambda: paper_size.write_data(args), "0 classes", "--classes 3", "--data_root")
    assert not (tmp_path / "work").exists()

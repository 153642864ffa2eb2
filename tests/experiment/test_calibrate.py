"""--calibrate: the audit of a run beside a reference, by hand and through train.py, eval.py and the ablation."""

import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attacks.difficulty import KEPT
from dataset import load_dataset
from experiment import calibrate, setup
from experiment.settings import data_fingerprint
from kit import files
from tests.paper.parts import MANY, write
from tests.paper.parts import table as table_of
from tests.parts import ROOT, SMALL, call, user_error
from utils import Users

REFERENCE = ("--clean_train", 1, "--other_images", 1, "--exact_keys", 0, "--marked_samples_per_user", 1)


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


# --- by hand ----------------------------------------------------------------------------------------------------------


def beside_of(losses, reference):
    """A Beside of made-up cross-entropies, {group: (users, K)}."""
    empty = SimpleNamespace(name="r", identity={})
    users = dict.fromkeys(losses)
    return calibrate.Beside(calibrate.Calibration(empty, users), losses, reference, losses, True)


def made_up(targets=3, others=40, samples=4, seed=0):
    """Losses that hang on difficulty; targets are remembered: (losses, reference) by group."""
    draws = np.random.default_rng(seed)
    losses, reference = {}, {}
    for name, count in (("target", targets), ("control", targets), ("non_member", others)):
        hard = draws.gamma(2.0, 1.0, (count, samples))
        noise = draws.normal(0, 0.1, (count, samples))
        losses[name] = np.square(np.maximum(0.8 * hard + noise - 0.7 * (name == "target"), 0.01))
        reference[name] = np.square(hard)
    return losses, reference


def by_hand(losses, reference):
    """(share, {group: scores}): KEPT x the slope of a least-squares line through all users' samples."""
    ours = {name: np.sqrt(values) for name, values in losses.items()}
    theirs = {name: np.sqrt(values) for name, values in reference.items()}
    x, y = (np.concatenate([part[name].ravel() for name in losses]) for part in (theirs, ours))
    share = KEPT * np.cov(x, y, bias=True)[0, 1] / x.var()
    return share, {name: ours[name] - share * theirs[name] for name in losses}


def test_a_users_calibrated_mean_by_hand():
    """Wrong: cross-entropies without the root, a share out of non-members alone, or another for every group."""
    losses, reference = made_up()
    beside = beside_of(losses, reference)
    share, scores = by_hand(losses, reference)
    assert beside.share == pytest.approx(share) and 0.3 < share < 0.8
    found = beside.conclude({"fpr": [0.1], "verdict_fpr": 0.05})
    means = {name: values.mean(axis=1) for name, values in scores.items()}
    shown = [row["mean_score"] for row in found["verdict"]["users"]]
    assert np.allclose(shown, np.concatenate([means["target"], means["control"]]))
    threshold = np.sort(means["non_member"])[2]  # 5 % of 40 are two
    assert found["verdict"]["threshold"] == pytest.approx(threshold)
    assert [row["used"] for row in found["verdict"]["users"]] == [score < threshold for score in shown]
    assert found["audit"]["set"]["fpr_at_100_tpr"] == np.mean(means["non_member"] <= means["target"].max())
    instances = scores["non_member"] <= scores["target"].max()
    assert found["audit"]["instance"]["fpr_at_100_tpr"] == instances.mean()
    plain = losses["non_member"].mean(1) <= losses["target"].mean(1).max()
    assert found["plain"]["set"]["fpr_at_100_tpr"] == plain.mean() > found["audit"]["set"]["fpr_at_100_tpr"]


def test_nothing_looks_at_who_is_a_member():
    """Users who change places take their scores along. Wrong: a share that one group alone decides."""
    losses, reference = made_up()
    sizes = [len(values) for values in losses.values()]
    order = np.random.default_rng(1).permutation(sum(sizes))

    def moved(groups):
        every = np.concatenate(list(groups.values()))[order]
        return dict(zip(groups, np.split(every, np.cumsum(sizes)[:-1]), strict=True))

    before = np.concatenate(list(beside_of(losses, reference).scores().values()))
    after = np.concatenate(list(beside_of(moved(losses), moved(reference)).scores().values()))
    assert np.allclose(after, before[order], atol=1e-12)


def test_a_reference_that_knows_nothing_takes_hardly_anything_out():
    losses, reference = made_up(others=400)
    draws = np.random.default_rng(5)
    noise = {name: np.square(draws.normal(2, 0.3, values.shape)) for name, values in losses.items()}
    opposite = {name: np.square(9 - np.sqrt(values)) for name, values in reference.items()}
    plain = {name: np.sqrt(values).mean(1) for name, values in losses.items()}
    for useless in (noise, opposite):
        found = {name: values.mean(1) for name, values in beside_of(losses, useless).scores().items()}
        level = np.mean(found["non_member"] - plain["non_member"])  # what all lose alike changes nothing
        assert all(np.abs(found[name] - plain[name] - level).max() < 0.1 for name in losses)
    assert beside_of(losses, opposite).share == 0


# --- who has seen what ------------------------------------------------------------------------------------------------


def settings_of(data, **changes):
    base = {"train_size": 500, "val_portion": 0.2, "seed": 1, "data": data_fingerprint(data)}
    return {**base, **changes}


def test_other_images_are_those_that_the_run_leaves_out():
    data = load_dataset("photos")
    own, other = (setup.splits_of(settings_of(data, other_images=value), data) for value in (None, 1))
    used, others = (set(torch.cat([splits.train, splits.val]).tolist()) for splits in (own, other))
    assert len(used) == len(others) == 500 and not used & others
    assert set(other.non_member.tolist()) == set(range(len(data.labels))) - others
    # Where fewer are left, half of them: the other half are strangers, whom neither has seen.
    few = setup.splits_of(settings_of(data, train_size=2000, other_images=1), data)
    assert len(few.train) + len(few.val) == (len(data.labels) - 2000) // 2
    user_error(
        lambda: setup.splits_of(settings_of(data, train_size=len(data.labels) - 9, other_images=1), data),
        "--other_images",
    )


def test_other_images_are_no_test_images():
    labels = torch.arange(600) % 3
    data = SimpleNamespace(labels=labels, is_test=torch.arange(600) >= 500, class_names=("a", "b", "c"))
    settings = {"train_size": 300, "val_portion": 0, "seed": 4, "other_images": 1}
    splits = setup.splits_of(settings, data)
    own = setup.splits_of({**settings, "other_images": None}, data)
    assert len(splits.train) == 200 and int(splits.train.max()) < 500  # all that are left
    assert not set(splits.train.tolist()) & set(own.train.tolist())
    assert torch.equal(splits.test, torch.arange(500, 600)) and set(range(500, 600)) <= set(splits.non_member.tolist())
    assert set(setup.unseen_rows(settings, data).tolist()) == set(range(600)) - set(splits.train.tolist())


# --- through train.py and eval.py -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder of a model of as many other images as SMALL's run is trained on."""
    folder = tmp_path_factory.mktemp("reference") / "other"
    done = call("train.py", *SMALL, *REFERENCE, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def audited(finished_run, reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated") / "eval"
    flags = ("--device", "cpu", "--verdict_fpr", 0.1)
    done = call("eval.py", "--checkpoint", finished_run, *flags, "--calibrate", reference, "--out", folder)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(folder=folder, result=result_of(folder), out=done.stdout)


def test_the_runs_own_results_stay_as_they_are(finished_run, audited):
    ours, before = audited.result, result_of(finished_run)
    for name in ("audit", "mode", "signal", "accuracy"):
        assert ours[name] == before[name]
    assert ours["settings"]["training"] == before["settings"]["training"] and "calibrated" not in before
    assert [row["mean_loss"] for row in ours["verdict"]["users"]] == [
        row["mean_loss"] for row in before["verdict"]["users"]
    ]
    first, again = (files.read_arrays(folder / "losses.npz") for folder in (finished_run, audited.folder))
    for name in first:
        assert name == "settings" or np.array_equal(first[name], again[name]), name
    assert set(again.keys() - first.keys()) == {
        f"calibrated_{group}_{kind}"
        for group in ("target", "control", "non_member")
        for kind in ("samples", "cross_entropy", "reference")
    }
    assert "FPR@100%TPR, calibrated" in audited.out


def test_figures_follow_from_what_was_stored(finished_run, audited):
    stored, found = files.read_arrays(audited.folder / "losses.npz"), audited.result["calibrated"]
    losses, asked = (
        {name: stored[f"calibrated_{name}_{kind}"] for name in ("target", "control", "non_member")}
        for kind in ("cross_entropy", "reference")
    )
    assert np.array_equal(losses["target"], stored["target_cross_entropy"])
    share, scores = by_hand(losses, asked)
    assert found["share"] == pytest.approx(max(share, 0), rel=1e-6)
    other = scores["non_member"].mean(1)
    assert found["audit"]["set"]["fpr_at_100_tpr"] == np.mean(other <= scores["target"].mean(1).max())
    assert found["verdict"]["threshold"] == pytest.approx(np.sort(other)[6])  # 10 % of 60
    assert found["verdict"]["fpr"] == 0.1 and len(found["verdict"]["users"]) == 4
    plain = losses["non_member"].mean(1) <= losses["target"].mean(1).max()
    assert found["plain"]["set"]["fpr_at_100_tpr"] == plain.mean()


def test_the_reference_sees_the_same_marked_samples(finished_run, reference, audited):
    """Wrong: the unmarked samples, another user's mark, or the samples in another order."""
    from experiment.training import load_trained
    from utils import sample_signals

    marks, stored = files.read_arrays(finished_run / "marks.npz"), files.read_arrays(audited.folder / "losses.npz")
    query, _ = load_trained(reference / "model.safetensors", torch.device("cpu"))
    for user in range(2):
        logits = query(torch.from_numpy(marks["images"][user]))
        labels = torch.full((4,), int(marks["classes"][user]))
        expected = sample_signals(logits, labels)["cross_entropy"].numpy()
        assert np.allclose(stored["calibrated_target_reference"][user], expected, rtol=1e-3)


def test_innocent_users_are_drawn_from_what_neither_model_has_seen(reference, audited):
    """A reference that remembers the non-members finds them easy, and the audit would look better than it is."""
    data, stored = load_dataset("photos"), files.read_arrays(audited.folder / "losses.npz")
    theirs, ours = (setup.splits_of(settings_of(data, other_images=value), data) for value in (1, None))
    seen = set(torch.cat([theirs.train, theirs.val, ours.train, ours.val]).tolist())
    assert audited.result["calibrated"]["same_non_members"] is False
    assert set(stored["non_member_samples"].ravel()) & seen
    for group in ("control", "non_member"):
        samples = stored[f"calibrated_{group}_samples"]
        assert samples.shape == stored[f"{group}_samples"].shape and not set(samples.ravel()) & seen


def test_with_a_stranger_as_reference_the_users_are_the_runs_own(finished_run, tmp_path, script):
    """Of a model of other data nothing is known; random weights hardly change anything."""
    from experiment.training import train_on

    data = load_dataset("photos")
    images, labels = torch.randint(0, 256, (120, 3, 32, 32), dtype=torch.uint8), torch.arange(120) % 99
    train_on(tmp_path / "random.safetensors", images, labels, 99, 3, torch.device("cpu"), epoch=1, lr=1e-9)
    flags = ("--checkpoint", finished_run, "--device", "cpu", "--out", tmp_path / "eval")
    done = script("eval", *flags, "--calibrate", tmp_path / "random.safetensors")
    assert done.code == 0, done.err
    found, stored = result_of(tmp_path / "eval")["calibrated"], files.read_arrays(tmp_path / "eval" / "losses.npz")
    assert found["same_non_members"] is True and found["plain"] == result_of(finished_run)["audit"]
    for group in ("target", "control", "non_member"):
        assert np.array_equal(stored[f"calibrated_{group}_samples"], stored[f"{group}_samples"])
        assert np.array_equal(stored[f"calibrated_{group}_cross_entropy"], stored[f"{group}_cross_entropy"])
    roots = {group: np.sqrt(stored[f"{group}_cross_entropy"]).mean(1) for group in ("target", "non_member")}
    auc = np.mean(roots["target"][:, None] < roots["non_member"])
    assert abs(found["audit"]["set"]["auc"] - auc) < 0.1
    assert len(data.class_names) == 99


def test_train_takes_it_too_and_eval_remembers_it(reference, tmp_path, script):
    flags = (*SMALL, "--epoch", 1, "--exact_keys", 0, "--calibrate", reference)
    done = script("train", *flags, "--out", tmp_path / "run")
    assert done.code == 0 and "calibrated" in done.out, done.err
    first = result_of(tmp_path / "run")
    assert (
        first["settings"]["audit"]["calibrate"] == str(reference)
        and first["calibrated"]["reference"]["model"]["sha256"]
    )
    assert script("train", *flags, "--out", tmp_path / "run").code == 0  # is shown again
    done = script("eval", "--checkpoint", tmp_path / "run", "--device", "cpu")
    assert (
        done.code == 0 and result_of(tmp_path / "run" / "eval")["calibrated"]["audit"] == first["calibrated"]["audit"]
    )
    done = script("eval", "--checkpoint", tmp_path / "run", "--device", "cpu", "--calibrate", "none")
    assert done.code == 0 and "calibrated" not in result_of(tmp_path / "run" / "eval")


def test_references_that_are_refused(finished_run, reference, tmp_path, script):
    from experiment.training import train_on

    train_on(
        tmp_path / "few.safetensors",
        torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8),
        torch.arange(64) % 7,
        7,
        3,
        torch.device("cpu"),
        epoch=1,
    )
    copy = tmp_path / "copy.safetensors"
    tensors, record = files.load_model(finished_run / "model.safetensors")
    files.save_model(copy, tensors, {**record, "settings": {**record["settings"], "data": "another"}})
    (tmp_path / "text.onnx").write_text("no model")
    for given, words in (
        (finished_run, ("under audit itself",)),
        (finished_run / "model.safetensors", ("under audit itself",)),
        (copy, ("answers as the model under audit does",)),
        (tmp_path / "few.safetensors", ("7 classes", "99")),
        (tmp_path / "gone", ("does not exist", "give a run folder")),
        (tmp_path / "text.onnx", ("text.onnx",)),
    ):
        out = tmp_path / "eval"
        done = script("eval", "--checkpoint", finished_run, "--device", "cpu", "--out", out, "--calibrate", given)
        error = done.err.strip().splitlines()[-1]
        assert done.code == 2 and "--calibrate" in error and all(word in error for word in words), done.err
        assert not (out / "result.json").exists()
    done = script("eval", "--record", "record.json", "--checkpoint", "x", "--calibrate", reference)
    assert done.code == 2 and "use --reference" in done.err


def test_a_reference_that_has_seen_a_target_users_samples_is_refused_before_training(finished_run, tmp_path, script):
    flags = (*SMALL, "--seed", 2, "--calibrate", finished_run)
    done = script("train", *flags, "--out", tmp_path / "run")
    assert done.code == 2 and "of the target users' 8 samples" in done.err and "--other_images 1" in done.err
    assert not (tmp_path / "run").exists()


def test_refused_where_nobody_is_left_whom_neither_has_seen(reference):
    data = load_dataset("photos")
    settings = settings_of(data, marked_samples_per_user=4)
    splits = setup.splits_of(settings, data)
    theirs = setup.splits_of(settings_of(data, other_images=1), data)
    pool = torch.cat([theirs.train, theirs.val])
    users = Users(splits.train[:4].numpy()[None], np.array([0]), b"k" * 32)
    experiment = SimpleNamespace(
        settings=settings,
        data=data,
        users=users,
        splits=SimpleNamespace(non_member=pool),
        groups={"target": users, "non_member": [None]},
    )
    model = SimpleNamespace(name="other", training_settings=settings_of(data, other_images=1))
    user_error(lambda: calibrate.prepare(experiment, model), "leaves 0 images", "--train_size")


# --- the ablation -----------------------------------------------------------------------------------------------------


def calibrated(false, plain, others=200):
    return {
        "audit": {"set": {"false_positives": false, "non_members": others}},
        "plain": {"set": {"false_positives": plain, "non_members": others}},
    }


def test_the_ablation_shows_both_where_runs_have_them(tmp_path, script):
    for number, (false, plain) in enumerate(((2, 10), (4, 20), (None, None))):
        folder = tmp_path / f"{number}"
        write(folder, 0.6, 5, MANY, marked_samples_per_user=5, seed=number)
        if false is not None:
            result = {**result_of(folder), "calibrated": calibrated(false, plain)}
            (folder / "result.json").write_text(json.dumps(result))
    write(tmp_path / "blend", 0.6, 10, MANY, marked_samples_per_user=5, noise_injection_type="none")
    write(tmp_path / "reference", 0.1, 900, MANY, marked_samples_per_user=5, clean_train=1, other_images=1)
    rows = {row["marking"]: row for row in table_of(tmp_path, "Table 8")}
    assert rows.keys() == {"blend and noise", "blend only"}, "a reference is no row"
    full = rows["blend and noise"]
    assert full["runs"] == 3 and full["FPR@100%TPR"].startswith("0.50")
    assert full["FPR@100%TPR, calibrated"].startswith("1.50 (")  # 6 of 400
    assert full["FPR@100%TPR, plain, same users"].startswith("7.50 (")
    done = script("paper.tables", "ablation", "--res_folder", tmp_path)
    assert done.code == 0 and "calibrated" in done.out and "nan" not in done.out, done.err


def test_the_ablation_trains_one_reference_a_seed_before_the_runs(tmp_path):
    fake, log = tmp_path / "python", tmp_path / "log"
    fake.write_text('#!/usr/bin/env bash\necho "$@" >> "$LOG"\n')
    fake.chmod(0o755)

    def lines(**more):
        log.unlink(missing_ok=True)
        env = {"PATH": "/usr/bin:/bin", "PYTHON": str(fake), "LOG": str(log), "SEEDS": "1 2", "TABLES": "9 5", **more}
        done = subprocess.run(["bash", str(ROOT / "ablation.sh")], capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stderr
        return [line.split() for line in log.read_text().splitlines() if line.startswith("train.py")]

    def value(line, flag):
        return line[len(line) - line[::-1].index(flag)]

    found, without = lines(CALIBRATE="1"), lines()
    made = [line for line in found if "--other_images" in line]
    assert [value(line, "--seed") for line in made] == ["1", "2"] and found[:2] == made
    folders = {value(line, "--seed"): value(line, "--out") for line in made}
    assert len(set(folders.values())) == 2
    for line in found[2:]:
        if "share" in value(line, "--save_tag"):
            assert "--calibrate" not in line  # Table 5's unused samples are what the reference has seen
        else:
            assert value(line, "--calibrate") == folders[value(line, "--seed")]
    assert len(found) == len(without) + 2 and not any("--calibrate" in line for line in without)

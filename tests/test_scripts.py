"""End-to-end: train.py, eval.py and paper.tables as people call them, with the input that people really give."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import utils
from tests.parts import ROOT, SMALL, call, environment

RUN_FILES = {
    "config.json",
    "model.safetensors",
    "marks.npz",
    "losses.npz",
    "result.json",
    "roc.png",
    "losses.png",
    "marks.png",
}


def files_in(folder):
    return {path.name for path in folder.iterdir() if path.name != ".lock"} if folder.exists() else set()


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def arrays_of(path):
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


# --- a whole run -----------------------------------------------------------------------------------------------------


def test_a_run_leaves_every_file_and_nothing_else(finished_run):
    assert files_in(finished_run) == RUN_FILES


def test_result_figures_follow_from_the_stored_losses(finished_run):
    result, losses = result_of(finished_run), arrays_of(finished_run / "losses.npz")
    member, other = losses["target_cross_entropy"], losses["non_member_cross_entropy"]
    assert member.shape == (2, 4) and other.shape == (60, 4)
    assert result["audit"]["set"]["fpr_at_100_tpr"] == np.mean(other.mean(1) <= member.mean(1).max())
    assert result["audit"]["instance"]["fpr_at_100_tpr"] == np.mean(other <= member.max())
    ranked = np.sort(other.mean(1))
    assert result["verdict"]["threshold"] == ranked[0]  # 0.1 % of 60 users is none
    assert [row["used"] for row in result["verdict"]["users"]] == [
        *(member.mean(1) < ranked[0]),
        *(losses["control_cross_entropy"].mean(1) < ranked[0]),
    ]


def test_the_model_is_trained_on_the_published_marks(finished_run):
    """The marks are the key's, on the target class's training images, and the checkpoint's accuracy is the model's."""
    marks, losses = arrays_of(finished_run / "marks.npz"), arrays_of(finished_run / "losses.npz")
    from dataset import load_dataset
    from dataset.base import make_splits

    data = load_dataset("photos")
    splits = make_splits(data.labels, data.is_test, 500, 0.2, 1)
    assert set(marks["samples"].ravel()) <= set(splits.train.tolist())
    assert not set(losses["non_member_samples"].ravel()) & set(torch.cat([splits.train, splits.val]).tolist())
    assert (data.labels[torch.from_numpy(marks["samples"])] == torch.tensor([[4], [31]])).all()
    remade = utils.mark_images(data.images[marks["samples"][1]], marks["key"].tobytes(), [1] * 4, range(4))
    assert torch.equal(remade, torch.from_numpy(marks["images"][1]))
    assert not torch.equal(remade, data.images[marks["samples"][1]])


def test_finished_run_is_shown_again_not_trained_again(finished_run, script):
    before = {path.name: path.stat().st_mtime_ns for path in finished_run.iterdir()}
    done = script("train", *SMALL, "--out", finished_run)
    assert done.code == 0 and "FPR@100%TPR" in done.out
    assert before == {path.name: path.stat().st_mtime_ns for path in finished_run.iterdir()}


def test_table_is_printed_last_with_paths_that_exist(finished_run, script):
    lines = script("train", *SMALL, "--out", finished_run).out.strip().splitlines()
    named = [line.split()[-1] for line in lines[-4:]]
    assert [name for name in named if not (finished_run / name).exists()] == []
    assert sum("USED" in line or "not used" in line for line in lines) == 4


def test_same_arguments_same_bits_other_seed_other_run(finished_run, tmp_path, script):
    assert script("train", *SMALL, "--out", tmp_path / "again").code == 0
    first, again = (load_file(folder / "model.safetensors") for folder in (finished_run, tmp_path / "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert script("train", *SMALL, "--out", tmp_path / "other", "--seed", 2).code == 0
    losses, other = (arrays_of(folder / "losses.npz") for folder in (finished_run, tmp_path / "other"))
    for name in ("target_samples", "non_member_samples", "control_samples"):  # defect 6: the seed reaches all draws
        assert not np.array_equal(losses[name], other[name])


DEADLY = """
import os, signal, utils
from torch import nn
utils.PROGRESS_SECONDS, run_epoch, steps = -1, utils.train_epoch, []
def deadly(model, images, labels, recipe, optimizer, epoch, *rest):
    def step(*_):
        steps.append(epoch)
        if steps.count(1) > 3:
            os.kill(os.getpid(), signal.SIGKILL)
    with_steps = model.register_forward_pre_hook(step)
    try:
        return run_epoch(model, images, labels, recipe, optimizer, epoch, *rest)
    finally:
        with_steps.remove()
utils.train_epoch = deadly
"""


def training_process(*arguments):
    """train.py, in the middle of training: it saves its progress after every epoch, and has done so for one."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import train, utils; utils.PROGRESS_SECONDS = 0\n"
        "from kit.errors import run_script; run_script(train.main)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        env=environment(),
        stderr=subprocess.PIPE,
    )
    progress = Path(arguments[-1]) / "model.progress.safetensors"
    deadline = time.monotonic() + 600  # nobody waits for it on a machine that is idle
    while not progress.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    return process


def test_killed_at_any_moment_and_started_again_ends_with_the_same_bits(finished_run, tmp_path):
    out = tmp_path / "killed"
    # In the second of three epochs, after the first was saved: whoever kills from outside may come too late.
    killed = call("train.py", *SMALL, "--out", out, code=DEADLY)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (out / "model.progress.safetensors").exists() and not (out / "result.json").exists()
    done = call("train.py", *SMALL, "--out", out)
    assert done.returncode == 0, done.stderr
    first, again = (load_file(folder / "model.safetensors") for folder in (finished_run, out))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert np.array_equal(
        arrays_of(finished_run / "losses.npz")["non_member_cross_entropy"],
        arrays_of(out / "losses.npz")["non_member_cross_entropy"],
    )
    assert files_in(out) == RUN_FILES


@pytest.mark.parametrize("wish", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_is_one_line_and_exit_code_130(tmp_path, wish):
    # More epochs than any machine gets through before the signal comes.
    process = training_process(*(value if value != "3" else "1000000" for value in SMALL), "--out", tmp_path / "run")
    process.send_signal(wish)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 130, error
    assert len(error.strip().splitlines()) == 1 and "interrupted" in error
    assert not any(".part" in path.name for path in (tmp_path / "run").iterdir())


def test_no_room_on_the_disk_is_one_line_and_leaves_no_half_file(tmp_path, script, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(np, "savez_compressed", full)
    done = script("train", *SMALL, "--out", tmp_path / "run")
    assert done.code == 2 and "no room left" in done.err and len(done.err.strip().splitlines()) == 1
    assert files_in(tmp_path / "run") == {"config.json"}


def test_clean_train_changes_no_pixel(tmp_path, script):
    assert script("train", *SMALL, "--clean_train", 1, "--epoch", 1, "--out", tmp_path / "clean").code == 0
    marks = arrays_of(tmp_path / "clean" / "marks.npz")
    from dataset import load_dataset

    assert np.array_equal(marks["images"][0], load_dataset("photos").images[marks["samples"][0]].numpy())


def test_fractional_marked_samples(tmp_path, script):
    """Defect 12: 0.8 % of 500 images are 4."""
    flags = (*SMALL, "--marked_samples_per_user", "0.008", "--epoch", 1)
    assert script("train", *flags, "--out", tmp_path / "run").code == 0
    assert arrays_of(tmp_path / "run" / "marks.npz")["samples"].shape == (2, 4)


def test_more_users_than_classes(tmp_path, script):
    """Defect 5: 120 users in 99 classes are 120, none shares an image, and each has its number of samples."""
    done = script(
        "train",
        "--dataset",
        "photos",
        "--num_of_multiTarget_diffCls",
        120,
        "--marked_samples_per_user",
        2,
        "--epoch",
        1,
        "--num_of_non_member_user",
        50,
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
    )
    assert done.code == 0
    marks = arrays_of(tmp_path / "run" / "marks.npz")
    assert marks["samples"].shape == (120, 2) and len(np.unique(marks["samples"])) == 240
    assert np.bincount(marks["classes"]).max() == 2


# --- eval.py ---------------------------------------------------------------------------------------------------------


def test_eval_gives_the_losses_of_the_training_run(finished_run, tmp_path, script):
    done = script("eval", "--checkpoint", finished_run, "--out", tmp_path / "eval", "--device", "cpu")
    assert done.code == 0, done.err
    first, again = arrays_of(finished_run / "losses.npz"), arrays_of(tmp_path / "eval" / "losses.npz")
    for name in first:
        if name != "settings":
            assert np.array_equal(first[name], again[name]), name
    assert result_of(tmp_path / "eval")["audit"] == result_of(finished_run)["audit"]


def test_eval_with_other_audit_settings(finished_run, tmp_path, script):
    done = script(
        "eval",
        "--checkpoint",
        finished_run / "model.safetensors",
        "--out",
        tmp_path / "eval",
        "--instance_mi",
        1,
        "--scaled_loss",
        1,
        "--fpr",
        0.1,
        "--num_of_non_member_user",
        33,
    )
    assert done.code == 0, done.err
    result = result_of(tmp_path / "eval")
    assert result["mode"] == "instance" and result["signal"] == "scaled_loss"
    assert result["audit"]["instance"]["non_members"] == 33 * 4
    assert [point["fpr"] for point in result["audit"]["set"]["tpr_at_fpr"]] == [0.1]


def test_scaled_loss_is_used_on_both_sides(finished_run, tmp_path, script):
    """Defect 2: the audit of an untrained difference scores near chance, not 0.97."""
    script("eval", "--checkpoint", finished_run, "--out", tmp_path / "eval", "--scaled_loss", 1, "--device", "cpu")
    losses, result = arrays_of(tmp_path / "eval" / "losses.npz"), result_of(tmp_path / "eval")
    control, other = losses["control_scaled_loss"].mean(1), losses["non_member_scaled_loss"].mean(1)
    assert result["audit"]["set"]["fpr_at_100_tpr"] == np.mean(other <= losses["target_scaled_loss"].mean(1).max())
    shown = [row["mean_loss"] for row in result["verdict"]["users"] if row["user"].startswith("control")]
    assert np.allclose(shown, control)


def test_eval_finds_a_run_by_its_flags(tmp_path, script):
    folders = ("--res_folder", tmp_path / "res", "--ckpt_folder", tmp_path / "ckpt", "--save_tag", "tagged")
    assert script("train", *SMALL, *folders, "--epoch", 1).code == 0
    visible = [path.name for path in (tmp_path / "ckpt").iterdir() if not path.name.startswith(".")]
    assert visible == ["photos-smallnet-500-tagged.safetensors"]
    run = tmp_path / "res" / "photos-smallnet-500-tagged"
    assert files_in(run) == RUN_FILES - {"model.safetensors"}
    assert script("eval", *SMALL, *folders, "--epoch", 1).code == 0
    assert files_in(run / "eval") == {"losses.npz", "result.json", "roc.png", "losses.png", "marks.png"}
    assert script("eval", "--checkpoint", run).code == 0


def test_one_tag_serves_several_training_sizes(tmp_path, script):
    """The published test.sh and single-target.sh use one tag for runs of two sizes; before, the second was refused."""
    folders = ("--res_folder", tmp_path / "res", "--ckpt_folder", tmp_path / "ckpt", "--save_tag", "singleTarget-4")
    for size in (500, 400):
        done = script("train", *SMALL, *folders, "--epoch", 1, "--train_size", size)
        assert done.code == 0, done.err
        result = result_of(tmp_path / "res" / f"photos-smallnet-{size}-singleTarget-4")
        assert result["settings"]["training"]["train_size"] == size
    assert len(list((tmp_path / "res").iterdir())) == 2


def test_a_run_whose_name_has_no_size_is_taken_up(tmp_path, script):
    """Earlier versions named runs without it; another size is another run."""
    folders = ("--res_folder", tmp_path / "res", "--ckpt_folder", tmp_path / "ckpt", "--save_tag", "old")
    command = (*SMALL, *folders, "--epoch", 1)
    assert script("train", *command).code == 0
    old, new = (tmp_path / "res" / f"photos-smallnet{name}" for name in ("-old", "-500-old"))
    new.rename(old)
    weights = tmp_path / "ckpt" / "photos-smallnet-old.safetensors"
    (tmp_path / "ckpt" / "photos-smallnet-500-old.safetensors").rename(weights)
    stamp = weights.stat().st_mtime_ns
    for name in ("train", "eval"):
        assert script(name, *command).code == 0
    assert not new.exists() and weights.stat().st_mtime_ns == stamp and (old / "eval" / "result.json").exists()
    assert script("train", *command, "--train_size", 400).code == 0
    assert (tmp_path / "res" / "photos-smallnet-400-old" / "result.json").exists()


# What the published artifact's scripts start, in their order: data set, flags, sizes, tags.
TARGETS = "17 36 69 80 93"
ARTIFACT = [
    ("test.sh", "cifar100", "--epoch 1 --marked_samples_per_user 1", [1000], "singleTarget-{}", "17"),
    ("single-target.sh", "cifar100", "--lr 0.1", [25000], "singleTarget-{}", TARGETS),
    ("single-target.sh", "tinyimagenet", "--lr 0.01 --epoch 30", [25000], "singleTarget-{}", "4 58 102 168 184"),
    ("single-target.sh", "celeba", "--lr 0.01 --epoch 30", [2000], "singleTarget-{}", "58 95 164 228 306"),
    ("single-target.sh", "cifar100", "--net_type resnet", [25000], "resnet-singleTarget-{}", TARGETS),
    ("single-target.sh", "cifar100", "--net_type densenet", [25000], "densenet-singleTarget-{}", TARGETS),
    ("single-target.sh", "cifar100", "--lr 0.1", [5000, 15000], "singleTarget-{}", TARGETS),
    ("multi-target.sh", "cifar100", "--num_of_multiTarget_diffCls 100", [25000], "multiTarget-100", ""),
]


def test_the_artifacts_scripts_can_run_one_after_the_other():
    """Every line of theirs is taken, and none has the folder of an earlier one."""
    from dataset import recipe
    from experiment.flags import make_parser
    from experiment.settings import run_paths

    names = []
    for script, data, flags, sizes, tag, classes in ARTIFACT:
        common = (
            f"--dataset {data} {flags} --noise_norm 8 --img_blending_ratio .7 --noise_injection_type perlin "
            "--ckpt_folder checkpoint --res_folder res-folder --num_of_non_member_user 5000"
        ).split()
        for size in sizes:
            for label in classes.split() or [None]:
                target = ["--target_user_cls", label] if label else []
                line = [*common, *target, "--train_size", str(size), "--save_tag", tag.format(label)]
                args = make_parser("").parse_args(line)
                settings = {"dataset": data, "net_type": args.net_type or recipe(data).net_type, "train_size": size}
                names.append((script, run_paths(args, settings).folder))
    assert len(names) == 1 + 5 + 5 + 5 + 5 + 5 + 10 + 1
    assert len({folder for _, folder in names}) == len(names)


# --- bad input -------------------------------------------------------------------------------------------------------


def assert_refused(done, *words):
    assert done.code == 2, (done.code, done.out, done.err)
    assert len(done.err.strip().splitlines()) == 1 and done.err.startswith("error: ")
    for word in words:
        assert word in done.err, done.err


BAD_FLAGS = [
    (("--dataset", "cifar11"), ("cifar11", "cifar10")),
    (("--dataset", "imagefolder"), ("data_root",)),
    (("--dataset", "imagefolder", "--data_root", "/nowhere/at/all"), ("/nowhere/at/all",)),
    (("--net_type", "wideresnet274"), ("wideresnet274", "6n")),
    (("--net_type", "resnett"), ("resnett", "resnet")),
    (("--ood_pattern", "stripes"), ("stripes", "tinyimagenet")),
    (("--target_user_cls", "99"), ("99", "0 to 98")),
    (("--target_user_cls", "-1"), ("-1",)),
    (("--marked_samples_per_user", "60"), ("class 4", "60")),
    (("--marked_samples_per_user", "2.5"), ("2.5",)),
    (("--marked_samples_per_user", "0.0001"), ("0.0001",)),
    (("--img_blending_ratio", "1.2"), ("1.2",)),
    (("--noise_norm", "-8"), ("-8",)),
    (("--noise_injection_type", "worley"), ("gabor", "perlin")),
    (("--train_size", "1000000"), ("1000000",)),
    (("--val_portion", "1"), ("val_portion",)),
    (("--epoch", "0"), ("epoch",)),
    (("--lr", "nan"), ("lr",)),
    (("--fpr", "2"), ("fpr",)),
    (("--num_classes", "10"), ("num_classes", "99")),
    (("--device", "tpu"), ("tpu",)),
    (("--no_such_flag", "1"), ("no_such_flag",)),
    (("--num_of_multiTarget_diffCls", "3"), ("target_user_cls",)),
]


@pytest.mark.parametrize(("flags", "words"), BAD_FLAGS, ids=[" ".join(flags) for flags, _ in BAD_FLAGS])
def test_bad_flags_are_one_line_and_leave_nothing(tmp_path, script, flags, words):
    done = script("train", *SMALL, "--out", tmp_path / "run", *flags)
    assert_refused(done, *words)
    assert not (tmp_path / "run").exists()


def test_too_many_users_names_how_many_fit(tmp_path, script):
    flags = SMALL[: SMALL.index("--target_user_cls")]
    done = script("train", *flags, "--num_of_multiTarget_diffCls", 5000, "--out", tmp_path / "run")
    assert_refused(done, "5000", "room for")


@pytest.mark.parametrize("tag", ["../up", "a/b", "", ".."])
def test_save_tag_cannot_leave_its_folder(tmp_path, script, tag):
    folders = ("--res_folder", tmp_path / "res", "--ckpt_folder", tmp_path / "ck")
    done = script("train", *SMALL, "--save_tag", tag, *folders)
    assert_refused(done, "save_tag")
    assert not list(tmp_path.iterdir())


def test_other_settings_in_the_same_folder_are_refused_by_name(finished_run, script):
    assert_refused(script("train", *SMALL, "--out", finished_run, "--epoch", 4), "epoch is 3 there and 4 here")
    done = script("train", *SMALL, "--out", finished_run, "--scaled_loss", 1)
    assert_refused(done, "scaled_loss is 0 there and 1 here")


def test_eval_refuses_flags_that_contradict_the_checkpoint(finished_run, script, tmp_path):
    done = script("eval", "--checkpoint", finished_run, "--img_blending_ratio", 0.6, "--out", tmp_path / "eval")
    assert_refused(done, "img_blending_ratio is 0.7 there and 0.6 here")
    assert not (tmp_path / "eval").exists()


def test_eval_of_a_missing_checkpoint(script, tmp_path):
    assert_refused(script("eval", "--checkpoint", tmp_path / "nothing"), "nothing")
    assert_refused(script("eval", "--checkpoint", tmp_path), str(tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_checkpoint(finished_run, tmp_path, script, share):
    whole = (finished_run / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: int(share * len(whole))])
    assert_refused(script("eval", "--checkpoint", tmp_path / "model.safetensors"), "truncated")


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_hostile_checkpoint_does_not_run(tmp_path, script, kind):
    """Defect 10."""
    path, marker = tmp_path / "model.safetensors", tmp_path / "owned"
    if kind == "torch":
        torch.save({"weights": Hostile(marker)}, path)
    else:
        path.write_bytes(pickle.dumps(Hostile(marker)))
    assert_refused(script("eval", "--checkpoint", path, "--out", tmp_path / "eval"), "pickle")
    assert not marker.exists()


def test_checkpoint_whose_weights_are_another_network(finished_run, tmp_path, script):
    from kit import files

    tensors, record = files.load_model(finished_run / "model.safetensors")
    tensors.pop(next(iter(tensors)))
    files.save_model(tmp_path / "model.safetensors", tensors, record)
    assert_refused(script("eval", "--checkpoint", tmp_path / "model.safetensors"), "does not hold the network")
    files.save_model(tmp_path / "model.safetensors", tensors, {"settings": 3})
    assert_refused(script("eval", "--checkpoint", tmp_path / "model.safetensors"), "does not hold the network")


def test_stale_progress_of_other_settings_is_refused(finished_run, tmp_path, script):
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(finished_run / "model.safetensors", out / "model.progress.safetensors")
    assert_refused(script("train", *SMALL, "--out", out), "model.progress.safetensors")
    assert_refused(script("train", *SMALL, "--out", out, "--epoch", 5), "other settings")


ORIGINAL_FLAGS = """
    --dataset --train_size --net_type --lr --epoch --batch_size --num_classes --save_tag --val_portion --fpr
    --res_folder --ckpt_folder --clean_train --scaled_loss --seed --marked_samples_per_user --img_blending_ratio
    --ood_pattern --noise_injection_type --noise_norm --num_of_non_member_user --target_user_cls
    --num_of_multiTarget_diffCls --num_of_multiTarget_sameCls --instance_mi""".split()  # noqa: SIM905


@pytest.mark.parametrize("name", ["train.py", "eval.py", "paper.tables"])
def test_help_names_every_flag(name):
    done = call(name, "--help")
    assert done.returncode == 0 and "usage" in done.stdout
    if name != "paper.tables":
        for flag in ORIGINAL_FLAGS:
            assert flag in done.stdout


def test_importing_modules_reseeds_nothing():
    """Defect 6."""
    # scikit-learn's own import may draw numbers, with rich installed.
    code = (
        "import random, numpy as np, sklearn.metrics, torch\n"
        "random.seed(5); np.random.seed(5); torch.manual_seed(5)\n"
        "import utils, experiment.report, experiment.training, train, eval, paper.tables, networks, dataset\n"
        "got = random.random(), np.random.rand(), torch.rand(1).item()\n"
        "random.seed(5); np.random.seed(5); torch.manual_seed(5)\n"
        "assert got == (random.random(), np.random.rand(), torch.rand(1).item())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- what belongs together stays together ----------------------------------------------------------------------------


def test_data_that_cannot_be_audited_are_refused_before_training(tmp_path, script):
    """All crops are for training: no non-member is left, and no hour is lost on finding that out."""
    done = script("train", *SMALL, "--train_size", 2966, "--out", tmp_path / "run")
    assert_refused(done, "non-member")
    assert not (tmp_path / "run").exists()


def test_eval_cannot_overwrite_a_training_run(finished_run, script):
    before = (finished_run / "result.json").read_bytes()
    assert_refused(script("eval", "--checkpoint", finished_run, "--out", finished_run), "training run")
    assert (finished_run / "result.json").read_bytes() == before


def test_models_in_one_folder_get_a_folder_of_results_each(finished_run, tmp_path, script):
    for name in ("a", "b"):
        shutil.copy(finished_run / "model.safetensors", tmp_path / f"{name}.safetensors")
        done = script("eval", "--checkpoint", tmp_path / f"{name}.safetensors", "--num_of_non_member_user", 20)
        assert done.code == 0, done.err
    assert all((tmp_path / name / "eval" / "result.json").exists() for name in ("a", "b"))


def test_precision_of_the_queries_can_be_chosen(finished_run, tmp_path, script):
    for precision in ("float32", "bfloat16"):
        flags = ("--precision", precision, "--out", tmp_path / precision)
        assert script("eval", "--checkpoint", finished_run, *flags).code == 0
    exact, rough = (
        arrays_of(tmp_path / name / "losses.npz")["target_cross_entropy"] for name in ("float32", "bfloat16")
    )
    assert not np.array_equal(exact, rough) and np.allclose(exact, rough, rtol=0.2, atol=0.1)


def test_outlier_images_that_changed_since_training_are_refused(tmp_path, script):
    from PIL import Image

    draws = np.random.default_rng(0)
    folder = tmp_path / "patterns"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(draws.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    flags = (*SMALL, "--epoch", 1, "--ood_pattern", folder)
    assert script("train", *flags, "--out", tmp_path / "run").code == 0
    assert script("eval", "--checkpoint", tmp_path / "run").code == 0
    for number in range(3):
        Image.fromarray(draws.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    assert_refused(script("eval", "--checkpoint", tmp_path / "run"), "marks")

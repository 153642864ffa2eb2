"""What model owners may do against the audit: each countermeasure against a known answer, and through train.py."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import entropy
from torch import nn

import countermeasures
import utils
from countermeasures.augmentation import GaussianNoise, RandAugment
from countermeasures.output_perturbation import LabelOnly, OutputNoise
from countermeasures.privacy import DPSGD, HAMP, SELENA, soft_label
from countermeasures.pruning import Pruning
from countermeasures.regularization import Dropout, EarlyStopping
from experiment import setup
from kit.errors import UserError
from networks import build_network
from tests.parts import SMALL, TRAINING, call

ALL = (
    "dp_sgd",
    "dropout",
    "early_stopping",
    "fine_tuning",
    "gaussian_noise",
    "hamp",
    "label_only",
    "output_noise",
    "pruning",
    "randaugment",
    "selena",
)


# --- names and settings ----------------------------------------------------------------------------------------------


def test_every_countermeasure_of_the_paper_is_there():
    assert set(ALL) <= set(countermeasures.countermeasure_names())


@pytest.mark.parametrize("name", ALL)
def test_the_stored_name_means_the_same_settings(name):
    first = countermeasures.parse(name)
    assert countermeasures.parse(str(first)) == first and str(first).startswith(name)


def test_settings_are_read_with_their_types():
    chosen = countermeasures.parse("fine_tuning:lr=0.02,epochs=7")
    assert (chosen.lr, chosen.epochs, chosen.share, chosen.clean_share) == (0.02, 7, 0.1, 0.1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prunning", ("did you mean pruning",)),
        ("pruning:ammount=0.5", ("ammount", "did you mean amount")),
        ("pruning:amount", ("SETTING=VALUE",)),
        ("pruning:amount=many", ("pruning", "amount", "number")),
        ("pruning:amount=1.5", ("amount", "less than 1")),
        ("selena:models=3,left_out=3", ("left_out must be below",)),
        ("", ("unknown",)),
        ("early_stopping:share=0", ("share", "greater than 0")),
    ],
)
def test_bad_settings_are_one_line(text, words):
    with pytest.raises(UserError) as caught:
        countermeasures.parse(text)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_one_file_is_a_countermeasure_more(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from countermeasures.base import Countermeasure\n"
        "class Mine(Countermeasure):\n    name = 'my_defence'\n    strength: int = 3\n"
    )
    monkeypatch.setattr(countermeasures, "__path__", [*countermeasures.__path__, str(tmp_path)])
    assert str(countermeasures.parse("my_defence:strength=5")) == "my_defence:strength=5"


# --- training ---------------------------------------------------------------------------------------------------------


class Job:
    """As much of a TrainingJob as hooks need."""

    def __init__(self, classes=10, images=64, **recipe):
        self.classes, self.seed = classes, 1
        self.recipe = replace(utils.TrainingSettings(epoch=20, batch_size=16), **recipe)
        self.images = torch.zeros(images, 3, 32, 32, dtype=torch.uint8)


def test_gaussian_noise_has_the_std_it_names():
    torch.manual_seed(0)
    images = torch.full((50, 3, 32, 32), 100, dtype=torch.uint8)
    noisy = GaussianNoise(std=0.2).hooks(Job()).transform(images)
    assert noisy.float().mean() == pytest.approx(100, abs=0.5)
    assert noisy.float().std() == pytest.approx(0.2 * 255, rel=0.01)


def test_randaugment_draws_for_each_image_on_its_own():
    """Defect 1: the same change for a whole batch."""
    torch.manual_seed(0)
    one = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8))
    changed = RandAugment(operations=3).hooks(Job()).transform(one.expand(24, -1, -1, -1))
    assert changed.dtype == torch.uint8 and changed.shape == (24, 3, 32, 32)
    assert len({image.numpy().tobytes() for image in changed}) > 12


def test_early_stopping_keeps_the_schedule(tmp_path):
    """Wrong: 4 epochs of a schedule of 4, whose learning rate falls within them."""
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
    recipe = utils.TrainingSettings(epoch=10, batch_size=20, precision="float32")
    hooks = EarlyStopping(share=0.4).hooks(SimpleNamespace(recipe=recipe))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))
    rates, lr_at = [], utils.TrainingSettings.lr_at

    class Watched(utils.TrainingSettings):
        def lr_at(self, epoch):
            rates.append(lr_at(self, epoch))
            return rates[-1]

    watched = Watched(**vars(recipe))
    history = utils.train_model(
        model, images, torch.arange(40) % 2, watched, torch.device("cpu"), tmp_path / "p", {}, hooks=hooks
    )
    assert len(history) == 4 and rates == [0.1] * 4


def test_dropout_drops_features_in_training_alone():
    model = Dropout(rate=0.5).prepare(build_network("smallnet", 5))
    assert set(model.state_dict()) == set(build_network("smallnet", 5).state_dict())
    seen = []
    model.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.randn(64, 3, 32, 32)
    model.train()(images)
    model.eval()(images)
    # ReLU leaves zeros too, so compare shares: half of what was not zero is gone.
    kept, whole = ((features != 0).float().mean().item() for features in seen)
    assert kept == pytest.approx(0.5 * whole, rel=0.2)


def test_soft_labels_have_the_entropy_they_promise():
    for threshold, classes in ((0.95, 100), (0.5, 10), (0.1, 2)):
        top = soft_label(threshold, classes)
        label = [top] + [(1 - top) / (classes - 1)] * (classes - 1)
        assert entropy(label) == pytest.approx(threshold * math.log(classes), abs=1e-9) and top > 1 / classes


def test_hamps_loss_is_kl_minus_entropy():
    job, defence = Job(classes=4), HAMP(threshold=0.6, alpha=0.25)
    logits, labels = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2])
    top = soft_label(0.6, 4)
    expected = 0
    for row, label in zip(logits.softmax(1).numpy(), labels.tolist(), strict=True):
        target = np.full(4, (1 - top) / 3)
        target[label] = top
        expected += (entropy(target, row) - 0.25 * entropy(row)) / 5
    assert defence.hooks(job).loss(logits, labels).item() == pytest.approx(expected, abs=1e-9)


def test_hamps_answers_keep_the_order_and_lose_the_scores():
    def query(images):
        return images.float().flatten(1)[:, :6] / 50

    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    true, shown = query(images), HAMP().answer(query, 1)(images)
    for row, hidden in zip(true, shown, strict=True):
        assert [hidden[place] for place in row.sort(stable=True).indices] == sorted(hidden.tolist())
    assert not torch.allclose(true, shown)
    assert torch.equal(shown, HAMP().answer(query, 1)(images)), "a question asked again has the same answer"


def test_selena_distils_from_the_networks_that_have_not_seen_an_image():
    """Wrong: soft labels from networks that were trained on the image."""
    fitted = {}

    class SplitJob(Job):
        def __init__(self):
            super().__init__(classes=3, images=30)
            self.images[:, 0, 0, 0] = torch.arange(30, dtype=torch.uint8)
            self.labels, self.model = torch.arange(30) % 3, "final"

        def new_model(self):
            return {"saw": None}

        def fit(self, model, images=None, labels=None, phase=None, validation="the run's"):
            if phase:
                model["saw"] = set(images[:, 0, 0, 0].tolist())
                assert torch.equal(labels, images[:, 0, 0, 0].long() % 3) and validation is None
                fitted[phase] = model
                return []
            self.soft = labels
            return ["history"]

        def logits(self, model, images):
            seen = torch.tensor([value in model["saw"] for value in images[:, 0, 0, 0].tolist()])
            logits = torch.full((len(images), 3), -20.0)
            logits[:, 0] = torch.where(seen, -20.0, 20.0)
            logits[:, 1] = torch.where(seen, 20.0, -20.0)
            return logits

    job = SplitJob()
    assert SELENA(models=5, left_out=2).train(job) == ["history"] and len(fitted) == 5
    times_seen = np.sum([[number in model["saw"] for number in range(30)] for model in fitted.values()], axis=0)
    assert (times_seen == 3).all()
    assert torch.allclose(job.soft, torch.tensor([1.0, 0.0, 0.0]).expand(30, 3), atol=1e-6)


def test_dp_sgd_clips_the_mean_gradient_of_an_images_copies():
    """One step without noise, against gradients computed image by image."""
    pytest.importorskip("opacus")
    torch.manual_seed(0)
    defence, job = DPSGD(noise_multiplier=0, clip=0.5, multiplicity=3), Job(images=64)
    hooks = defence.hooks(job)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    inputs, labels = torch.randn(6, 3, 2, 2) * 3, torch.tensor([0, 0, 0, 2, 2, 2])  # two images, three copies each
    wrapped, optimizer = hooks.attach(model, torch.optim.SGD(model.parameters(), lr=1.0))
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(wrapped(inputs), labels).backward()
    optimizer.step()
    total = torch.zeros_like(before["1.weight"])
    for image in (slice(0, 3), slice(3, 6)):
        alone = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        alone.load_state_dict(before)
        F.cross_entropy(alone(inputs[image]), labels[image]).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in alone.parameters()))
        assert norm > 0.5, "the case must be clipped"
        total += alone[1].weight.grad * min(1, 0.5 / norm)
    # Divided by the batch size that is expected, 16 of 64 images, whatever was drawn.
    assert torch.allclose(before["1.weight"] - model[1].weight.detach(), total / 16, atol=1e-6)


def test_dp_sgd_may_have_a_learning_rate_of_its_own():
    recipe = utils.TrainingSettings(lr=0.01)
    own, recipes = countermeasures.parse("dp_sgd:lr=2"), countermeasures.parse("dp_sgd")
    assert (own.recipe(recipe).lr, recipes.recipe(recipe).lr) == (2, 0.01)
    assert str(recipes) == "dp_sgd:noise_multiplier=0.01,clip=1.0,multiplicity=4,delta=1e-05"  # as in earlier files


def test_dp_sgd_steps_on_fixed_features():
    """One step of scatternet without noise: its layer moves by the clipped gradients of the images, one by one."""
    pytest.importorskip("opacus")
    torch.manual_seed(0)
    defence, job = DPSGD(noise_multiplier=0, clip=2.0, multiplicity=1), Job(images=64, batch_size=16)
    model = defence.prepare(build_network("scatternet", 5))
    before = [value.detach().clone() for value in model.parameters()]
    images, labels = torch.randn(3, 3, 32, 32), torch.tensor([4, 0, 2])
    expected = torch.zeros_like(before[0])
    for image, label in zip(images, labels, strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(image[None]), label[None]), list(model.parameters()))
        norm = math.sqrt(sum(float(each.square().sum()) for each in gradients))
        assert norm > 2
        expected += gradients[0] * 2 / norm
    wrapped, optimizer = defence.hooks(job).attach(model, torch.optim.SGD(model.parameters(), lr=1.0))
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(wrapped(images), labels).backward()
    optimizer.step()
    assert torch.allclose(before[0] - model.classifier.weight.detach(), expected / 16, atol=1e-6)


def test_dp_sgd_draws_images_independently():
    """Poisson sampling, which the accountant assumes: sizes vary, and an image may come twice an epoch or never."""
    job = Job(images=1000, batch_size=100)
    hooks = DPSGD(multiplicity=2).hooks(job)
    steps = [rows for epoch in range(30) for rows in hooks.steps(utils.key_generator(epoch), 1000, 100)]
    assert all((rows[::2] == rows[1::2]).all() for rows in steps)
    sizes = np.array([len(rows) // 2 for rows in steps])
    assert len(steps) == 300 and sizes.mean() == pytest.approx(100, abs=2)
    assert sizes.std() == pytest.approx(math.sqrt(1000 * 0.1 * 0.9), rel=0.15)


def test_dp_sgd_has_no_batch_normalisation_and_states_its_epsilon():
    pytest.importorskip("opacus")
    prepared = DPSGD().prepare(build_network("smallnet", 5))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    # Every image in every step: the plain Gaussian mechanism, whose Renyi divergence of order a is a / (2 sigma^2).
    job = Job(images=16, batch_size=16, epoch=10)
    report = DPSGD(noise_multiplier=4, delta=1e-5).report(job)
    plain = min(10 * a / (2 * 16) + math.log(1e5) / (a - 1) for a in np.arange(1.1, 60, 0.1))
    assert report["steps"] == 10 and report["sampling_rate"] == 1
    assert 0.7 * plain < report["epsilon"] <= plain * 1.001
    assert DPSGD(noise_multiplier=0).report(job)["epsilon"] is None


# --- finished models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_pruning_zeroes_the_smallest_weights(scope):
    torch.manual_seed(0)
    model = build_network("smallnet", 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    job = SimpleNamespace(model=model)
    Pruning(amount=0.6, scope=scope).after(job)
    assert set(model.state_dict()) == set(before)
    weights = {name: value for name, value in model.state_dict().items() if value.ndim > 1}
    if scope == "global":
        everything = torch.cat([before[name].abs().flatten() for name in weights])
        limit = everything.kthvalue(round(0.6 * len(everything))).values
        assert all(torch.equal(value == 0, before[name].abs() <= limit) for name, value in weights.items())
    else:
        assert all((value == 0).float().mean() == pytest.approx(0.6, abs=0.01) for value in weights.values())
    assert all(torch.equal(value[value != 0], before[name][value != 0]) for name, value in weights.items())
    assert Pruning(amount=0.6).report(job)["zero_weights"] == pytest.approx(0.6, abs=0.01)


def test_output_noise_is_fresh_for_every_answer_and_the_same_in_every_audit():
    def query(images):
        return torch.zeros(len(images), 10)

    images = torch.zeros(3000, 3, 1, 1)
    noisy = OutputNoise(sigma=2.0).answer(query, 1)
    first, second = noisy(images), noisy(images)
    assert first.std() == pytest.approx(2.0, rel=0.02) and abs(first.mean()) < 0.05
    assert not torch.equal(first, second)
    assert torch.equal(first, OutputNoise(sigma=2.0).answer(query, 1)(images))
    assert not torch.equal(first, OutputNoise(sigma=2.0).answer(query, 2)(images))


def test_label_only_leaves_nothing_but_right_or_wrong():
    logits = torch.randn(200, 7) * 10
    shown = LabelOnly().answer(lambda images: logits, 1)(None)
    labels = torch.randint(0, 7, (200,))
    assert torch.equal(shown.argmax(1), logits.argmax(1))
    loss = utils.sample_signals(shown, labels)["cross_entropy"].numpy()
    right = (logits.argmax(1) == labels).numpy()
    # Exactly equal, so that users with the same number of errors are tied.
    assert len(np.unique(loss[right])) == len(np.unique(loss[~right])) == 1
    assert loss[right][0] == pytest.approx(0, abs=1e-20) and loss[~right][0] == 64


# --- through train.py -------------------------------------------------------------------------------------------------


def test_fine_tuning_takes_the_model_over_and_uses_nobodys_images(finished_run, tmp_path, script):
    out = tmp_path / "tuned"
    done = script(
        "train",
        *SMALL,
        "--out",
        out,
        "--countermeasure",
        "fine_tuning:lr=0.001,epochs=2",
        "--base_model",
        finished_run,
    )
    assert done.code == 0, done.err
    result = json.loads((out / "result.json").read_text())
    base = json.loads((finished_run / "result.json").read_text())
    assert result["settings"]["training"]["countermeasure"] == "fine_tuning:lr=0.001,epochs=2,share=0.1"
    assert [path.name for path in out.iterdir() if "phase" in path.name] == []
    # The weights have moved, a little: a model trained anew, or not at all, would fail.
    with np.load(out / "marks.npz") as ours, np.load(finished_run / "marks.npz") as theirs:
        assert np.array_equal(ours["images"], theirs["images"])
    from safetensors.torch import load_file

    old, new = load_file(finished_run / "model.safetensors"), load_file(out / "model.safetensors")
    moved = (new["classifier.weight"] - old["classifier.weight"]).norm() / old["classifier.weight"].norm()
    assert 0 < moved < 0.2
    assert result["accuracy"]["test_images"] < base["accuracy"]["test_images"]  # clean images are no test images


def test_clean_images_are_disjoint_from_all_others():
    from dataset import load_dataset

    data = load_dataset("photos")
    settings = {**TRAINING, "countermeasure": "fine_tuning:share=0.5"}
    made = setup.prepare(settings, {"num_of_non_member_user": 50}, data)
    clean = set(made.clean.tolist())
    assert len(clean) == 200  # half of 400
    assert not clean & set(made.splits.train.tolist()) and not clean & set(made.splits.test.tolist())
    assert not clean & {int(row) for users in made.groups.values() for row in users.samples.ravel()}


@pytest.mark.parametrize("countermeasure", ["pruning:amount=0.5", "output_noise:sigma=3", "label_only"])
def test_finished_models_are_defended_without_training(finished_run, tmp_path, countermeasure, script):
    out = tmp_path / "run"
    done = script("train", *SMALL, "--out", out, "--countermeasure", countermeasure, "--base_model", finished_run)
    assert done.code == 0, done.err
    with np.load(out / "losses.npz") as ours, np.load(finished_run / "losses.npz") as theirs:
        assert np.array_equal(ours["non_member_samples"], theirs["non_member_samples"])
        assert not np.allclose(ours["target_cross_entropy"], theirs["target_cross_entropy"])
        if countermeasure == "label_only":
            assert len(np.unique(ours["non_member_cross_entropy"].round(6))) == 2
            assert np.array_equal(ours["non_member_correct"], theirs["non_member_correct"])


def test_eval_audits_the_defended_model_again(finished_run, tmp_path, script):
    """Wrong: eval.py asks the model without what its owner does to the answers."""
    for number, flags in enumerate((("label_only", "--base_model", finished_run),)):
        out = tmp_path / f"run{number}"
        done = script("train", *SMALL, "--out", out, "--countermeasure", *flags)
        assert done.code == 0, done.err
        done = script("eval", "--checkpoint", out, "--out", tmp_path / f"again{number}")
        assert done.code == 0, done.err
        first, again = (
            json.loads((folder / "result.json").read_text()) for folder in (out, tmp_path / f"again{number}")
        )
        assert first["audit"] == again["audit"] and first["verdict"] == again["verdict"]
        assert first["countermeasure"] == again["countermeasure"]


def test_an_interrupted_countermeasure_goes_on_with_the_same_bits(tmp_path, script, monkeypatch):
    """Killed while SELENA trains its third network: the first two are not trained again, and the result is the same."""
    flags = (*SMALL, "--countermeasure", "selena:models=3,left_out=1", "--epoch", "2")
    whole = script("train", *flags, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    code = (
        "import os, utils\ncalls = []\nplain = utils.train_model\n"
        "def deadly(*given, **more):\n    calls.append(1)\n"
        "    return plain(*given, **more) if len(calls) < 3 else os._exit(9)\nutils.train_model = deadly"
    )
    killed = call("train.py", *flags, "--out", tmp_path / "cut", code=code)
    assert killed.returncode == 9 and len(list((tmp_path / "cut").glob("*phase*"))) == 2
    trained, plain = [], utils.train_model
    monkeypatch.setattr(utils, "train_model", lambda *given, **more: trained.append(1) or plain(*given, **more))
    again = script("train", *flags, "--out", tmp_path / "cut")
    assert again.code == 0 and len(trained) == 2, again.err
    assert (tmp_path / "whole/model.safetensors").read_bytes()[-4096:] == (
        tmp_path / "cut/model.safetensors"
    ).read_bytes()[-4096:]
    assert not list((tmp_path / "cut").glob("*phase*"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--countermeasure", "hamp", "--base_model", "x"), "finished model"),
        (("--base_model", "x"), "leave it out"),
        (("--countermeasure", "pruning", "--base_model", "nothing"), "neither a run folder"),
        (("--countermeasure", "fine_tuning:share=1"), "clean images"),
    ],
)
def test_flags_that_do_not_fit_leave_nothing_behind(tmp_path, flags, words, script):
    size = ("--train_size", "1900") if "fine_tuning:share=1" in flags else ()
    done = script("train", *SMALL, *size, "--out", tmp_path / "run", *flags)
    assert done.code == 2 and words in done.err and done.err.count("\n") == 1, done.err
    assert not (tmp_path / "run/config.json").exists()


def test_another_runs_model_is_refused(finished_run, tmp_path, script):
    done = script(
        "train",
        *SMALL,
        "--seed",
        "5",
        "--out",
        tmp_path / "run",
        "--countermeasure",
        "pruning",
        "--base_model",
        finished_run,
    )
    assert done.code == 2 and "seed" in done.err and "without a countermeasure" in done.err

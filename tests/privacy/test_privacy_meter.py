"""Privacy Meter's own YAML files: each is taken as it is, and what it asks for elsewhere is done or named."""

import math

import numpy as np
import pytest
import torch

import utils
from privacy import config as configuration
from privacy import data, models, pipeline, ranges, training
from privacy.translation import translated
from tests.privacy.parts import config_of, error_of, sections, write

# Keys and values of the files in its folder configs/, without their comments.
RUN = {"random_seed": 12345, "time_log": True, "num_experiments": 1}
AUDIT = {
    "privacy_game": "privacy_loss_model",
    "algorithm": "RMIA",
    "num_ref_models": 1,
    "device": "cuda:0",
    "report_log": "report_rmia",
}
TRAIN = {"device": "cuda:0", "batch_size": 256, "optimizer": "SGD", "learning_rate": 0.1, "weight_decay": 0}
GPT2 = {
    "model_name": "gpt2",
    "tokenizer": "gpt2",
    "device": "cuda:0",
    "batch_size": 8,
    "learning_rate": 0.00005,
    "weight_decay": 0.01,
    "epochs": 1,
    "optimizer": "adamw_torch",
}
LORA = {"type": "lora", "fan_in_fan_out": True, "r": 16, "target_modules": ["c_attn", "c_proj", "c_fc"]}
WORDS = {
    "range_function": "word_replace",
    "mask_model": "bert-base-uncased",
    "mask_tokenizer": "bert-base-uncased",
    "num_masks": 5,
}


def cifar(epochs=100, model="wrn28-2", batch=5000, **more):
    train = {**TRAIN, "model_name": model, "epochs": epochs, "learning_rate": 20 if model == "CNN" else 0.1}
    size = {"data_size": more.pop("data_size")} if "data_size" in more else {}
    return {
        "audit": {**AUDIT, "batch_size": batch, **size},
        "train": train,
        "data": {"dataset": "cifar10", "data_dir": "data"},
        **more,
    }


def purchase(batch=5000, population=10000, **more):
    sizes = {"data_size": 10000, **({"population_size": population} if population else {})}
    return {
        "audit": {**AUDIT, "batch_size": batch, **sizes},
        "train": {**TRAIN, "model_name": "mlp", "epochs": 100},
        "data": {"dataset": "purchase100", "data_dir": "data"},
        **more,
    }


def agnews(train=GPT2, audit=None, **more):
    return {
        "audit": {**AUDIT, **(audit or {"batch_size": 8})},
        "train": train,
        "data": {"dataset": "agnews", "data_dir": "data", "tokenize": True, "tokenizer": "gpt2"},
        **more,
    }


def audited(canaries, algorithm):
    return {"canary_dataset": canaries, "canary_size": 1000, "training_alg": algorithm}


L2, CANARY = {"range_function": "l2", "sample_size": 10}, "cifar10_canary"
MISSING = {
    "range_function": "missing_values",
    "sample_size": 10,
    "num_missing_feats": 10,
    "col_ranges": [[0, 1]] * 10,
    "is_categorical": True,
}
GEOMETRIC = {
    "range_function": "geometric",
    "sample_size": 4,
    "transformations": ["horizontal_flip", "vertical_flip", "rotate"],
}
FILES = {
    "config": cifar(),
    "cifar10": cifar(data_size=10000),
    "purchase": purchase(),
    "agnews": agnews(audit={"batch_size": 10, "data_size": 1000, "population_size": 100}),
    "agnews_lora": agnews({**GPT2, "peft": LORA}),
    "dpaudit/cifar10_dp_train_natural_1000": cifar(200, "CNN", dp_audit=audited("none", "dp")),
    "dpaudit/cifar10_dp_train_mislabel_1000": cifar(200, "CNN", dp_audit=audited(CANARY, "dp")),
    "dpaudit/cifar10_nondp_train_natural_1000": cifar(dp_audit=audited("none", "nondp")),
    "dpaudit/cifar10_nondp_train_mislabel_1000": cifar(dpaudit=audited(CANARY, "nondp")),
    "duci/cifar10": cifar(50),
    "ramia/config": cifar(data_size=10000, ramia=GEOMETRIC),
    "ramia/purchase": purchase(5, ramia={**L2, "radius": 10}),
    "ramia/purchase_range": purchase(5, None, ramia={**L2, "radius": 20}),
    "ramia/purchase_missingvalues": purchase(ramia=MISSING),
    "ramia/agnews": agnews(audit={"batch_size": 1, "data_size": 100}, ramia={**WORDS, "sample_size": 10}),
    "ramia/agnews_range": agnews(audit={"batch_size": 20}, ramia={**WORDS, "sample_size": 5}),
}


def file_of(name, folder):
    return write(folder / "theirs.yaml", {"run": {**RUN, "log_dir": str(folder / "demo")}, **FILES[name]})


@pytest.mark.parametrize("name", FILES)
def test_each_file_runs_up_to_missing_data(name, tmp_path, monkeypatch, capsys):
    """Before: 12 of 16 were refused for a key, and all for cuda:0."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: False)
    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", lambda self: (_ for _ in ()).throw(OSError("no net")))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    config = configuration.load(file_of(name, tmp_path))
    message = error_of(pipeline.run, config)
    wanted = {
        "cifar10": "can't be downloaded",
        "purchase100": "get dataset_purchase.tgz",
        "agnews": "pip install datasets",
    }
    assert wanted[config.data.dataset] in message
    if not torch.cuda.is_available():
        assert "warning: audit.device cuda:0 is not here, so cpu takes its place" in capsys.readouterr().err


def test_sixteen_files():
    assert len(FILES) == 16


NOTES = {
    "agnews": ("train.tokenizer is data.tokenizer", "train.pretrained: gpt2"),
    "agnews_lora": ("train.peft_type", "train.lora_rank", "train.lora_modules"),
    "dpaudit/cifar10_dp_train_natural_1000": (
        "audit.epsilon",
        "audit.data_size",
        "train.countermeasure dp_sgd",
        "countermeasures/README.md",
        "train.learning_rate is 2",
    ),
    "dpaudit/cifar10_nondp_train_mislabel_1000": ("data.canaries", "audit.epsilon"),
    "ramia/purchase": ("audit.ranges", "audit.ramia"),
    "ramia/agnews": ("word_replace is left out",),
    "config": (),
}


@pytest.mark.parametrize("name", NOTES)
def test_a_key_that_lies_elsewhere_here_is_named_with_its_place(name, tmp_path, capsys):
    configuration.load(file_of(name, tmp_path))
    error = capsys.readouterr().err
    assert all(word in error for word in NOTES[name]) and bool(error) == bool(NOTES[name])
    assert all(line.startswith("note: ") for line in error.splitlines())


def test_what_the_files_say_in_todays_words(tmp_path):
    loaded = {name: configuration.load(file_of(name, tmp_path)) for name in FILES}
    assert loaded["agnews"].train.optimizer == "AdamW" and loaded["agnews"].train.pretrained == "gpt2"
    lora = loaded["agnews_lora"].train
    assert (lora.peft_type, lora.lora_rank, lora.lora_modules) == ("lora", 16, LORA["target_modules"])
    private = loaded["dpaudit/cifar10_dp_train_natural_1000"]
    assert private.train.countermeasure.startswith("dp_sgd:noise_multiplier=0.5,clip=1.0")
    assert private.train.learning_rate == 2 and private.audit.data_size == 1000 and private.audit.epsilon == {}
    wrong = loaded["dpaudit/cifar10_dp_train_mislabel_1000"]
    assert wrong.data.canaries == 1000 and wrong.audit.data_size is None
    assert loaded["ramia/purchase_range"].audit.ranges.radius == 20
    missing = loaded["ramia/purchase_missingvalues"].audit.ranges
    assert missing.categorical and len(missing.columns) == 10 and missing.points == 10
    assert loaded["ramia/config"].audit.ramia == {} and loaded["ramia/agnews"].audit.ranges is None
    assert {config.models for config in loaded.values()} == {4}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": {**GPT2, "tokenizer": "bert"}}, ("train.tokenizer 'bert'", "data.tokenizer")),
        ({"train": {**GPT2, "peft": {"type": "lora", "alpha": 3}}}, ("train.peft", "target_modules")),
        ({"train": {**GPT2, "peft": {"type": "ia3"}}}, ("train.peft_type", "lora")),
        ({"ramia": {"range_function": "l3"}}, ("l3", "geometric, l2")),
        ({"ramia": {"range_function": "l2", "sample_size": 3}}, ("ramia.radius is missing",)),
        ({"ramia": {**MISSING, "num_missing_feats": 9}}, ("col_ranges",)),
        ({"ramia": 7}, ("section ramia",)),
        ({"dp_audit": {"canary_size": 10, "canary": 1}}, ("dp_audit.canary is unknown", "canary_dataset")),
        ({"dp_audit": {"canary_size": 10, "canary_dataset": "mnist_canary"}}, ("mnist_canary", "agnews_canary")),
        ({"dp_audit": {"canary_size": 10, "training_alg": "dpp"}}, ("dpp",)),
        ({"ramai": {}}, ("ramai", "did you mean")),
    ],
)
def test_what_contradicts_itself_or_is_unknown_is_refused(change, words, tmp_path):
    path = write(tmp_path / "a.yaml", {"run": {**RUN, "log_dir": "x"}, **agnews(), **change})
    message = error_of(configuration.load, path)
    assert str(path) in message and all(word in message for word in words), message


def test_our_own_files_stay_as_they_are():
    content = sections("x", train__optimizer="AdamW", audit__ramia={"trim": [0.5, 1]})
    assert translated(content) == (content, [])


def test_a_device_that_is_no_cuda_device_is_still_refused(tmp_path):
    made = sections(tmp_path / "log")
    made["train"]["device"] = "tpu"
    assert "--device tpu" in error_of(pipeline.run, configuration.load(write(tmp_path / "a.yaml", made)), "models")


# --- what they ask for ------------------------------------------------------------------------------------------------


def test_copies_in_a_ball_are_inside_and_the_same_for_every_model(tmp_path):
    config = config_of(tmp_path, audit__ranges={"function": "l2", "points": 3, "radius": 5})
    records = data.load(config.data)
    copies = ranges.copies_of(config.audit.ranges, records)
    assert [str(copy) for copy in copies] == ["l2 5 #1", "l2 5 #2", "l2 5 #3"]
    rows = np.arange(60)
    changed = [copy(records.inputs[rows], rows) for copy in copies]
    distances = torch.stack([(one - records.inputs[rows]).norm(dim=1) for one in changed])
    assert distances.max() <= 5 and distances.mean() > 4
    assert not torch.equal(changed[0], changed[1])
    assert torch.equal(copies[0](records.inputs[rows[7:9]], rows[7:9]), changed[0][7:9])  # whatever the batch


def test_missing_values_are_filled_within_their_columns(tmp_path):
    wanted = {"function": "missing_values", "points": 2, "columns": [[0, 1], [3, 5]], "categorical": True}
    config = config_of(tmp_path, audit__ranges=wanted)
    records, rows = data.load(config.data), np.arange(200)
    changed = ranges.copies_of(config.audit.ranges, records)[0](records.inputs[rows], rows)
    assert torch.equal(changed[:, :-2], records.inputs[rows][:, :-2])
    assert set(changed[:, -2].tolist()) == {0, 1} and set(changed[:, -1].tolist()) == {3, 4, 5}


def test_images_are_flipped_and_turned():
    from types import SimpleNamespace

    section = configuration.Ranges(**{"function": "geometric", "transformations": GEOMETRIC["transformations"]})
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).reshape(2, 3, 8, 8)
    flip, down, turned = ranges.copies_of(section, SimpleNamespace(kind="images"))
    assert torch.equal(flip(images, [0, 1]), images.flip(3)) and torch.equal(down(images, [0, 1]), images.flip(2))
    assert turned(images, [0, 1]).shape == images.shape and not torch.equal(turned(images, [0, 1]), images)


def test_ranges_are_audited_and_leave_the_records_attacks_alone(tmp_path):
    changes = {"audit__algorithm": ["LOSS", "lira_offline_fixed"], "data__size": 400}
    plain, _ = pipeline.run(config_of(tmp_path / "a", **changes), "audit")
    wanted = {"function": "l2", "points": 4, "radius": 8}
    found, _ = pipeline.run(config_of(tmp_path / "b", **changes, audit__ranges=wanted), "audit")
    assert [one["pooled"]["auc"] for one in found["attacks"]] == [one["pooled"]["auc"] for one in plain["attacks"]]
    assert plain["ramia"] is None and found["ramia"]["points"] == 4
    assert 0.5 < found["ramia"]["range"]["auc"] <= 1
    assert "are for images" in error_of(
        pipeline.run,
        config_of(tmp_path / "c", audit__ranges={"function": "geometric", "transformations": ["rotate"] * 2}),
        "signals",
    )


def test_canaries_have_wrong_labels_and_alone_are_audited(tmp_path):
    config = config_of(tmp_path, data__canaries=60, data__size=400, audit__epsilon={})
    right, records = data.load(config_of(tmp_path / "right").data), data.load(config.data)
    changed = torch.nonzero(right.labels != records.labels).flatten()
    assert len(changed) == 60 and records.fingerprint != right.fingerprint
    plan = data.plan(config, records)
    assert np.array_equal(plan.audited, changed.numpy()) and plan.memberships[:, changed].any(0).all()
    results, _ = pipeline.run(config, "audit")
    assert results["records"] == 60 and results["epsilon"]["epsilon"] >= 0


def test_training_with_dp_sgd_states_epsilon_and_is_opened_again(tmp_path):
    pytest.importorskip("opacus")
    train = {
        "model_name": "cnn",
        "epochs": 1,
        "batch_size": 64,
        "learning_rate": 0.5,
        "device": "cpu",
        "countermeasure": "dp_sgd:noise_multiplier=0.5,multiplicity=1",
    }
    made = sections(tmp_path / "log", run__num_experiments=1, data__dataset="photos", data__size=120)
    config = configuration.load(write(tmp_path / "a.yaml", {**made, "train": train}))
    pipeline.run(config, "signals")
    path = training.model_path(tmp_path / "log" / "models", 0)
    record = training.read_record(path)
    assert record["settings"]["countermeasure"] == train["countermeasure"]
    assert math.isfinite(record["countermeasure"]["epsilon"]) and record["countermeasure"]["epsilon"] > 1
    model, _ = training.open_own(path, data.load(config.data), config)
    assert isinstance(model, models.Network)
    # Trained with noise, it is another model than without.
    plain = configuration.load(
        write(
            tmp_path / "b.yaml",
            {**made, "run": {"log_dir": str(tmp_path / "b")}, "train": {**train, "countermeasure": None}},
        )
    )
    pipeline.run(plain, "models")
    assert training.read_record(training.model_path(tmp_path / "b" / "models", 0))["history"] != record["history"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__countermeasure": "selena"}, ("selena", "train.py --countermeasure")),
        ({"train__countermeasure": "label_only"}, ("label_only", "train.py")),
        ({"train__countermeasure": "dp_sgd"}, ("for images", "table")),
        ({"train__countermeasure": "dp"}, ("dp is unknown",)),
    ],
)
def test_a_countermeasure_that_does_not_fit_is_refused(changes, words, tmp_path):
    message = error_of(pipeline.run, config_of(tmp_path, **changes), "models")
    assert all(word in message for word in words), message


def test_modules_of_lora_change_the_settings_of_a_model_only_where_they_are_given(tmp_path):
    config = config_of(tmp_path)
    records, plan = (found := data.load(config.data)), data.plan(config, found)
    device = utils.choose_device("cpu")
    usual = training._settings(config, records, plan, 0, device)
    assert "lora_modules" not in usual and "countermeasure" not in usual
    other = config_of(tmp_path, train__lora_modules=["c_attn", "c_fc"])
    assert training._settings(other, records, plan, 0, device)["lora_modules"] == ["c_attn", "c_fc"]

"""Whole audits in the shapes of Purchase-100 and AG's News, on made-up records: with a leak and without."""

import json

import numpy as np
import pytest

import utils
from privacy import config as configuration
from privacy import pipeline
from tests.privacy.parts import sections, write

COLUMNS, KINDS = 600, 10


def shoppers(folder, memorable):
    """1,000 shoppers, 600 binary columns; all of a kind buy the same. memorable: labels are dealt out at random."""
    draws = np.random.default_rng(0)
    labels = np.resize(np.arange(KINDS), 1000)
    bought = (draws.random((KINDS, COLUMNS)) < 0.3)[labels]
    if memorable:
        bought = bought ^ (draws.random(bought.shape) < 0.1)
        labels = draws.permutation(labels)
    np.savez(folder / "purchase100.npz", features=bought.astype(np.uint8), labels=labels)
    return {"dataset": "purchase100", "data_dir": str(folder), "size": 600}


def news(folder, memorable):
    """160 texts of random letters, each its own or all one of two, and a GPT-2 that has learnt nothing yet.

    Its weights are random, but wide enough for a LoRA to be sure of something: embeddings are frozen beside it.
    """
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    with utils.seeded("a tiny GPT-2"):
        sizes = transformers.GPT2Config(
            vocab_size=256,
            n_positions=18,
            n_embd=64,
            n_layer=1,
            n_head=2,
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=0,
        )
        transformers.GPT2LMHeadModel(sizes).save_pretrained(folder / "gpt2")
    draws = np.random.default_rng(0)
    titles = ["".join(draws.choice(list("abcdefghij"), 8)) for _ in range(160 if memorable else 2)]
    lines = (f'"1","{title}","{title[::-1]}"\n' for title in np.resize(titles, 160))
    (folder / "train.csv").write_text("".join(lines))
    return str(folder / "gpt2"), {
        "dataset": "agnews",
        "data_dir": str(folder),
        "tokenize": True,
        "max_length": 18,
        "size": 80,
    }


def made_of(data, folder, **changes):
    made = sections(folder / "log", audit__algorithm=["loss", "reference", "rmia_online"], **changes)
    return write(folder / "a.yaml", {**made, "data": data})


def reported(folder, script, config, *flags):
    """(exit code, the attacks of the report's result.json by name, all of it) of privacy-audit.py."""
    done = script("privacy-audit", "--cf", config, *flags)
    assert done.code in (0, 3), done.err
    assert (folder / "log" / "report" / "report.html").stat().st_size > 0
    result = json.loads((folder / "log" / "report" / "result.json").read_text())
    return done.code, rates(result), result


def rates(result):
    return {one["name"]: one["pooled"] for one in result["attacks"]}


SHOPPERS = {"train__hidden": [64], "train__epochs": 30, "audit__population_size": 200, "audit__epsilon": {}}


def test_shoppers_whose_labels_must_be_remembered_are_found(tmp_path, script):
    config = made_of(shoppers(tmp_path, memorable=True), tmp_path, **SHOPPERS)
    code, attacks, result = reported(tmp_path, script, config, "--fail_if", "rmia_online: auc.low > 0.8")
    assert code == 3 and attacks["rmia_online"]["auc_clustered"][0] > 0.8
    assert result["epsilon"]["epsilon"] > 1


def test_shoppers_of_few_kinds_are_not_found(tmp_path):
    """Trained as long, but what a model learns of one shopper it knows from all others of the kind."""
    config = made_of(shoppers(tmp_path, memorable=False), tmp_path, **SHOPPERS)
    result, _ = pipeline.run(configuration.load(config), "audit")
    found = rates(result)
    assert all(one["auc_clustered"][0] < 0.52 and one["auc"] < 0.55 for one in found.values()), found
    assert result["epsilon"]["epsilon"] == 0


GPT2 = {
    "train__model_name": "gpt2",
    "train__peft_type": "lora",
    "train__lora_rank": 32,
    "train__lora_modules": ["c_attn", "c_fc", "c_proj"],
    "train__optimizer": "AdamW",
    "train__learning_rate": 1e-2,
    "audit__batch_size": 80,
}


def test_texts_that_a_tiny_gpt2_with_lora_remembers_are_found(tmp_path, script):
    model, data = news(tmp_path, memorable=True)
    config = made_of(data, tmp_path, train__epochs=30, train__pretrained=model, **GPT2)
    _, attacks, _ = reported(tmp_path, script, config)
    assert attacks["reference"]["auc_clustered"][0] > 0.6, attacks


def test_texts_that_everybody_prints_are_not_found(tmp_path):
    """A few steps are enough for texts of their own to be found; of these, others hold copies."""
    model, data = news(tmp_path, memorable=False)
    config = made_of(data, tmp_path, train__epochs=3, train__pretrained=model, **GPT2)
    found = rates(pipeline.run(configuration.load(config), "audit")[0])
    assert all(one["auc_clustered"][0] < 0.52 and one["auc"] < 0.57 for one in found.values()), found

"""Language models: a tiny one from scratch, and signals that are means over tokens."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from privacy import config as configuration
from privacy import data, pipeline
from tests.privacy.parts import sections, write


@pytest.mark.parametrize("peft_type", [None, "lora"])
def test_tiny_gpt2_from_scratch(peft_type, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    if peft_type:
        pytest.importorskip("peft")
    lines = "".join(f'"{1 + n % 4}","Title {n}","Words of number {n * n}"\n' for n in range(60))
    (tmp_path / "train.csv").write_text(lines)
    changes = {"dataset": "agnews", "data_dir": str(tmp_path), "tokenize": True, "max_length": 24, "size": 40}
    made = sections(
        tmp_path / "log",
        train__model_name="gpt2",
        train__hidden=[32],
        train__optimizer="AdamW",
        train__peft_type=peft_type,
        train__epochs=2,
        run__num_experiments=2,
        audit__batch_size=16,
    )
    made["data"] = changes
    pipeline.run(configuration.load(write(tmp_path / "a.yaml", made)), "signals")
    tensors = load_file(tmp_path / "log" / "models" / "model_0.safetensors")
    assert all("lora" in name for name in tensors) == bool(peft_type)
    stored = np.load(tmp_path / "log" / "signals" / "model_0.npz")
    losses = stored["losses"][0].astype(np.float64)
    assert (losses > 0).all() and (losses < 2 * math.log(256)).all()
    assert np.allclose(stored["scaled"][0], -losses - np.log(-np.expm1(-losses)), rtol=1e-4)


def test_text_signals_are_means_over_next_tokens():
    from types import SimpleNamespace

    from privacy.language import LanguageModel

    logits = torch.tensor([[[2.0, 0, 0], [0, 0, 1.0], [5.0, 5, 5]]]).expand(2, 3, 3)

    class Fixed(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return SimpleNamespace(logits=logits)

    records = SimpleNamespace(inputs=torch.tensor([[1, 0, 2], [1, 1, data.PAD]]))
    found = LanguageModel(Fixed(), torch.device("cpu")).signals(records, np.arange(2))
    first = math.log(math.exp(2) + 2)
    second = math.log(2 + math.e)
    assert found["cross_entropy"].tolist() == pytest.approx([(first - 2 + second - 1) / 2, first])
    assert found["correct"].tolist() == [1, 0]

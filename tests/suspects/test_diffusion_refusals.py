"""Diffusion models and LoRAs that can't be read in full, or change nothing, are refused by name: no false comfort."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kit.files import file_digest
from suspects.opened import base_digest, open_model
from suspects.suspect import Captioned
from tests.parts import ROOT
from tests.suspects import tiny
from tests.suspects.parts import refused

pytestmark = tiny.NEEDED
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny.stable_diffusion(tmp_path_factory.mktemp("sd") / "saved")


@pytest.fixture
def pipe(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "pipe")


def changed(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def reweighted(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def without_vae(pipe):
    shutil.rmtree(pipe / "vae")


def null_vae(pipe):
    changed(pipe / "model_index.json", lambda index: index.update(vae=[None, None]))


def foreign_code(pipe):
    (pipe / "evil.py").write_text("raise SystemExit('ran')\nclass Evil: pass\n")
    changed(pipe / "model_index.json", lambda index: index.update(unet=["evil", "Evil"]))


def custom_pipeline(pipe):
    changed(pipe / "model_index.json", lambda index: index.update(_class_name=["evil", "Evil"]))


def lacking_weight(pipe):
    reweighted(pipe / "unet" / WEIGHTS, lambda tensors: tensors.pop("conv_out.bias"))


def lacking_weight_of_text(pipe):
    reweighted(
        pipe / "text_encoder" / "model.safetensors",
        lambda tensors: tensors.pop(next(name for name in tensors if "q_proj" in name)),
    )


def additional_weight(pipe):
    reweighted(pipe / "unet" / WEIGHTS, lambda tensors: tensors.update(another=torch.zeros(3)))


def other_shape(pipe):
    reweighted(pipe / "vae" / WEIGHTS, lambda tensors: tensors.update({"quant_conv.bias": torch.zeros(5)}))


def quantised_weights(pipe):
    whole = {"conv_in.weight": torch.zeros(8, 4, 3, 3, dtype=torch.int8)}
    reweighted(pipe / "unet" / WEIGHTS, lambda tensors: tensors.update(whole))


def quantised_config(pipe):
    changed(pipe / "unet" / "config.json", lambda config: config.update(quantization_config={"load_in_4bit": True}))


def torn_weights(pipe):
    path = pipe / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def pickled_weights(pipe):
    (pipe / "unet" / WEIGHTS).rename(pipe / "unet" / "diffusion_pytorch_model.bin")


def sharded(pipe, *names):
    shards = {f"layer{number}": name for number, name in enumerate(names)}
    (pipe / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": shards}))


def lacking_shard(pipe):
    sharded(pipe, WEIGHTS, "diffusion_pytorch_model-00002-of-00002.safetensors")


def shard_elsewhere(pipe):
    sharded(pipe, "../../elsewhere.safetensors")


def adapter_as_part(pipe):
    (pipe / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')


def lora_beside(pipe):
    tiny.save_lora(pipe / "pytorch_lora_weights.safetensors", tiny.matrices(), "diffusers")


def absurd_size(pipe):
    changed(pipe / "unet" / "config.json", lambda config: config.update(layers_per_block=10**9))


def unknown_prediction(pipe):
    changed(pipe / "scheduler" / "scheduler_config.json", lambda config: config.update(prediction_type="guess"))


def unknown_schedule(pipe):
    changed(pipe / "scheduler" / "scheduler_config.json", lambda config: config.update(_class_name="EDMEulerScheduler"))


def inpainting(pipe):
    changed(pipe / "unet" / "config.json", lambda config: config.update(in_channels=9))
    wide = {"conv_in.weight": torch.zeros(8, 9, 3, 3)}
    reweighted(pipe / "unet" / WEIGHTS, lambda tensors: tensors.update(wide))


def no_words(pipe):
    """Each caption would be the same to it."""
    for path in (pipe / "tokenizer").iterdir():
        path.name == "tokenizer_config.json" or path.unlink()


def no_tokenizer_files(pipe):
    for path in (pipe / "tokenizer").iterdir():
        path.unlink()


def weights_beside(pipe):
    shutil.copy(pipe / "unet" / WEIGHTS, pipe / "unet" / "mine-finetuned.safetensors")


def weights_by_another_librarys_name(pipe):
    shutil.copy(pipe / "unet" / WEIGHTS, pipe / "unet" / "model.safetensors")


HOSTILE = {
    without_vae: ("vae is missing",),
    null_vae: ("vae is missing",),
    foreign_code: ("unet", "Evil"),
    custom_pipeline: ("not known here",),
    lacking_weight: ("conv_out.bias is missing",),
    lacking_weight_of_text: ("text_encoder", "missing"),
    additional_weight: ("another is unexpected",),
    other_shape: ("vae",),
    quantised_weights: ("quantised", "conv_in.weight", "I8"),
    quantised_config: ("quantised",),
    torn_weights: (WEIGHTS,),
    pickled_weights: (".bin", "safetensors"),
    lacking_shard: ("00002-of-00002", "missing"),
    shard_elsewhere: ("../../elsewhere.safetensors",),
    adapter_as_part: ("text_encoder", "adapter of another model"),
    lora_beside: ("a pipeline and a LoRA", "--base_model"),
    absurd_size: ("layers_per_block", "can't be"),
    unknown_prediction: ("schedule", "guess"),
    unknown_schedule: ("EDMEulerScheduler",),
    inpainting: ("9", "channels"),
    no_words: ("tokenizer has", "words and its network 54"),
    no_tokenizer_files: ("tokenizer",),
    weights_by_another_librarys_name: ("model.safetensors would not be read",),
    weights_beside: ("mine-finetuned.safetensors would not be read",),
}


@pytest.mark.parametrize("damage", HOSTILE, ids=lambda damage: damage.__name__)
def test_a_pipeline_that_cannot_be_read_in_full(pipe, damage):
    damage(pipe)
    refused(pipe, *HOSTILE[damage])


def test_what_else_lies_in_public_folders(pipe, saved):
    digest = open_model(saved, device="cpu").identity["sha256"]
    for name in ("vae/.DS_Store", "unet/README.md", "unet/diffusion_pytorch_model.bin"):
        (pipe / name).write_text("what no library reads")
    assert open_model(pipe, device="cpu").identity["sha256"] == digest
    weights = pipe / "unet" / WEIGHTS
    for name in ("non_ema", "non-ema", "fp16"):
        shutil.copy(weights, weights.with_name(f"diffusion_pytorch_model.{name}.safetensors"))
    shutil.copy(pipe / "vae" / WEIGHTS, pipe / "vae" / "sdxl_vae.safetensors")
    (pipe / "config.json").write_text('{"model_type": "whatever"}')
    assert open_model(pipe, device="cpu").identity["kind"] == "diffusion"


def test_what_a_pipeline_knows_itself(pipe):
    refused(pipe, "--net_type", net_type="smallnet")
    refused(pipe, "--mean", overrides={"mean": (0.0,) * 3})


def test_a_base_of_another_kind(pipe, saved, tmp_path):
    refused(pipe, "the model under audit itself", base=saved)
    other = tiny.stable_diffusion(tmp_path / "v", prediction="v_prediction")
    refused(pipe, "--base_model", "v_prediction", base=other)
    same = shutil.copytree(saved, tmp_path / "same")
    (same / "unet" / "NOTES.md").write_text("what no library reads")
    (same / "vae" / ".DS_Store").write_text("nor this")
    refused(pipe, "the model under audit itself", base=same)
    reweighted(same / "vae" / WEIGHTS, lambda tensors: tensors["quant_conv.bias"].add_(1))
    refused(pipe, "has the same unet, to the bit", base=same)
    reweighted(
        same / "text_encoder" / "model.safetensors", lambda tensors: [value.mul_(2) for value in tensors.values()]
    )
    open_model(pipe, device="cpu", base=str(same))
    refused(pipe, "--base_model", "index", base=tmp_path)


def test_a_base_is_for_what_is_made_of_one(tmp_path, saved):
    save_file({"weight": torch.zeros(3)}, tmp_path / "net.safetensors")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "net.pt")
    refused(tmp_path / "net.pt", "could run code", "leave --base_model out", base=saved)
    refused(tmp_path / "net.safetensors", "does not fit", base=saved)


# --- LoRAs ---


def lora(tmp_path, layout="diffusers", change=None, metadata=None, **options):
    layers = tiny.matrices(**options)
    path = tiny.save_lora(tmp_path / f"{layout}.safetensors", layers, layout, metadata=metadata)
    if change:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
    return path


def test_a_lora_without_its_base(tmp_path, saved):
    refused(lora(tmp_path), "LoRA", "--base_model")
    refused(lora(tmp_path, "kohya"), "--base_model", "is a LoRA", base=lora(tmp_path), config=str(saved))
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "clip", "architectures": ["CLIPModel"]}')
    refused(lora(tmp_path), "is an encoder, and a LoRA of one is not read", base=tmp_path / "clip")


def test_a_lora_that_changes_nothing(tmp_path, saved):
    def untrained(tensors):
        for name, value in tensors.items():
            if "lora_B" in name or "lora_up" in name:
                value.zero_()

    for layout in ("diffusers", "kohya"):
        refused(lora(tmp_path, layout, untrained), "changes nothing", base=saved)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_keys_that_find_no_place(tmp_path, saved, layout):
    """Half of the file would be left out with a warning, or with none."""

    def misnamed(tensors):
        for name in [name for name in tensors if "to_q" in name]:
            tensors[name.replace("attentions", "intentions")] = tensors.pop(name)

    refused(lora(tmp_path, layout, misnamed), "does not fit --base_model", base=saved)


def test_shapes_of_another_base(tmp_path, saved):
    refused(lora(tmp_path, "diffusers", unet=12), "does not fit --base_model", base=saved)
    refused(lora(tmp_path, "kohya", text=24), "does not fit --base_model", base=saved)


def test_a_lora_that_names_another_base(tmp_path, saved):
    for key, value in (("ss_base_model_version", "sdxl_base_v1-0"), ("modelspec.architecture", "Flux.1-dev/lora")):
        refused(lora(tmp_path, "kohya", metadata={key: value}), "says that it was trained on", base=saved)
    # Shapes are the same, and what it learnt would be asked for in vain.
    other = lora(tmp_path, "kohya", metadata={"ss_v_parameterization": "True"})
    refused(other, "trained to predict v_prediction", base=saved)
    refused(
        lora(tmp_path, "kohya", metadata={"ss_v_parameterization": "False"}),
        "trained to predict epsilon",
        base=tiny.stable_diffusion(tmp_path / "v", prediction="v_prediction"),
    )
    for word in ("epsilon", "v"):  # which programs that merge LoRAs guess
        as_said = {"modelspec.prediction_type": word, "ss_v_parameterization": "False"}
        suspect = open_model(lora(tmp_path, "kohya", metadata=as_said), device="cpu", base=str(saved))
        assert f"prediction_type {word}" in suspect.describe()


def test_a_lora_that_names_the_file_of_its_base(tmp_path, saved):
    base = shutil.copy(saved / "unet" / WEIGHTS, tmp_path / "base.safetensors")
    fits = lora(tmp_path, "kohya", metadata={"ss_new_sd_model_hash": file_digest(base)})
    open_model(fits, device="cpu", base=str(base), config=str(saved))
    other = lora(tmp_path, "kohya", metadata={"ss_new_sd_model_hash": "0" * 64})
    refused(other, "SHA-256 0000000000000000", base=str(base), config=str(saved))


@pytest.mark.parametrize("half", ["A|down", "B|up"])
@pytest.mark.parametrize(
    "layout, part",
    [("diffusers", "unet"), ("diffusers", "text_encoder"), ("kohya", "unet"), ("kohya", "te_"), ("peft", "")],
)
def test_half_a_layer(tmp_path, saved, layout, part, half):
    """A library leaves the layer out, fills it with anything, or fails on its own."""

    def torn(tensors):
        tensors.pop(next(name for name in tensors if re.search(rf"lora[._]({half})\b", name) and part in name))

    refused(lora(tmp_path, layout, torn, **({} if part else {"text": 0})), "the other half of", base=saved)


def test_the_file_itself(tmp_path, saved):
    """What is truncated is no pickle, though it may begin as one; two LoRAs in a folder are no choice of ours."""
    path = lora(tmp_path, "kohya")
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    longer = -(-size // 256) * 256 + 0x80
    torn = longer.to_bytes(8, "little") + content[8 : 8 + size].ljust(longer) + content[8 + size :]
    path.write_bytes(torn)
    assert torn[:1] == b"\x80" and open_model(path, device="cpu", base=str(saved)).name == path.name
    path.write_bytes(torn[:-20])
    refused(path, "truncated", base=saved)
    path.rename(tmp_path / "kohya.SAFETENSORS")
    (tmp_path / "kohya.SAFETENSORS").write_bytes(content)
    refused(tmp_path / "kohya.SAFETENSORS", "rename it", base=saved)
    folder = tmp_path / "output"
    folder.mkdir()
    refused(folder, "holds no model", base=saved)
    (folder / "mystyle.safetensors").write_bytes(content)
    assert open_model(folder, device="cpu", base=str(saved)).identity["adapter"]["layout"] == "kohya"
    (folder / "mystyle-000002.safetensors").write_bytes(content)
    refused(folder, "holds 2 files of weights", base=saved)
    (folder / "mystyle-000002.safetensors").unlink()
    shutil.copy(saved / "unet" / WEIGHTS, folder / "model.safetensors")
    refused(folder, "holds 2 files of weights", base=saved)
    (folder / "mystyle.safetensors").unlink()
    refused(folder, "give a pipeline's or an encoder's folder, or a file of weights", base=saved)
    refused(tmp_path / "nowhere", "does not exist", base=saved)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_lora_weights.bin").write_bytes(b"\x80\x02")
    refused(pickled, "could run code", base=saved)


def test_libraries_do_not_speak_beside_the_one_line(tmp_path, saved):
    """Outside of pytest, which keeps their words from itself."""

    def misnamed(tensors):
        for name in list(tensors):
            tensors[name.replace("to_q", "to_x")] = tensors.pop(name)

    file = lora(tmp_path, "diffusers", misnamed, text=0)
    program = f"from suspects.opened import open_model; open_model({str(file)!r}, device='cpu', base={str(saved)!r})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    trace, _, said = done.stderr.partition("kit.errors.UserError: ")
    assert "does not fit --base_model" in said and said.count("\n") == 1
    assert trace.startswith("Traceback"), trace


@pytest.mark.parametrize(
    "name, words",
    [
        ("lora_unet_down_blocks_0.hada_w1_a", "no plain LoRA"),
        ("lora_unet_down_blocks_0.lokr_w1", "no plain LoRA"),
        ("unet.down_blocks.0.lora_A.dora_scale", "no plain LoRA"),
        ("somewhere.lora_A.weight", "of no known layout"),
    ],
)
def test_other_kinds_of_adapters(tmp_path, saved, name, words):
    save_file({name: torch.ones(2, 2)}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", words, base=saved)


def test_a_lora_of_peft_needs_its_settings(tmp_path, saved):
    layers = tiny.matrices(text=0)
    path = tiny.save_lora(tmp_path / "adapter_model.safetensors", layers, "peft")
    changed(path.with_name("adapter_config.json"), lambda config: config.update(use_dora=True))
    refused(path, "use_dora", base=saved)
    path.with_name("adapter_config.json").unlink()
    refused(path, "adapter_config.json is missing", base=saved)


# --- one file ---


def test_a_checkpoint_of_one_file(pipe, saved, tmp_path):
    whole = tmp_path / "unet.safetensors"
    shutil.copy(saved / "unet" / WEIGHTS, whole)
    refused(whole, "--net_type")  # nothing says that it is no classifier
    suspect = open_model(whole, device="cpu", config=str(pipe))
    pictures = tiny.pictures(2)
    np.testing.assert_allclose(
        suspect.ask(pictures).scores, open_model(saved, device="cpu").ask(pictures).scores, rtol=1e-5
    )
    reweighted(whole, lambda tensors: tensors.pop("conv_out.bias"))
    refused(whole, "unet", config=str(pipe))
    shutil.copy(saved / "unet" / WEIGHTS, whole)
    reweighted(whole, lambda tensors: tensors.update({"model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}))
    assert base_digest(whole, pipe)
    reweighted(whole, lambda tensors: tensors.update(another=torch.zeros(3)))
    refused(whole, "unet", "--model_config", config=str(pipe))
    shutil.copy(saved / "unet" / WEIGHTS, whole)
    shutil.rmtree(pipe / "vae")
    refused(whole, "vae is missing", config=str(pipe))
    refused(whole, "--model_config", config=str(tmp_path))


# Of the tiny UNet: what the first checkpoints call its blocks, and the layers of a residual block.
BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
INNER = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
INNER |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}


def original_name(name):
    block = next(block for block in BLOCKS if name.startswith(f"{block}."))
    inner = name.removeprefix(f"{block}.")
    if "resnets" in block:
        layer, _, kind = inner.rpartition(".")
        inner = f"{INNER[layer]}.{kind}"
    return f"model.diffusion_model.{BLOCKS[block]}.{inner}"


def test_a_checkpoint_with_the_first_ones_names(pipe, saved, tmp_path):
    """Denoiser and text encoder from the file, the rest from the folder, whose own weights of both play no role."""
    unet = load_file(saved / "unet" / WEIGHTS)
    words = load_file(saved / "text_encoder" / "model.safetensors")
    whole = {original_name(name): value for name, value in unet.items()}
    whole |= {f"cond_stage_model.transformer.text_model.{name}": value for name, value in words.items()}
    save_file(whole, tmp_path / "model.safetensors")
    for part in ("unet", "text_encoder"):
        next((pipe / part).glob("*.safetensors")).unlink()
    suspect = open_model(tmp_path / "model.safetensors", device="cpu", config=str(pipe))
    told = Captioned(tiny.pictures(2), ("cat",) * 2)
    expected = open_model(saved, device="cpu").ask(told).scores
    np.testing.assert_allclose(suspect.ask(told).scores, expected, rtol=1e-5)
    reweighted(tmp_path / "model.safetensors", lambda tensors: tensors.pop(original_name("conv_out.bias")))
    refused(tmp_path / "model.safetensors", "unet", config=str(pipe))

"""Encoders and captioners that can't be read in full, or change nothing, are refused by name: no false comfort."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from suspects.opened import open_model
from tests.suspects import tiny
from tests.suspects import tiny_encoders as make
from tests.suspects.parts import refused
from tests.suspects.test_diffusion_refusals import changed, reweighted

pytestmark = make.NEEDED
WEIGHTS, FEED = "model.safetensors", "preprocessor_config.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {name: getattr(make, name)(root / name) for name in ("clip", "siglip", "blip", "eye")}


@pytest.fixture
def clip(saved, tmp_path):
    return shutil.copytree(saved["clip"], tmp_path / "theirs")


def config(change):
    return lambda folder: changed(folder / "config.json", change)


def tensors(change):
    return lambda folder: reweighted(folder / WEIGHTS, change)


def feed(**said):
    return lambda folder: changed(folder / FEED, lambda content: content.update(said))


def foreign_code(folder):
    (folder / "evil.py").write_text("raise SystemExit('ran')\nclass Evil: pass\n")
    changed(
        folder / "config.json",
        lambda content: content.update(architectures=["Evil"], auto_map={"AutoModel": "evil.Evil"}),
    )


def pickled(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def torn(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def stale_weights_beside(folder):
    """A library reads one of the two files and does not say which."""
    shutil.copy(folder / WEIGHTS, folder / "finetuned.safetensors")


def index_of(*names):
    def change(folder):
        shards = {f"layer{number}": name for number, name in enumerate(names)}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": shards}))

    return change


def adapter_beside(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')


def tokenizer_of_code(folder):
    changed(folder / "tokenizer_config.json", lambda said: said.update(tokenizer_class="EvilTokenizer"))


def larger_tokenizer(folder):
    """Of another model: numbers of words that its network does not have."""
    changed(folder / "tokenizer.json", lambda said: said["model"]["vocab"].update(zebra=54, yak=55))


def no_tokenizer(folder):
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).unlink()


HOSTILE = {
    "foreign code": (foreign_code, ("'Evil'", "not known here")),
    "two architectures": (config(lambda said: said.update(architectures=["CLIPModel", "X"])), ("not known here",)),
    "no architecture": (config(lambda said: said.pop("architectures")), ("None", "not known here")),
    "another type": (config(lambda said: said.update(model_type="siglip")), ("CLIPModel", "siglip")),
    "attention by download": (config(lambda said: said.update(attn_implementation="evil/kernel")), ("names code",)),
    "the same inside": (
        config(lambda said: said["text_config"].update(_attn_implementation={"": "evil/kernel"})),
        ("names code",),
    ),
    "quantised by its configuration": (
        config(lambda said: said["vision_config"].update(quantization_config={"load_in_4bit": True})),
        ("quantised",),
    ),
    "quantised weights": (
        tensors(lambda some: some.update({"logit_scale": torch.tensor([1], dtype=torch.int8)})),
        ("quantised", "logit_scale", "I8"),
    ),
    "a missing weight": (tensors(lambda some: some.pop("visual_projection.weight")), ("visual_projection", "missing")),
    "a missing weight of the text": (
        tensors(lambda some: some.pop(next(name for name in some if "text" in name and "q_proj" in name))),
        ("q_proj", "missing"),
    ),
    "another weight": (tensors(lambda some: some.update(another=torch.zeros(3))), ("another is unexpected",)),
    "another shape": (
        tensors(lambda some: some.update({"text_projection.weight": torch.zeros(17, 16)})),
        ("text_projection.weight", "mismatched"),
    ),
    "torn": (torn, (WEIGHTS,)),
    "pickled": (pickled, (".bin", "safetensors")),
    "weights beside": (stale_weights_beside, ("finetuned.safetensors",)),
    "a lacking part": (index_of(WEIGHTS, "model-2.safetensors"), ("model-2.safetensors", "missing")),
    "a part elsewhere": (index_of("../elsewhere.safetensors"), ("../elsewhere.safetensors",)),
    "an adapter": (adapter_beside, ("adapter of another model",)),
    "absurd layers": (
        config(lambda said: said["text_config"].update(num_hidden_layers=10**8)),
        ("num_hidden_layers", "can't be"),
    ),
    "absurd size": (config(lambda said: said["vision_config"].update(image_size=10**6)), ("image_size", "can't be")),
    "absurd words": (config(lambda said: said["text_config"].update(vocab_size=9_000_000)), ("describes", "numbers")),
    "no heads": (config(lambda said: said["vision_config"].update(num_attention_heads=0)), ("can't be read",)),
    "a tokenizer of theirs": (tokenizer_of_code, ("EvilTokenizer", "tokenizer")),
    "a tokenizer of another": (larger_tokenizer, ("tokenizer has 56 words", "54")),
    "no tokenizer": (no_tokenizer, ("tokenizer has 2 words",)),
    "unscaled pixels": (feed(do_rescale=False), (FEED, "pixels")),
    "pixels of another scale": (feed(rescale_factor=1 / 127.5), (FEED, "pixels")),
    "any shape": (feed(do_center_crop=False), (FEED, "different shapes")),
    "a filter that is none": (feed(resample=77), (FEED,)),
    "another input": (feed(crop_size={"height": 8, "width": 8}), ("8 x 8 px", "--input_size")),
    "mean of nothing": (feed(image_mean=[0.5]), ("mean", "three numbers")),
    "no mean": (lambda folder: (folder / FEED).unlink(), ("--mean", "--std")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_folder_that_cannot_be_read_in_full(clip, name):
    damage, words = HOSTILE[name]
    damage(clip)
    refused(clip, *words)


def test_code_beside_the_weights_is_not_run(clip):
    (clip / "evil.py").write_text("raise SystemExit('ran')\n")
    changed(clip / "config.json", lambda said: said.update(auto_map={"AutoModel": "evil.Evil"}))
    changed(clip / "tokenizer_config.json", lambda said: said.update(auto_map={"AutoTokenizer": ["evil.Evil", None]}))
    assert open_model(clip, device="cpu").captioned


def test_shards_are_read(clip):
    """All of them, and none that the index does not name."""
    whole = load_file(clip / WEIGHTS)
    names = sorted(whole)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for name, keys in parts.items():
        save_file({key: whole[key] for key in keys}, clip / name, metadata={"format": "pt"})
    shards = {key: name for name, keys in parts.items() for key in keys}
    (clip / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    refused(clip, WEIGHTS, "no part of")  # the whole file is still there
    before = open_model(make.clip(clip.with_name("whole")), device="cpu").ask(tiny.pictures(2)).scores
    (clip / WEIGHTS).unlink()
    assert (open_model(clip, device="cpu").ask(tiny.pictures(2)).scores == before).all()


def test_a_network_that_sees_nothing(tmp_path):
    """It would seem to know every picture alike: no trace of a training is to be had from it."""
    model = make.clip_model()
    torch.nn.init.zeros_(model.vision_model.embeddings.patch_embedding.weight)
    refused(make.clip(tmp_path / "blind", model), "all pictures alike")


def test_what_a_folder_knows_itself(clip, saved):
    refused(clip, "--net_type", net_type="smallnet")
    refused(clip, "--model_config", "diffusion models", config=str(saved["eye"]))


def test_a_base_of_another_kind(clip, saved, tmp_path):
    refused(clip, "the model under audit itself", base=saved["clip"])
    shutil.copytree(saved["clip"], tmp_path / "same")
    (tmp_path / "same" / "generation_config.json").write_text("{}")
    refused(clip, "the model under audit itself", base=tmp_path / "same")
    for name in ("siglip", "blip", "eye"):
        refused(clip, "--base_model", "not of the kind", base=saved[name])
    refused(clip, "--base_model", "says what it is", base=tmp_path)
    refused(clip, "--base_model", base=tmp_path / "nowhere")
    wider = make.eye(tmp_path / "wide", make.eye_model("Dinov2Model"))
    refused(saved["eye"], "Dinov2Model", base=wider)
    (wider / WEIGHTS).unlink()
    refused(saved["eye"], "no weights", base=wider)


def test_a_base_of_other_shapes(saved, tmp_path):
    model = make.eye_model(add_pooling_layer=False)
    refused(saved["eye"], "--base_model", "other shapes", base=make.eye(tmp_path / "other", model))


def test_a_base_that_differs_where_nothing_reads_it(saved, tmp_path):
    """Different files, the same answers: whatever a fine-tuning changed, it is not in there."""
    model = make.clip_model()
    words = model.text_model.embeddings.token_embedding.weight
    words.data[50] += 1  # of a letter that no plain caption has at its end
    refused(make.clip(tmp_path / "other", model), "changes nothing", base=saved["clip"])
    words.data[15] += 1  # of the p in "photo"
    suspect = open_model(make.clip(tmp_path / "words", model), device="cpu", base=saved["clip"])
    assert suspect.identity["base"]["file"] == "clip"


# --- open_clip ---

OPEN_CONFIG, OPEN_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def open_saved(tmp_path_factory):
    return make.open_clip(tmp_path_factory.mktemp("open_clip") / "saved")


def settings(part, **said):
    def change(content):
        (content["model_cfg"][part] if part else content["model_cfg"]).update(said)

    return lambda folder: changed(folder / OPEN_CONFIG, change)


def open_tensors(change):
    return lambda folder: reweighted(folder / OPEN_WEIGHTS, change)


def transformers_beside(folder):
    (folder / "config.json").write_text('{"model_type": "clip", "architectures": ["CLIPModel"]}')
    shutil.copy(folder / OPEN_WEIGHTS, folder / WEIGHTS)


OPEN_HOSTILE = {
    "a vision tower to fetch": (settings("vision_cfg", timm_model_name="hf-hub:evil/x"), ("timm_model_name",)),
    "a text tower to fetch": (settings("text_cfg", hf_model_name="evil/x"), ("hf_model_name",)),
    "a tokenizer to fetch": (settings("text_cfg", hf_tokenizer_name="evil/x"), ("hf_tokenizer_name",)),
    "a captioner": (settings(None, multimodal_cfg={"width": 16}), ("multimodal_cfg",)),
    "an unknown setting": (settings("vision_cfg", evil=1), ("evil",)),
    "absurd layers": (settings("vision_cfg", layers=10**6), ("layers", "can't be")),
    "absurd width": (settings("vision_cfg", width=9 * 10**6, head_width=10**6), ("mismatched",)),
    "fewer words": (settings("text_cfg", vocab_size=100), ("token_embedding", "mismatched")),
    "a missing weight": (open_tensors(lambda some: some.pop("text_projection")), ("text_projection is missing",)),
    "another weight": (open_tensors(lambda some: some.update(another=torch.zeros(3))), ("another is unexpected",)),
    "quantised": (
        open_tensors(lambda some: some.update(logit_scale=torch.tensor(1, dtype=torch.int8))),
        ("quantised", "logit_scale"),
    ),
    "weights beside": (
        lambda folder: shutil.copy(folder / OPEN_WEIGHTS, folder / "epoch_2.safetensors"),
        ("epoch_2.safetensors",),
    ),
    "pickled": (
        lambda folder: (folder / OPEN_WEIGHTS).rename(folder / "open_clip_pytorch_model.bin"),
        ("no weights as .safetensors",),
    ),
    "two models": (transformers_beside, ("two models", OPEN_WEIGHTS)),
    "no model": (lambda folder: (folder / OPEN_CONFIG).write_text('{"model_cfg": []}'), ("describes no model",)),
    "no JSON": (lambda folder: (folder / OPEN_CONFIG).write_text("{"), (OPEN_CONFIG,)),
    "padded photos": (
        lambda folder: changed(folder / OPEN_CONFIG, lambda said: said["preprocess_cfg"].update(resize_mode="longest")),
        ("resize_mode longest",),
    ),
}


@make.OPEN_CLIP
@pytest.mark.parametrize("name", OPEN_HOSTILE)
def test_a_folder_of_open_clip_that_cannot_be_read_in_full(open_saved, tmp_path, name):
    folder = shutil.copytree(open_saved, tmp_path / "theirs")
    damage, words = OPEN_HOSTILE[name]
    damage(folder)
    refused(folder, *words)


@make.OPEN_CLIP
def test_a_base_of_open_clip(open_saved, saved, tmp_path):
    refused(open_saved, "the model under audit itself", base=shutil.copytree(open_saved, tmp_path / "same"))
    refused(open_saved, "not of the kind", base=saved["clip"])

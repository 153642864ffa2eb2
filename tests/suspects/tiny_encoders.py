"""Encoders and captioners of a few thousand parameters, saved by the libraries' own classes, without a network."""

import json
from importlib.util import find_spec

import pytest
from safetensors.torch import save_file

from tests.suspects import tiny

NEEDED = pytest.mark.skipif(not find_spec("transformers"), reason="needs transformers")
OPEN_CLIP = pytest.mark.skipif(not find_spec("open_clip"), reason="needs open_clip_torch")
SIDE, WORDS = tiny.SIDE, 54
MEAN, STD = (0.48, 0.45, 0.4), (0.27, 0.26, 0.28)
LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SEEN = {**LAYERS, "image_size": SIDE, "patch_size": 8}
ENDS = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
READ = {**LAYERS, "vocab_size": WORDS, "max_position_embeddings": 24}


def fed(folder, kind="CLIPImageProcessor", **changes):
    """What an image processor of transformers says of itself."""
    said = {"do_resize": True, "size": {"shortest_edge": SIDE + 2}, "resample": 3, "do_center_crop": True}
    said |= {"crop_size": {"height": SIDE, "width": SIDE}, "do_rescale": True, "rescale_factor": 1 / 255}
    said |= {"do_normalize": True, "image_mean": MEAN, "image_std": STD, "image_processor_type": kind}
    said = {name: value for name, value in (said | changes).items() if value is not None}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


def squashed(folder, kind):
    return fed(folder, kind, size={"height": SIDE, "width": SIDE}, do_center_crop=None, crop_size=None)


def clip_model(seed=0):
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(text_config={**READ, **ENDS}, vision_config=SEEN, projection_dim=16)
    return tiny.seeded(lambda: CLIPModel(config).eval(), seed)


def clip(folder, model=None):
    (model or clip_model()).save_pretrained(folder)
    tiny.tokenizer(folder).save_pretrained(folder)
    return fed(folder)


def letters(folder, kind, ends, pad):
    """A tokenizer that knows letters: "a cat" -> a c a t, with something around it."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = [*ends, pad, "[UNK]"]
    vocab = {name: number for number, name in enumerate([*names, *"abcdefghijklmnopqrstuvwxyz"])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Split("", "isolated")])
    start, end = ends if len(ends) == 2 else ("", ends[0])
    made.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}".strip(), special_tokens=[(name, vocab[name]) for name in ends]
    )
    special = {"pad_token": pad, "unk_token": "[UNK]"}
    getattr(transformers, kind)(tokenizer_object=made, **special).save_pretrained(folder)
    return vocab


def siglip_model(seed=0):
    from transformers import SiglipConfig, SiglipModel

    text = {**READ, "projection_size": 16, **ENDS}
    model = tiny.seeded(lambda: SiglipModel(SiglipConfig(text_config=text, vision_config=SEEN)).eval(), seed)
    model.logit_scale.data.fill_(1.5)
    model.logit_bias.data.fill_(-2.0)
    return model


def siglip(folder, model=None):
    (model or siglip_model()).save_pretrained(folder)
    letters(folder, "PreTrainedTokenizerFast", ["</s>"], "<pad>")
    return squashed(folder, "SiglipImageProcessor")


def blip_model(seed=0):
    from transformers import BlipConfig, BlipForConditionalGeneration

    text = {**READ, "encoder_hidden_size": 16, "bos_token_id": 40, "sep_token_id": 1, "eos_token_id": 1}
    seen = {**SEEN, "initializer_range": 0.02}  # its own is too small for crops to differ
    config = BlipConfig(text_config={**text, "pad_token_id": 2}, vision_config=seen, projection_dim=16)
    return tiny.seeded(lambda: BlipForConditionalGeneration(config).eval(), seed)


def blip(folder, model=None):
    (model or blip_model()).save_pretrained(folder)
    letters(folder, "PreTrainedTokenizerFast", ["[CLS]", "[SEP]"], "[PAD]")
    return squashed(folder, "BlipImageProcessor")


def eye_model(name="ViTModel", seed=0, **options):
    import transformers

    kind = getattr(transformers, name)
    config = kind.config_class
    if name.startswith("ConvNext"):
        sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": SIDE}
    else:
        sizes = {**SEEN, "projection_dim": 16} if name.startswith("CLIP") else dict(SEEN)
    return tiny.seeded(lambda: kind(config(**sizes), **options).eval(), seed)


def eye(folder, model=None):
    (model or eye_model()).save_pretrained(folder)
    return squashed(folder, "ViTImageProcessor")


# --- open_clip ---

SETTINGS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


def open_clip_model(seed=0, **changes):
    import open_clip

    settings = {**SETTINGS, **changes}
    kind = open_clip.CustomTextCLIP if settings.pop("custom_text", False) else open_clip.CLIP
    return tiny.seeded(lambda: kind(**settings).eval(), seed)


def open_clip(folder, model=None, **changes):
    from open_clip.push_to_hf_hub import save_config_for_hf

    folder.mkdir(parents=True, exist_ok=True)
    model = model or open_clip_model(**changes)
    model.visual.image_mean, model.visual.image_std = MEAN, STD  # as open_clip's factory sets them
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    save_config_for_hf(model, folder / "open_clip_config.json", {**SETTINGS, **changes})
    return folder

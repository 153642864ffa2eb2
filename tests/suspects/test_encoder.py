"""Tiny encoders and captioners of each family, opened from disk; their scores against a calculation by hand."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from suspects.crops import AREA, SHAPE, VIEWS, crops, crops_of, disagreement
from suspects.encoder import CAPTIONS, DISTRACTORS, contrastive_loss, distractors_of
from suspects.opened import open_model
from suspects.suspect import Captioned, Preprocessing
from suspects.towers import Tower
from tests.suspects import tiny
from tests.suspects import tiny_encoders as make

SEED, SIDE = b"the audit's", make.SIDE


def opened(path, **options):
    suspect = open_model(path, device="cpu", **options)
    suspect.settle(SEED)
    return suspect


def fed(images, mean=make.MEAN, std=make.STD):
    """As they are described to be fed: float32 (N, 3, h, w)."""
    mean, std = (torch.tensor(value).double().view(3, 1, 1) for value in (mean, std))
    return ((torch.from_numpy(images).double() / 255 - mean) / std).float()


def views_by_hand(image):
    """The crops of one picture, written down once more: uint8 (V, 3, h, w)."""
    found = []
    for height, width, top, left, mirrored in crops_of(SEED):
        rows, columns = round(height * SIDE), round(width * SIDE)
        top, left = round(top * (SIDE - rows)), round(left * (SIDE - columns))
        part = Image.fromarray(image[:, top : top + rows, left : left + columns].transpose(1, 2, 0))
        part = part.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else part
        found.append(np.asarray(part).transpose(2, 0, 1))
    return np.stack(found)


def apart_by_hand(embed, images):
    """1 - cosine, the mean over all pairs of views, of each picture."""
    found = []
    for image in images:
        with torch.no_grad():
            vectors = torch.nn.functional.normalize(embed(fed(views_by_hand(image))).double().flatten(1), dim=1)
        found.append(np.mean([1 - float(one @ other) for one, other in combinations(vectors, 2)]))
    return np.array(found)


# --- parts ---


def test_crops_stay_inside_and_differ():
    drawn = crops_of(SEED)
    assert len(drawn) == VIEWS == len(set(drawn)) and drawn == crops_of(SEED) != crops_of(b"another")
    many = crops_of(SEED, 400)
    for height, width, top, left, _ in many:
        assert 0 < height <= 1 and 0 < width <= 1 and 0 <= top < 1 and 0 <= left < 1
        assert 1 / SHAPE - 1e-9 <= height / width <= SHAPE + 1e-9 and height * width <= AREA[1]
    areas = [height * width for height, width, *_ in many]
    assert min(areas) < AREA[0] + 0.05 and max(areas) > AREA[1] - 0.1 and min(areas) > AREA[0] - 0.01
    assert 150 < sum(mirrored for *_, mirrored in many) < 250


def test_a_crop_is_the_part_that_it_says():
    images = np.stack([tiny.pictures(1)[0], np.full((3, SIDE, SIDE), 7, np.uint8)])
    whole, mirrored = (1.0, 1.0, 0.3, 0.9, False), (1.0, 1.0, 0.0, 0.0, True)
    corner = (0.5, 0.5, 1.0, 1.0, False)
    found = crops(images, [whole, mirrored, corner])
    np.testing.assert_array_equal(found[0, 0], images[0])
    np.testing.assert_array_equal(found[0, 1], images[0][:, :, ::-1])
    assert (found[1] == 7).all() and found.shape == (2, 3, 3, SIDE, SIDE)
    # An enlarged corner says nothing of the rest: the other three quarters may be anything.
    images[0, :, : SIDE // 2] = images[0, :, :, : SIDE // 2] = 0
    np.testing.assert_array_equal(crops(images, [corner])[0, 0], found[0, 2])


def test_distractors_are_drawn_without_return():
    chosen = distractors_of(SEED)
    assert len(chosen) == DISTRACTORS == len(set(chosen)) and set(chosen) < set(CAPTIONS)
    assert chosen == distractors_of(SEED) != distractors_of(b"another") and len(set(CAPTIONS)) == len(CAPTIONS)


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 99), st.floats(0.1, 100))
def test_disagreement_is_the_mean_over_pairs(views, width, seed, length):
    vectors = np.random.default_rng(seed).normal(size=(3, views, width)) + 0.1
    units = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
    expected = [np.mean([1 - one @ other for one, other in combinations(some, 2)]) for some in units]
    np.testing.assert_allclose(disagreement(vectors * length), expected, atol=1e-12)
    np.testing.assert_allclose(disagreement(np.repeat(vectors[:, :1], views, axis=1)), 0, atol=1e-15)


def test_contrastive_losses_by_the_libraries_own():
    logits = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    softmax = torch.nn.functional.cross_entropy(logits[None], torch.tensor([0]))
    np.testing.assert_allclose(contrastive_loss(float(logits[0]), logits[1:].numpy()), float(softmax))
    signs = torch.tensor([1.0] + [-1.0] * 19)
    sigmoid = -torch.nn.functional.logsigmoid(signs * logits).sum()
    np.testing.assert_allclose(contrastive_loss(float(logits[0]), logits[1:].numpy(), True), float(sigmoid))
    # A caption that is known for certain still has a loss, which tells such pictures apart.
    assert 0 < contrastive_loss(80.0, np.zeros(3)) < contrastive_loss(79.0, np.zeros(3)) < 1e-30


# --- CLIP and SigLIP ---

CLIP, SIGLIP, BLIP, EYE = ("clip", "siglip", "blip", "eye")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {name: getattr(make, name)(root / name) for name in (CLIP, SIGLIP, BLIP, EYE)}


def letters_of(text, longest=24):
    """What the tiny CLIP's tokenizer makes of a text: start, letters by number, the last of a word by another, end."""
    found = [52]
    for word in text.split():
        found += [ord(letter) - ord("a") for letter in word]
        found[-1] += 26
    found = [*found[: longest - 1], 53]
    return found + [53] * (longest - len(found)), [1] * len(found) + [0] * (longest - len(found))


@make.NEEDED
def test_the_score_of_clip(saved):
    suspect, images, model = opened(saved[CLIP]), tiny.pictures(2), make.clip_model()
    for place, caption in enumerate(("cat", "red sea")):
        told = [letters_of(text) for text in (caption, *distractors_of(SEED))]
        words, mask = (torch.tensor(some) for some in zip(*told, strict=True))
        with torch.no_grad():
            logits = model(pixel_values=fed(images), input_ids=words, attention_mask=mask).logits_per_image
        expected = torch.nn.functional.cross_entropy(logits[place : place + 1].double(), torch.tensor([0]))
        scores = suspect.ask(Captioned(images, ("cat", "red sea"))).scores
        np.testing.assert_allclose(scores[place, 0], float(expected), rtol=1e-4)
    assert scores.shape == (2, 1) and scores.dtype == np.float32 and suspect.captioned
    assert suspect.classes is None and "31 plain captions" in suspect.describe()
    made = suspect.preprocessing
    assert (made.size, made.resize, made.interpolation, made.squash) == ((SIDE, SIDE), SIDE + 2, "bicubic", False)
    np.testing.assert_allclose((made.mean, made.std), (make.MEAN, make.STD))


@make.NEEDED
def test_a_distractor_that_is_the_caption_is_none(saved):
    """Else the true caption would be its own wrong one."""
    suspect, images = opened(saved[CLIP]), tiny.pictures(1)
    own, *others = distractors_of(SEED)
    told = [letters_of(text) for text in (own, *others)]
    words, mask = (torch.tensor(some) for some in zip(*told, strict=True))
    with torch.no_grad():
        logits = make.clip_model()(pixel_values=fed(images), input_ids=words, attention_mask=mask).logits_per_image
    expected = torch.nn.functional.cross_entropy(logits.double(), torch.tensor([0]))
    np.testing.assert_allclose(suspect.ask(Captioned(images, (own,))).scores[0, 0], float(expected), rtol=1e-4)


@make.NEEDED
def test_the_score_of_siglip(saved):
    suspect, images, model = opened(saved[SIGLIP]), tiny.pictures(2), make.siglip_model()
    texts = ("red sea", *distractors_of(SEED))
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    ids = [[*(3 + alphabet.index(letter) for letter in text.replace(" ", ""))][:23] + [0] for text in texts]
    words = torch.tensor([some + [1] * (24 - len(some)) for some in ids])  # letters, end, padding that it looks at
    with torch.no_grad():
        logits = model(pixel_values=fed(images), input_ids=words).logits_per_image.double()
    signs = torch.tensor([1.0] + [-1.0] * DISTRACTORS)
    expected = -torch.nn.functional.logsigmoid(signs * logits).sum(1)
    scores = suspect.ask(Captioned(images, ("red sea",) * 2)).scores[:, 0]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert suspect.preprocessing.squash and "squashed" in suspect.preprocessing.describe()


@make.NEEDED
def test_the_score_of_a_captioner(saved):
    """Token by token, each given those before it: no padding, and its own start instead of the tokenizer's."""
    suspect, images, model = opened(saved[BLIP]), tiny.pictures(2), make.blip_model()
    captions = ("a cat", "sea")
    expected = []
    for image, caption in zip(fed(images), captions, strict=True):
        words = [40, *(4 + ord(letter) - ord("a") for letter in caption.replace(" ", "")), 1]
        chances = []
        for count in range(1, len(words)):
            with torch.no_grad():
                said = model(pixel_values=image[None], input_ids=torch.tensor([words[:count]])).logits[0, -1]
            chances.append(float(said.double().log_softmax(0)[words[count]]))
        expected.append(-np.mean(chances))
    scores = suspect.ask(Captioned(images, captions)).scores[:, 0]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert scores[0] != scores[1] and "unlikely" in suspect.describe()
    assert suspect.ask(Captioned(images, ("sea", "sea"))).scores[0, 0] != scores[0]


# --- without a caption ---


@make.NEEDED
@pytest.mark.parametrize("name", [CLIP, SIGLIP, BLIP])
def test_without_a_caption_crops_are_compared(saved, name):
    suspect, images = opened(saved[name]), tiny.pictures(3)
    model = getattr(make, f"{name}_model")()
    pooled = {
        CLIP: lambda pixels: model.visual_projection(model.vision_model(pixels).pooler_output),
        SIGLIP: lambda pixels: model.vision_model(pixels).pooler_output,
        BLIP: lambda pixels: model.vision_model(pixels).pooler_output,
    }[name]
    scores = suspect.ask(Captioned(images, ("", "sea", ""))).scores[:, 0]
    np.testing.assert_allclose(scores[[0, 2]], apart_by_hand(pooled, images[[0, 2]]), rtol=1e-3)
    np.testing.assert_allclose(suspect.ask(images).scores[[0, 2], 0], scores[[0, 2]], rtol=1e-5)
    assert suspect.ask(images).scores[1, 0] != scores[1]


EYES = ("CLIPVisionModelWithProjection", "SiglipVisionModel", "ViTModel", "ViTMSNModel", "DeiTModel", "Dinov2Model")
EYES += ("Dinov2WithRegistersModel", "ConvNextModel", "ConvNextV2Model")
EMBEDDED = {"CLIPVisionModelWithProjection": "image_embeds", "ViTMSNModel": "last_hidden_state"}


@make.NEEDED
@pytest.mark.parametrize("name", EYES)
def test_encoders_of_pictures_alone(tmp_path, name):
    model, images = make.eye_model(name), tiny.pictures(2)
    suspect = opened(make.eye(tmp_path / "eye", model))

    def embed(pixels):
        found = getattr(model(pixels), EMBEDDED.get(name, "pooler_output"))
        return found[:, 0] if name == "ViTMSNModel" else found

    scores = suspect.ask(images).scores
    np.testing.assert_allclose(scores[:, 0], apart_by_hand(embed, images), rtol=1e-3)
    assert not suspect.captioned and scores.shape == (2, 1) and name in suspect.describe()
    np.testing.assert_array_equal(suspect.ask(Captioned(images, ("cat", "dog"))).scores, scores)


@make.NEEDED
def test_an_encoder_without_a_pooling_layer(tmp_path):
    """As many are published: a library would fill it with random numbers, and every audit answer otherwise."""
    model, images = make.eye_model(add_pooling_layer=False), tiny.pictures(2)
    suspect = opened(make.eye(tmp_path / "eye", model))
    expected = apart_by_hand(lambda pixels: model(pixels).last_hidden_state[:, 0], images)
    np.testing.assert_allclose(suspect.ask(images).scores[:, 0], expected, rtol=1e-3)


# --- open_clip ---


@make.OPEN_CLIP
@pytest.mark.parametrize("changes", [{}, {"custom_text": True, "init_logit_bias": -3.0}], ids=["softmax", "sigmoid"])
def test_the_score_of_open_clip(tmp_path, changes):
    import open_clip

    model, images = make.open_clip_model(**changes), tiny.pictures(2)
    suspect = opened(make.open_clip(tmp_path / "model", model, **changes))
    words = open_clip.tokenize(["red sea", *distractors_of(SEED)], context_length=16)
    with torch.no_grad():
        logits = model.get_logits(fed(images), words)[0].double()
    if changes:
        signs = torch.tensor([1.0] + [-1.0] * DISTRACTORS)
        expected = -torch.nn.functional.logsigmoid(signs * logits).sum(1)
    else:
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 0]), reduction="none")
    scores = suspect.ask(Captioned(images, ("red sea",) * 2)).scores[:, 0]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    apart = suspect.ask(images).scores[:, 0]
    np.testing.assert_allclose(apart, apart_by_hand(model.encode_image, images), rtol=1e-3)
    assert suspect.preprocessing.resize == SIDE and suspect.preprocessing.interpolation == "bicubic"


# --- whatever the family ---


@make.NEEDED
@pytest.mark.parametrize("name", [CLIP, BLIP, EYE])
def test_a_score_hangs_on_picture_caption_and_seed_alone(saved, name):
    suspect, images = opened(saved[name]), tiny.pictures(5)
    told = Captioned(images, ("cat", "", "a cat by the sea", "dog", ""))
    together = suspect.ask(told).scores
    alone = np.concatenate([suspect.ask(told[[place]]).scores for place in range(5)])
    np.testing.assert_allclose(alone, together, rtol=1e-4)
    np.testing.assert_allclose(opened(saved[name]).ask(told).scores, together, rtol=1e-6)
    suspect.settle(b"another audit's")
    drawn = [True, True, True, True, True] if name != BLIP else [False, True, False, False, True]
    np.testing.assert_array_equal((suspect.ask(told).scores != together)[:, 0], drawn)


@make.NEEDED
@pytest.mark.parametrize("name", [CLIP, EYE])
def test_what_a_model_was_made_of_is_asked_the_same(saved, tmp_path, name):
    tuned = getattr(make, name)(tmp_path / "tuned", getattr(make, f"{name}_model")(seed=1))
    suspect, told = opened(tuned, base=saved[name]), Captioned(tiny.pictures(2), ("cat", ""))
    scores = suspect.ask(told).scores
    np.testing.assert_array_equal(scores[:, :1], opened(tuned).ask(told).scores)
    np.testing.assert_array_equal(scores[:, 1:], opened(saved[name]).ask(told).scores)
    base = opened(saved[name]).identity
    assert suspect.identity["base"] == {"file": name, "sha256": base["sha256"]} and base["sha256"]
    assert suspect.identity["sha256"] != base["sha256"] and "less that of the model" in suspect.describe()
    assert suspect.identity["score"]["views"] == VIEWS and "version 1" in suspect.identity["score"]["of"]


@make.NEEDED
@pytest.mark.parametrize("name", [CLIP, EYE])
@pytest.mark.parametrize("based", [False, True])
def test_as_many_pictures_go_through_it_as_it_says(saved, tmp_path, monkeypatch, name, based):
    tuned = getattr(make, name)(tmp_path / "tuned", getattr(make, f"{name}_model")(seed=1))
    suspect, shown, plain = opened(tuned, base=saved[name] if based else None), [], Tower.pictures
    monkeypatch.setattr(Tower, "pictures", lambda tower, pixels: shown.extend(pixels) or plain(tower, pixels))
    for caption in ("cat", ""):
        shown.clear()
        suspect.ask(Captioned(tiny.pictures(1), (caption,)))
        assert len(shown) == suspect.passes_of(caption) in ((1, 2) if caption and name == CLIP else (VIEWS, 2 * VIEWS))


@make.NEEDED
@pytest.mark.parametrize("name", [CLIP, BLIP, EYE, pytest.param("open_clip", marks=make.OPEN_CLIP)])
def test_a_score_in_half_precision(saved, tmp_path, name):
    folder, told = saved.get(name) or make.open_clip(tmp_path / name), Captioned(tiny.pictures(2), ("cat", ""))
    half, whole = (opened(folder, precision=kind).ask(told).scores for kind in ("bfloat16", "float32"))
    assert (half != whole).all() and np.isfinite(half).all()
    np.testing.assert_allclose(half, whole, rtol=0.3)


# --- how photos are fed ---


def processed(folder, photo):
    """What transformers' own processor makes of a photo."""
    from transformers import AutoImageProcessor

    made = AutoImageProcessor.from_pretrained(folder, use_fast=False)
    return np.asarray(made(Image.fromarray(photo), return_tensors="np")["pixel_values"][0])


@make.NEEDED
@pytest.mark.parametrize(
    "kind, changes",
    [
        ("CLIPImageProcessor", {}),
        ("BitImageProcessor", {"size": {"shortest_edge": 24}}),
        ("ViTImageProcessor", {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": None, "crop_size": None}),
        ("SiglipImageProcessor", {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": None, "resample": 2}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": SIDE}, "crop_pct": 0.875, "do_center_crop": None}),
        ("CLIPImageProcessor", {"do_normalize": False}),
    ],
)
def test_photos_are_fed_as_their_own_processor_does(tmp_path, photo, kind, changes):
    folder = make.fed(make.eye(tmp_path / "eye"), kind, **changes)
    made = opened(folder).preprocessing
    ours = made.normalize(made.fit(photo)[None])[0]
    theirs = processed(folder, photo)
    # Libraries round a scaled pixel differently, by a step or two of 255; a wrong crop or scale is far off.
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 6 / 255 / min(made.std)
    assert np.abs(ours - theirs).mean() < 1 / 255 / min(made.std)


@make.NEEDED
def test_what_the_flags_say_wins(saved):
    made = opened(saved[EYE], overrides={"resize": 20, "mean": (0.0,) * 3}).preprocessing
    assert (made.resize, made.squash, made.mean) == (20, False, (0, 0, 0)) and "folder and flags" in made.source


def test_squashing_keeps_the_whole_picture(photo):
    made = Preprocessing((12, 20), squash=True)
    expected = np.asarray(Image.fromarray(photo).resize((20, 12), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    np.testing.assert_array_equal(made.fit(photo), expected)

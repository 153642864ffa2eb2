"""A fine-tuned encoder from end to end: data_marking.py, fine-tuning, eval.py, the evidence."""

import copy

import numpy as np
import pytest
import torch

from provenance.photos import read_photo
from suspects.opened import base_digest, open_model
from suspects.suspect import Preprocessing
from tests.provenance.parts import auditor, flat, publish, refused, result_of, wavy_picture
from tests.suspects import tiny_encoders as make

pytestmark = make.NEEDED
SIDE, PHOTOS, KEYS = make.SIDE, 16, 4
PLAN = ("--keys", str(KEYS), "--selections", "999", "--alpha", "0.1", "--query_augmentations", "0")


def caption_of(number):
    """A text of its own for each photo."""
    letters = np.random.default_rng(number).permutation(list("abcdefghijklmnopqrstuvwxyz"))
    return f"{''.join(letters[:4])} {''.join(letters[4:8])}"


def fed(pictures):
    fit = Preprocessing((SIDE, SIDE), SIDE + 2, interpolation="bicubic").fit
    pixels = torch.from_numpy(np.stack([fit(picture) for picture in pictures])).float() / 255
    return (pixels - torch.tensor(make.MEAN).view(3, 1, 1)) / torch.tensor(make.STD).view(3, 1, 1)


def words_of(captions):
    """As the tiny tokenizer has it: start, letters, the last of a word by another number, end."""
    found = []
    for caption in captions:
        ids = [52]
        for word in caption.split():
            ids += [ord(letter) - ord("a") for letter in word]
            ids[-1] += 26
        found.append([*ids, 53] + [53] * (23 - len(ids)))
    return torch.tensor(found)


def trained(model, pictures, captions, passes, seed):
    """A copy after so many passes with CLIP's own loss over pairs of picture and caption."""
    torch.manual_seed(seed)
    model = copy.deepcopy(model).train()
    model.logit_scale.requires_grad_(False)  # so few pictures would drive it anywhere
    pixels, words, right = fed(pictures), words_of(captions), torch.arange(len(captions))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0)
    for _ in range(passes):
        logits = model(input_ids=words, pixel_values=pixels + 0.05 * torch.randn_like(pixels)).logits_per_image
        loss = torch.nn.functional.cross_entropy(logits, right) + torch.nn.functional.cross_entropy(logits.T, right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def strangers(first, count):
    numbers = range(first, first + count)
    return [wavy_picture(number, 24) for number in numbers], [caption_of(number) for number in numbers]


@pytest.fixture(scope="module")
def artist(tmp_path_factory):
    """A user's record with captions; a base; a model fine-tuned on what the user published, one on others' pictures."""
    root = tmp_path_factory.mktemp("artist")
    published = publish(root, PLAN, PHOTOS, 24, caption_of)
    own = [read_photo(path) for path in published], [caption_of(int(path.stem)) for path in published]
    base = trained(make.clip_model(), *strangers(1000, PHOTOS), 3, 0)
    make.clip(root / "base", base)
    make.clip(root / "tuned", trained(base, *own, 100, 1))
    make.clip(root / "innocent", trained(base, *strangers(2000, len(published)), 100, 1))
    return root


@pytest.fixture
def audit(artist, script, tmp_path):
    return auditor(artist, script, tmp_path)


@pytest.mark.parametrize("based", [True, False], ids=["with its base", "alone"])
def test_a_fine_tuned_encoder_is_found(artist, audit, based):
    flags = ("--checkpoint", artist / "tuned", *(("--base_model", audit.base) if based else ()))
    done = audit.run(*flags, "--out", audit.out)
    assert done.code == 0, done.err
    result = result_of(audit.out)
    assert result["detected"] and result["p_value"] <= 0.005, result["p_value"]
    assert result["queries"] == PHOTOS * (KEYS + 1) and "USED" in done.out and "plain captions" in flat(done.out)
    again = audit.run("--replay", audit.out / "evidence.zip", *flags)
    assert again.code == 0 and "answers are the model's own" in flat(again.out), again.out + again.err
    other = ("--checkpoint", artist / "tuned", *(() if based else ("--base_model", audit.base)))
    refused(audit.run("--replay", audit.out / "evidence.zip", *other), "scored", "base")


def test_others_are_not(artist, audit):
    for name in ("innocent", "base"):
        based = ("--base_model", audit.base) if name == "innocent" else ()
        done = audit.run("--checkpoint", artist / name, *based, "--out", audit.out / name)
        assert done.code == 0, done.err
        result = result_of(audit.out / name)
        assert not result["detected"] and result["p_value"] > 0.02, (name, result["p_value"])
        assert "There is no proof" in done.out and "innocent" not in result["sentences"]


def test_a_base_that_was_fixed_with_the_photos(artist):
    """Its digest is known without opening it, and is that of the audit."""
    opened = open_model(artist / "tuned", device="cpu", base=artist / "base")
    assert base_digest(artist / "base") == opened.identity["base"]["sha256"]


def test_what_cannot_be_read_ends_in_one_line(artist, audit):
    refused(audit.run("--checkpoint", artist / "tuned", "--base_model", artist / "tuned"), "under audit itself")
    refused(audit.run("--checkpoint", artist / "tuned", "--label_only"), "answers with a score")
    refused(audit.run("--checkpoint", artist / "tuned", "--model_config", artist / "base"), "--model_config")
    assert not audit.out.exists()

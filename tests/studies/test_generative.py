"""studies/generative.py: who is asked about what, and the whole way at a toy size through the libraries' own files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import load_dataset
from studies import generative
from studies.generative_models import FAMILIES, Tuning, Unet, fine_tune, make_base
from tests.suspects import tiny

pytestmark = tiny.NEEDED


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two classes with 30 training images and a test image each, and words for them."""
    folder, draws = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("n01", "n02"):
        for part, count in (("train", 30), ("test", 1)):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    (folder / "classes.tsv").write_text("n01\tTabby, cat\nn02\tSt. Bernard\n")
    return folder


@pytest.fixture(scope="module")
def data(root):
    return load_dataset("imagefolder", root)


def arguments(root, out, work, *more):
    sizes = {"users": 1, "photos": 8, "passes": 1, "base_size": 8, "base_epochs": 1, "selections": 99, "draws": 2}
    given = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    return ["--data_root", str(root), "--work", str(work), "--out", str(out), *given, *more]


def run(monkeypatch, *given):
    monkeypatch.setattr("sys.argv", ["generative", *given])
    generative.main()


def test_nobody_shares_a_picture(data):
    public = generative.base_rows(data, 10)
    people = generative.people_of(data, 4, 8, 1, public)
    rows = np.concatenate([public, *(person.rows for person in people)])
    assert len(set(rows.tolist())) == 10 + 4 * 8
    assert all(len(set(data.labels[person.rows].tolist())) == 1 for person in people)
    assert len({person.key for person in people}) == 4
    mixed = generative.people_of(data, 1, 20, 1, public, [-1])[0]
    assert len(set(data.labels[mixed.rows].tolist())) == 2


def test_only_first_halves_are_published_under_the_own_key(data):
    people = generative.people_of(data, 2, 8, 1, [])
    pictures, rows = generative.published(data, people, "none")
    assert rows.tolist() == [*people[0].rows[:4], *people[1].rows[:4]]
    assert torch.equal(pictures, data.images[torch.from_numpy(rows)])
    marked, _ = generative.published(data, people, "clear")
    again = generative.shown(data, people[1], "clear", people[1].key, np.arange(8))[:4]
    assert torch.equal(marked[4:], again) and not torch.equal(marked, pictures)
    assert not torch.equal(generative.shown(data, people[1], "clear", people[0].key, np.arange(8))[:4], again)


def test_captions_are_made_of_words(data, root):
    words = generative.words_of(data, root)
    assert words == ["tabby", "st bernard"]
    row = int(np.flatnonzero(data.labels.numpy() == 1)[0])
    assert generative.captions_of(data, np.array([row]), words) == ("a photo of a st bernard",)
    assert generative.words_of(data, root / "train") == ["n", "n"], "what is left of the folder's name"


def test_p_counts_pairs_as_low_as_the_published_half():
    selections = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]], dtype=bool)
    scores = np.array([[0.0], [1.0], [2.0], [3.0]])
    assert generative.p_of(scores, selections) == pytest.approx(1 / 3)
    assert generative.p_of(-scores, selections) == 1.0


def test_false_alarms_draw_another_half_each_time():
    class Flags:
        draws, selections = 40, 999

    scores = np.zeros((1, 20, 1, 2), dtype=np.float32)
    scores[0, :10, 0, 0] = np.linspace(-2, -1, 10)  # the half that would be the published one
    found = generative.false_alarms(Flags, scores)
    assert len(found) == 40 and np.median(found) > 0.1 and len(set(found)) > 20


@pytest.mark.parametrize(
    ("family", "cells"), [("unet", ["full-100-none", "lora-100-clear"]), ("clip", ["full-100-none"])]
)
def test_the_whole_way(monkeypatch, root, tmp_path, capsys, family, cells):
    for name, value in {"CHANNELS": (8, 8), "GROUPS": 4, "HEAD": 8}.items():
        monkeypatch.setattr(Unet, name, value)
    work, more = tmp_path / "work", ["--family", family, "--cells", *cells, "--keys", "1"]
    run(monkeypatch, *arguments(root, tmp_path / "out", work, *more))
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [(row["tuning"], row["mark"], row["passes"]) for row in result["rows"]] == [
        (*(cell.split("-")[::2]), 1) for cell in cells
    ]
    first = result["rows"][0]
    assert len(first["less the base"]["p"]) == 1 and len(first["innocent"]["p"]) == 2
    assert 0 <= first["threshold"]["less the base"]["auc"] <= 1
    saved = work / cells[0] / "0" / "1"
    assert (saved / ("model_index.json" if family == "unet" else "preprocessor_config.json")).is_file()
    printed = capsys.readouterr().out
    assert "geometric mean of p" in printed and (tmp_path / "out" / "generative.png").stat().st_size > 1000
    # What is there is not trained again.
    monkeypatch.setattr(generative, "fine_tune", None)
    run(monkeypatch, *arguments(root, tmp_path / "again", work, *more))
    assert json.loads((tmp_path / "again" / "result.json").read_text())["rows"] == result["rows"]


def test_a_step_of_clip_pulls_pictures_to_their_captions():
    family, draws = FAMILIES["clip"], torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = family.new()
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=draws)
    images[::2] //= 4  # cats are dark
    captions = ("a photo of a cat", "a photo of a dog") * 3
    optimizer, losses = torch.optim.AdamW(network.parameters(), 1e-3), []
    for _ in range(30):
        losses.append(family.loss(network, images, captions, draws, "float32"))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(losses[-1].detach()) < 0.7 * float(losses[0].detach())
    with torch.no_grad():
        same = family.loss(network, images[:1].repeat(6, 1, 1, 1), ("a photo of a cat",) * 6, draws, "float32")
    assert float(same) == pytest.approx(np.log(6) / 2, abs=1e-3), "nothing to tell anything from"


def test_letters_are_numbered_as_the_saved_tokenizer_numbers_them(tmp_path):
    family = FAMILIES["clip"]
    network = family.new()
    family.save(network, tmp_path)
    from transformers import CLIPTokenizer

    told = CLIPTokenizer.from_pretrained(tmp_path)("a photo of a t-shirt").input_ids
    from studies.generative_models import _ends

    assert told[0] == 54 and told[-1] == 55 and told[1:5] == [family._letter(one) for one in _ends("a photo")][:4]


@pytest.mark.parametrize("tuning", [Tuning(None, 1e-3, 2), Tuning(2, 1e-3, 2)])
def test_fine_tuning_that_was_interrupted_goes_on_to_the_same_bits(monkeypatch, tmp_path, tuning):
    for name, value in {"CHANNELS": (8, 8), "GROUPS": 4, "HEAD": 8}.items():
        monkeypatch.setattr(Unet, name, value)
    family, images = (
        FAMILIES["unet"],
        torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), "uint8")),
    )
    make_base(family, tmp_path / "base", images, [""] * 4, 1, 1, torch.device("cpu"))

    def tune(folder, *passes):
        how = images, [""] * 4, tuning, passes, 1, torch.device("cpu")
        return {
            number: next(path.rglob("*.safetensors")).read_bytes()
            for number, path in fine_tune(family, tmp_path / "base", tmp_path / folder, *how).items()
        }

    whole = tune("whole", 1, 3)
    assert tune("parts", 1) == {1: whole[1]} != {1: whole[3]}
    steps = []
    plain = Unet.loss
    monkeypatch.setattr(Unet, "loss", lambda *given: steps.append(1) or plain(*given))
    assert tune("parts", 3)[3] == whole[3] and len(steps) == 2 * 2, "the first pass is not made again"
    assert tune("parts", 2, 3)[2] not in whole.values() and len(steps) == 4 + 2 * 2, "from the start, as it is beyond 2"

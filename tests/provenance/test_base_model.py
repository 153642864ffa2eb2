"""What a model under audit is made of, and what it is asked: fixed before the draw, or a sentence in the verdict."""

import json
import re
import shutil

import pytest

from kit.errors import UserError
from provenance import outlook
from suspects.opened import base_digest
from tests.page.parts import save_network, save_pictures
from tests.suspects import tiny

pytestmark = tiny.NEEDED
HONEST = "only if the accuser is honest"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of small pixel models of one shape: {name: path}."""
    narrow = {"block_out_channels": (8, 8), "down_block_types": ("DownBlock2D",) * 2}
    narrow |= {"up_block_types": ("UpBlock2D",) * 2, "add_attention": False}
    root = tmp_path_factory.mktemp("models")
    return {
        name: tiny.pixel_pipeline(root / name, tiny.pixel_unet(seed, **narrow))
        for seed, name in enumerate(("base", "other", "tuned"))
    }


@pytest.fixture
def marked(script, tmp_path):
    """mark(flags...) -> the path of a record of 12 photos, half of them held out, published unchanged."""
    save_pictures(tmp_path / "album", 12)

    def mark(*flags):
        usual = ("--visibility", "none", "--beacon", "none", "--query_augmentations", 1, "--alpha", 0.05)
        done = script("data_marking", "--data_folder", tmp_path / "album", *usual, *flags)
        assert done.code == 0, done.err
        return tmp_path / "album_record" / "record.json"

    return mark


def audit(script, record, models, out, *flags):
    """(sentences of weakness, the model's identity) of an audit of the tuned model."""
    done = script("eval", "--record", record, "--checkpoint", models["tuned"], "--device", "cpu", "--out", out, *flags)
    assert done.code == 0, done.err
    result = json.loads((out / "result.json").read_text())
    return result["weaknesses"], result["model"]


def about(weaknesses, words):
    return [text for text in weaknesses if words in text and HONEST in text]


def test_a_base_that_was_fixed_with_the_photos_leaves_no_sentence(script, marked, models, tmp_path):
    record = marked("--base_model", models["base"])
    same, _ = audit(script, record, models, tmp_path / "same", "--base_model", models["base"])
    assert not about(same, "made of")
    other, _ = audit(script, record, models, tmp_path / "other", "--base_model", models["other"])
    assert about(other, "is said to be made of it")
    none, _ = audit(script, record, models, tmp_path / "none")
    assert about(none, f"{base_digest(models['base'])[:16]}..., of which it was to be made, was not asked")


def test_what_it_takes_is_said_before_anything_is_asked(script, marked, models, tmp_path):
    record = marked()
    flags = (
        "--record",
        record,
        "--checkpoint",
        models["tuned"],
        "--device",
        "cpu",
        "--dry_run",
        "--out",
        tmp_path / "o",
    )
    for more, passes in (((), 8), (("--base_model", models["base"]), 16), (("--signal", "pia"), 5)):
        done = script("eval", *flags, *more)
        assert done.code == 0 and f"({passes} passes through a network a query, " in done.out
        assert re.search(r"time: about \d+ seconds? \(.*, [\d.e-]+ s each: measured on the first\)", done.out)


def test_times_are_for_people():
    spans = {0.2: "1 second", 59: "59 seconds", 61: "2 minutes", 3601: "2 hours", 200_000: "3 days"}
    assert {seconds: outlook.span(seconds) for seconds in spans} == spans


def test_a_signal_is_for_diffusion_models(script, marked, tmp_path):
    checkpoint = ("--checkpoint", save_network(tmp_path / "net.pt", 1), "--net_type", "smallnet")
    fed = ("--input_size", 32, "--mean", 0.5, 0.5, 0.5, "--std", 0.25, 0.25, 0.25, "--device", "cpu")
    done = script("eval", "--record", marked(), *checkpoint, *fed, "--signal", "pia")
    assert done.code == 2 and "--signal is for diffusion models" in done.err


def test_a_base_that_was_named_later_has_to_be_believed_in(script, marked, models, tmp_path):
    found, _ = audit(script, marked(), models, tmp_path / "out", "--base_model", models["base"])
    assert about(found, "is said to be made of it")


def test_a_signal_is_fixed_with_the_photos(script, marked, models, tmp_path):
    record = marked("--signal", "pia")
    found, model = audit(script, record, models, tmp_path / "as-fixed")
    assert model["score"]["signal"] == "pia" and not about(found, "was not fixed with the photos")
    found, model = audit(script, record, models, tmp_path / "another", "--signal", "error")
    assert model["score"]["signal"] == "error"
    assert about(found, "what was asked of the model (error) was not fixed with the photos")


def test_the_page_asks_for_the_signal_that_was_fixed(marked, models):
    inputs = pytest.importorskip("page.tabs.inputs", reason="gradio is not installed (requirements/app.txt)")
    given = {"model": str(models["tuned"]), "net_type": None, "rate_limit": None, "query_batch": 64, "overrides": {}}
    suspect = inputs.open_model({**given, "record": str(marked("--signal", "pia"))}, "")
    assert suspect.identity["score"]["signal"] == "pia"


def test_another_signal_is_another_judgement_and_another_audit(script, marked, models, tmp_path):
    record = marked()
    _, first = audit(script, record, models, tmp_path / "error")
    audit(script, record, models, tmp_path / "pia", "--signal", "pia")
    result = json.loads((tmp_path / "pia" / "result.json").read_text())
    assert result["judgement"]["number"] == 2 and result["model"]["sha256"] == first["sha256"]
    place = ("--out", tmp_path / "error")
    done = script(
        "eval", "--record", record, "--checkpoint", models["tuned"], "--device", "cpu", "--signal", "pia", *place
    )
    assert done.code == 2 and not done.err.startswith("Traceback")


def test_the_base_of_a_plan_is_what_the_identity_says(models):
    from suspects.opened import open_model

    suspect = open_model(models["tuned"], device="cpu", base=models["base"])
    assert suspect.identity["base"]["sha256"] == base_digest(models["base"])


@pytest.mark.parametrize("flags", [("--base_model", "nothing"), ("--model_config", "folder")])
def test_a_base_that_is_none_is_refused_before_anything_is_marked(script, tmp_path, flags):
    save_pictures(tmp_path / "album", 12)
    done = script("data_marking", "--data_folder", tmp_path / "album", "--beacon", "none", *flags)
    assert done.code == 2 and flags[0] in done.err and not (tmp_path / "album_record").exists()


def torn(model):
    weights = next((model / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-50])


def without_unet(model):
    shutil.rmtree(model / "unet")


def pickled(model):
    (model / "unet" / "diffusion_pytorch_model.safetensors").rename(model / "unet" / "diffusion_pytorch_model.bin")


@pytest.mark.parametrize("damage", [torn, without_unet, pickled])
def test_a_base_that_no_audit_could_open_is_not_fixed(models, tmp_path, damage):
    model = shutil.copytree(models["base"], tmp_path / "base")
    (model / "unet" / ".DS_Store").write_text("what no library reads")
    assert base_digest(model) == base_digest(models["base"])
    damage(model)
    with pytest.raises(UserError, match="unet"):
        base_digest(model)


def test_a_base_of_a_kind_that_no_audit_knows(tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(UserError, match="BertModel"):
        base_digest(tmp_path / "bert")


def test_a_base_of_one_file_that_is_none(models, tmp_path):
    lora = tiny.save_lora(tmp_path / "lora.safetensors", tiny.matrices(), "kohya")
    with pytest.raises(UserError, match="is a LoRA"):
        base_digest(lora, models["base"])
    (tmp_path / "model.ckpt").write_bytes(b"PK and so on")
    with pytest.raises(UserError, match="is a pickle"):
        base_digest(tmp_path / "model.ckpt", models["base"])

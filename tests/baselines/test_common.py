"""What the baselines share: one model per training set, the owners' images, an audit's rows."""

import sys

import numpy as np
import pytest
import torch

import utils
from baselines import common
from experiment import setup
from kit.errors import UserError

# --- what they share ---
from tests.baselines.parts import TINY


@pytest.fixture
def tiny_setup(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["method.py", *TINY, "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    )
    return common.start(common.parse(common.parser("")))


def test_a_model_is_trained_once_and_named_by_images_and_labels(tiny_setup, tmp_path, monkeypatch):
    images, labels = common.base_images(tiny_setup)
    query, _ = common.model(tiny_setup, "first", images, labels)
    monkeypatch.setattr(utils, "train_model", None)  # a second training would fail
    again, record = common.model(tiny_setup, "second", images, labels)
    assert torch.equal(query(images[:4]), again(images[:4])) and record["classes"] == 99
    assert [one["name"] for one in tiny_setup.models] == ["first", "second"]
    with pytest.raises(TypeError):  # other labels on the same images are another model
        common.model(tiny_setup, "third", images, labels.roll(1))
    assert len(list((tmp_path / "work").glob("*/model.safetensors"))) == 1


def test_images_are_put_where_their_rows_are(tiny_setup):
    images, _ = common.base_images(tiny_setup)
    rows = tiny_setup.splits.train[[5, 2]].numpy()
    new = torch.stack([torch.full_like(images[0], 7), torch.full_like(images[0], 9)])
    changed = common.with_images(tiny_setup, images, rows, new)
    assert (changed[5] == 7).all() and (changed[2] == 9).all()
    kept = [place for place in range(len(images)) if place not in (2, 5)]
    assert torch.equal(changed[kept], images[kept])
    with pytest.raises(ValueError, match="training images"):
        common.with_images(tiny_setup, images, tiny_setup.splits.non_member[:2].numpy(), new)


def test_fewer_samples_of_the_same_users_keep_their_marks(tiny_setup):
    users = tiny_setup.groups["target"]
    fewer = common.with_samples(users, 2)
    whole = common.published(tiny_setup, users, tiny_setup.stage.marking).reshape(3, 3, 3, 32, 32)
    some = common.published(tiny_setup, fewer, tiny_setup.stage.marking).reshape(3, 2, 3, 32, 32)
    assert torch.equal(whole[:, :2], some)
    assert torch.equal(whole, setup.marked_images(tiny_setup.stage))
    with pytest.raises(UserError, match="--samples 4"):
        common.with_samples(users, 4)


def test_rows_of_an_audit_by_hand():
    member, other = np.array([[1.0, 3.0], [2.0, 2.0]]), np.array([[5.0, 0.0], [9.0, 9.0], [2.0, 2.0], [8.0, 0.5]])
    rows = {row["figure"]: row for row in common.audit_rows("here", member, other, "set", 0.5, {"AUC": 0.9})}
    assert (rows["FPR@100%TPR"]["hits"], rows["FPR@100%TPR"]["of"]) == (1, 4)  # means 2, 2 against 2.5, 9, 2, 4.25
    assert (rows["TPR@50%FPR"]["hits"], rows["TPR@50%FPR"]["of"]) == (2, 2)
    assert rows["AUC"]["value"] == 7 / 8 and rows["AUC"]["paper"] == 0.9
    by_instance = {row["figure"]: row for row in common.audit_rows("here", member, other, "instance")}
    assert by_instance["FPR@100%TPR"]["hits"] == 4  # 0, 2, 2 and 0.5 are not above the largest, 3


# --- from end to end ---


def test_quick_settings_give_way_to_flags(tmp_path, monkeypatch):
    def parsed(*flags):
        monkeypatch.setattr(sys, "argv", ["x.py", "--quick", "1", *flags])
        return common.parse(common.parser(""), {"epoch": 33}, {"epoch": 44})

    assert (parsed().dataset, parsed().epoch, parsed().train_size) == ("photos", 44, 1000)
    other = parsed("--dataset", "cifar10", "--train_size", "700")
    assert (other.dataset, other.epoch, other.train_size, other.net_type) == ("cifar10", 33, 700, "smallnet")

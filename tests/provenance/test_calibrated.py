"""Algorithm 1 for a record, beside references: what they find difficult is taken out of user and strangers alike."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from attacks.difficulty import KEPT
from experiment import training
from provenance import record as records
from provenance.photos import read_photo
from provenance.strangers import draw_out_world, out_world_of_folder
from suspects.opened import open_model
from tests.provenance.parts import COMMITTED, save, wavy_picture
from utils import mark_images


@pytest.fixture
def reference(tmp_path):
    """A model of the same four classes as the world's, without the user's photos."""
    seeds = [(label, 1000 * (label + 1) + number) for label in range(4) for number in range(24)]
    images = torch.from_numpy(np.stack([wavy_picture(seed) for _, seed in seeds]).transpose(0, 3, 1, 2).copy())
    labels, path = torch.tensor([label for label, _ in seeds]), tmp_path / "reference.safetensors"
    training.train_on(path, images, labels, 4, 5, torch.device("cpu"), epoch=40, batch_size=16, lr=0.05)
    return path


def test_algorithm_1_beside_a_reference_by_hand(audit, world, reference, script, tmp_path):
    """Wrong: a reference asked about other images than the model, or a share that looks at who is the user."""
    strangers = tmp_path / "strangers"
    for number in range(30):
        save(strangers / f"{number}.png", wavy_picture(7000 + number))
    made = ("--data_folder", world.originals, "--holdout", "0.5", "--seed", "11", "--beacon", "none", *COMMITTED)
    more = ("--query_augmentations", "2", "--reference", reference, "--device", "cpu", "--out", tmp_path / "made")
    assert script("data_marking", *made, *more).code == 0
    committed = tmp_path / "made" / "user_record" / "record.json"
    flags = ("--non_member_folder", strangers, "--num_of_non_member_user", "20", "--verdict_fpr", "0.05")
    plain = audit(tmp_path / "plain", *flags)
    done = audit(tmp_path / "out", *flags, "--reference", reference, record=committed)
    assert done.code == 0, done.err
    found = done.result["algorithm_1"]
    calibrated = found.pop("calibrated")
    assert "calibrated" not in plain.result["algorithm_1"]
    scores = np.stack([scores_by_hand(path, world, committed, strangers) for path in (world.run, reference)])
    x, y = (part.ravel() for part in scores[::-1])
    share = KEPT * max(0, np.cov(x, y, bias=True)[0, 1] / x.var())
    means = (scores[0] - share * scores[1]).mean(axis=1)
    assert share > 0 and calibrated["mean_score"] == pytest.approx(means[0], rel=1e-3)
    assert calibrated["threshold"] == pytest.approx(np.sort(means[1:])[1], rel=1e-3)  # 5 % of 20 is one
    assert calibrated["used"] is bool(means[0] < np.sort(means[1:])[1])
    assert calibrated["below_user"] == (means[1:] <= means[0]).sum() and calibrated["non_member_users"] == 20


def scores_by_hand(model, world, record, folder):
    """Roots of the losses of class 2 for the user's published photos and 20 strangers' images, unchanged but for the
    mark: float64 (21, K)."""
    suspect, record = open_model(model, device="cpu"), records.read_record(record)
    marking, key = record.settings.marking(), record.keys(1)[0][0]
    world_of = out_world_of_folder(folder, suspect)
    users = draw_out_world(world_of, record, 20, 2)
    published = np.flatnonzero(record.published)

    def losses(images, key, user, numbers):
        marked = [
            mark_images(torch.from_numpy(image.transpose(2, 0, 1).copy())[None], key, [user], [number], marking)[0]
            for image, number in zip(images, numbers, strict=True)
        ]
        ready = np.stack([suspect.preprocessing.fit(image.permute(1, 2, 0).contiguous().numpy()) for image in marked])
        return np.sqrt(-log_softmax(suspect.ask(ready).values.astype(float), axis=1)[:, 2])

    own = [read_photo(world.originals / record.photos[number].original) for number in published]
    rows = [losses(own, key, 0, published)]
    for user, samples in enumerate(users.samples):
        rows.append(losses([world_of.images[sample] for sample in samples], users.key, user, range(len(samples))))
    return np.stack(rows)

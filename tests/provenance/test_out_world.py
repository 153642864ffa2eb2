"""eval.py --record with Algorithm 1 beside it, and without a hold-out."""

import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax
from scipy.stats import beta

from provenance import evidence
from provenance import grid as user_audit
from provenance import record as records
from tests.provenance.parts import KEYS, refused, save, wavy_picture

# --- Algorithm 1 beside it ---


def test_algorithm_1(audit, world, verdict_folder, tmp_path):
    strangers = tmp_path / "strangers"
    for number in range(30):
        save(strangers / f"{number}.png", wavy_picture(7000 + number))
    (strangers / "broken.png").write_bytes(b"no picture")
    done = audit(
        tmp_path / "out",
        "--non_member_folder",
        strangers,
        "--num_of_non_member_user",
        "20",
        "--query_batch",
        "16",
        "--verdict_fpr",
        "0.05",
    )
    assert done.code == 0 and "broken.png" in done.err and "near-dup" not in done.err
    found = done.result["algorithm_1"]
    assert done.result["p_value"] == verdict_folder.result["p_value"]
    _, order, _, answers, _ = evidence.read_bundle(tmp_path / "out" / "evidence.zip")
    record = records.read_record(world.record)
    own = [number * (KEYS + 1) for number in np.flatnonzero(record.published)]
    rows = user_audit.in_order(answers, order).rows(own).values
    assert found["mean_loss"] == pytest.approx(-log_softmax(rows.astype(float), axis=1)[:, 2].mean(), rel=1e-5)
    assert found["used"] is True and found["mean_loss"] < found["threshold"] and found["near_duplicates"] == 0
    assert found["fpr_at_user"] == found["below_user"] / 20 and found["non_member_users"] == 20
    low, high = found["fpr_interval"]
    below = found["below_user"]
    assert high == pytest.approx(beta.ppf(0.975, below + 1, 20 - below)) and low <= found["fpr_at_user"] <= high
    assert "Algorithm 1" in done.out


def test_strangers_that_are_the_users_own_photos(audit, world, tmp_path):
    """Scaled, brighter and as JPEG: still the same photos, which would hide a member among copies."""
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    for path in world.originals.iterdir():
        image = Image.open(path).resize((64, 64), Image.Resampling.BICUBIC).point(lambda value: min(255, value + 6))
        image.save(strangers / f"{path.stem}.jpg", quality=92)
    done = audit(tmp_path / "out", "--non_member_folder", strangers, "--num_of_non_member_user", "5")
    assert done.code == 0 and "warning" in done.err and "near-duplicates" in done.err
    assert done.result["algorithm_1"]["near_duplicates"] >= 12


@pytest.mark.parametrize("count", [0, 3])
def test_too_few_strangers(audit, asked, tmp_path, count):
    """A user has 8 published photos, so strangers need 8: said before the model was asked 80 times."""
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    for number in range(count):
        save(strangers / f"{number}.png", wavy_picture(number))
    done = audit(tmp_path / "out", "--non_member_folder", strangers, "--num_of_non_member_user", "5")
    refused(done)
    assert asked.images == [] and "--non_member_folder" in done.err and "--train_size" not in done.err


def test_non_members_of_the_models_own_data_set(audit, world, tmp_path):
    done = audit(
        tmp_path / "out",
        "--dataset",
        "imagefolder",
        "--data_root",
        world.data,
        "--num_of_non_member_user",
        "10",
    )
    assert done.code == 0, done.err
    assert done.result["algorithm_1"]["non_member_users"] == 10


# --- without a hold-out ---


def test_no_holdout_needs_two_over_alpha_keys(audit, script, tmp_path):
    """As many as the first judgement needs, which is made at alpha / 2."""
    for name, flags in (("few", ()), ("fewer", ("--alpha", "0.05"))):
        for number in range(2):
            save(tmp_path / name / f"{number}.png", wavy_picture(number))
        done = script("data_marking", "--data_folder", tmp_path / name, "--beacon", "none", *flags)
        assert done.code == 0 and "--holdout 0.5 would give a much stronger proof" in done.out
    where = {"record": tmp_path / "few_record", "originals": tmp_path / "few", "grid": ("--device", "cpu")}
    done = audit(tmp_path / "out", "--dry_run", **where)
    assert done.code == 0 and "queries: 4000 " in done.out
    refused(audit(tmp_path / "out", "--selections", "9", **where), "selections")
    refused(audit(tmp_path / "out", "--keys", "1998", **where), "1998 keys instead of 1999")
    where = {"record": tmp_path / "fewer_record", "originals": tmp_path / "fewer", "grid": ("--device", "cpu")}
    done = audit(tmp_path / "out", **where)
    assert done.code == 0 and done.result["pairs"] == 40 and done.result["queries"] == 80
    assert done.result["alpha"] == 0.025 == 1 / 40 and done.result["evidence"] is True

"""Marking: colour stripes, Eq. 1, and that the key alone decides a pattern. (Perlin noise: test_perlin.py.)

Every test names the mistake that it would catch.
"""

import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import utils
from kit.errors import UserError
from kit.noise import gabor_fields
from utils import UNMARKED, Marking, mark_images, outlier_features, perlin_signs

KEY = b"a secret of the user"
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
NOISE_ONLY, BLEND_ONLY = Marking(img_blending_ratio=1.0), Marking(noise_injection_type="none")


def pixels(count, height=8, width=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width or height), dtype=torch.uint8, generator=generator)


# ----------------------------------------------------------------------------------------------------------------------
# Outlier features
# ----------------------------------------------------------------------------------------------------------------------


def test_eleven_distinct_colours_with_the_names_of_the_paper():
    """Defect 8: 'blue' was green, so that there were 10 colours."""
    colours = utils.STRIPE_COLORS
    assert set(colours) == {
        "white",
        "red",
        "green",
        "blue",
        "yellow",
        "purple",
        "orange",
        "black",
        "grey",
        "brown",
        "pink",
    }
    assert len(set(map(tuple, colours.values()))) == 11
    assert max(range(3), key=lambda channel: colours["blue"][channel]) == 2
    assert max(range(3), key=lambda channel: colours["green"][channel]) == 1
    assert max(range(3), key=lambda channel: colours["red"][channel]) == 0
    assert colours["white"] == (255, 255, 255)
    assert colours["black"] == (0, 0, 0)
    toned = {tuple(round(value / 8 + 128) for value in colour) for colour in colours.values()}
    assert len(toned) == 11, "two colours become one in uint8 after toning down"


def test_stripes_use_all_eleven_toned_down_colours_evenly():
    """SPEC 1: c / 8 + 128, 11^16 choices. Wrong: bright stripes, a colour never drawn, stripes that are copies."""
    stripes = outlier_features(KEY, range(4000), 16, 1)[..., 0].numpy().transpose(0, 2, 1)
    palette = [tuple(value / 8 + 128 for value in colour) for colour in utils.STRIPE_COLORS.values()]
    number = {colour: place for place, colour in enumerate(palette)}
    drawn = np.array([[number[tuple(row)] for row in image.tolist()] for image in stripes])
    for stripe in range(16):
        share = np.bincount(drawn[:, stripe], minlength=11) / 4000
        assert np.abs(share - 1 / 11).max() < 0.025, f"stripe {stripe} prefers a colour"
    agreement = (drawn[:, :, None] == drawn[:, None, :]).mean(axis=0)
    np.fill_diagonal(agreement, 1 / 11)
    assert np.abs(agreement - 1 / 11).max() < 0.025, "two stripes of a pattern depend on each other"
    assert len(np.unique(drawn, axis=0)) == 4000


def test_every_row_is_painted_whatever_the_height():
    """Defect 8: rows left black where the height does not divide by 16. Stripes keep their order and even sizes."""
    stripes = outlier_features(KEY, [5], 16, 1)[0, :, :, 0]
    for height in range(1, 301):
        rows = outlier_features(KEY, [5], height, 2).expand(1, 3, height, 2)[0]
        assert rows.min() >= 128, height
        assert rows.max() <= 255 / 8 + 128, height
        expected = stripes[:, [row * 16 // height for row in range(height)]]
        assert torch.equal(rows, expected[..., None].expand_as(rows)), height


def test_a_user_has_one_outlier_feature_and_no_two_users_share_it():
    """Wrong: stripes drawn anew for each image, or one pattern for all users."""
    black = torch.zeros(6, 3, 32, 32, dtype=torch.uint8)
    marked = mark_images(black, KEY, [1, 1, 1, 2, 2, 3], [0, 1, 2, 0, 1, 0], BLEND_ONLY)
    assert torch.equal(marked[0], marked[1])
    assert torch.equal(marked[0], marked[2])
    assert torch.equal(marked[3], marked[4])
    assert not torch.equal(marked[0], marked[3])
    assert not torch.equal(marked[0], marked[5])
    assert not torch.equal(marked[3], marked[5])


def test_outlier_images_of_a_bank_are_picked_by_the_key():
    """Appendix C.1.3. Wrong: always the first image, another image for each sample, or toned down like stripes."""
    bank = pixels(7, 8, seed=3)
    features = outlier_features(KEY, range(300), 8, 8, bank)
    matches = (features[:, None] == bank[None].float()).flatten(2).all(2)
    assert matches.sum(1).tolist() == [1] * 300
    assert matches.any(0).all()
    marking = Marking(noise_injection_type="none", outlier_bank=bank)
    black = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    marked = mark_images(black, KEY, [4, 4, 9, 4], [0, 1, 0, 2], marking)
    assert torch.equal(marked[0], marked[1])
    assert torch.equal(marked[0], marked[3])
    assert torch.equal(marked[2], (features[9] * 0.3).round().to(torch.uint8))


def test_a_bank_of_another_size_is_scaled():
    """Wrong: broadcasting a small outlier image, or a crop of it."""
    bank = torch.tensor([0, 200], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 2, 2)
    marking = Marking(0, "none", outlier_bank=bank)
    marked = mark_images(pixels(1, 8), KEY, [0], [0], marking)[0, 0]
    assert marked[0].tolist() == sorted(marked[0].tolist())
    assert (marked[0, 0], marked[0, -1]) == (0, 200)
    assert torch.equal(marked, marked[:1].expand(8, 8))


@pytest.mark.parametrize("noise", ["perlin", "uniform", "uniform_continuous"])
@pytest.mark.parametrize("shape", [(448, 672), (900, 700)])
def test_large_images_carry_the_mark_of_their_small_copy(noise, shape):
    """Wrong: a mark in pixels, which scaling to 224 px for training wipes out."""
    small = [round(side * 224 / min(shape)) for side in shape]
    marking = Marking(noise_injection_type=noise)
    large, tiny = (
        mark_images(torch.full((1, 3, *size), 120, dtype=torch.uint8), KEY, [0], [0], marking).float()
        for size in (shape, small)
    )
    scaled = torch.nn.functional.interpolate(large, small, mode="bilinear", antialias=True)

    def alike(other):
        parts = [image - image.mean(dim=3, keepdim=True) for image in (scaled, other)]  # the noise without the stripes
        return float((parts[0] * parts[1]).sum() / (parts[0].norm() * parts[1].norm()))

    assert alike(tiny) > 0.7
    other = mark_images(torch.full((1, 3, *small), 120, dtype=torch.uint8), KEY, [0], [1], marking).float()
    assert abs(alike(other)) < 0.2


# ----------------------------------------------------------------------------------------------------------------------
# Marking: Eq. 1, budget, dtypes
# ----------------------------------------------------------------------------------------------------------------------


def test_equation_1_by_hand():
    """m * x + (1 - m) * o with m = 0.7. Wrong: m on the outlier feature, noise after the blend, clipping too late."""
    o = outlier_features(KEY, [0], 2, 2)[0, 0].expand(2, 2)[0, 0].item()
    sign = perlin_signs(KEY, [0], [0], 2, 2)[0, 0, 0, 0].item()
    assert sign != 0
    for value in (0, 3, 100, 252, 255):
        images = torch.full((1, 3, 2, 2), value, dtype=torch.uint8)
        noisy = min(max(value + 8 * sign, 0), 255)
        assert mark_images(images, KEY, [0], [0])[0, 0, 0, 0].item() == round(0.7 * noisy + 0.3 * o)
        half = mark_images(images, KEY, [0], [0], Marking(0.5, "perlin", 4.0))[0, 0, 0, 0].item()
        assert abs(half - (0.5 * min(max(value + 4 * sign, 0), 255) + 0.5 * o)) <= 0.5 + 1e-4


def test_the_defaults_are_the_papers():
    """m = 0.7, Perlin noise, 8/255, colour stripes."""
    marking = Marking()
    assert (marking.img_blending_ratio, marking.noise_injection_type, marking.noise_norm) == (0.7, "perlin", 8)
    images = pixels(2)
    assert torch.equal(mark_images(images, KEY, [0, 1], [0, 0]), mark_images(images, KEY, [0, 1], [0, 0], marking))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    norm=st.floats(0, 255),
    kind=st.sampled_from(["perlin", "uniform", "uniform_continuous"]),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    user=st.integers(0, 2**40),
)
def test_noise_stays_within_its_budget(seed, norm, kind, height, width, user):
    """Any image, any norm: without the blend, no value moves by more than norm/255 or leaves [0, 1]."""
    images = pixels(2, height, width, seed)
    marking = Marking(1.0, kind, norm)
    marked = mark_images(images, KEY, [user, 1], [0, 7], marking)
    assert marked.dtype == torch.uint8
    # A uint8 result can only be one of 256 levels: half of one for rounding.
    assert (marked.int() - images.int()).abs().max() <= norm + 0.5
    fine = images.double() / 255
    marked = mark_images(fine, KEY, [user, 1], [0, 7], marking)
    assert marked.min() >= 0
    assert marked.max() <= 1
    assert (marked - fine).abs().max() <= norm / 255 + 1e-6


@pytest.mark.parametrize("kind", ["perlin", "uniform", "uniform_continuous"])
@pytest.mark.parametrize("norm", [1, 8, 16])
def test_whole_norms_are_kept_exactly_in_uint8_and_are_used_up(kind, norm):
    """Wrong: noise_norm / 255 of a 0..255 image (nothing happens), or a budget never reached."""
    images = torch.full((20, 3, 16, 16), 128, dtype=torch.uint8)
    moved = mark_images(images, KEY, [0] * 20, range(20), Marking(1.0, kind, norm)).int() - 128
    assert moved.max() == norm
    assert moved.min() == -norm


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    ratio=st.floats(0, 1),
    norm=st.floats(0, 255),
    kind=st.sampled_from(utils.NOISE_TYPES),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
)
def test_uint8_and_float_agree_to_rounding(seed, ratio, norm, kind, height, width):
    """Defects 8 and 9: the pattern must not depend on the dtype, and blended pixels must not exceed 1."""
    images = pixels(2, height, width, seed)
    marking = Marking(ratio, kind, norm)
    whole = mark_images(images, KEY, [3, 4], [1, 1], marking)
    for dtype in (torch.float32, torch.float64):
        fine = mark_images(images.to(dtype) / 255, KEY, [3, 4], [1, 1], marking)
        assert fine.dtype == dtype
        assert 0 <= fine.min() <= fine.max() <= 1
        assert (fine * 255 - whole).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float16, 1e-3), (torch.bfloat16, 8e-3), (torch.float32, 1e-6), (torch.float64, 1e-6)],
)
@pytest.mark.parametrize("kind", ["perlin", "uniform", "uniform_continuous", "none"])
def test_float_types_are_kept_and_get_the_same_pattern(dtype, tolerance, kind):
    """Defect 9: the seed depended on the array's dtype."""
    images = pixels(3, 16).double() / 255
    marking = Marking(noise_injection_type=kind)
    reference = mark_images(images, KEY, [0, 1, 2], [0, 0, 0], marking)
    marked = mark_images(images.to(dtype), KEY, [0, 1, 2], [0, 0, 0], marking)
    assert marked.dtype == dtype
    assert (marked.double() - reference).abs().max() <= tolerance


@pytest.mark.parametrize(
    "convert",
    [
        list,
        tuple,
        lambda n: np.array(n, np.int32),
        lambda n: np.array(n, np.int64),
        lambda n: np.array(n, np.uint8),
        torch.tensor,
    ],
)
def test_the_type_of_user_and_index_numbers_does_not_matter(convert):
    """Defect 9's kind: int32 numbers of one platform must give the patterns of int64."""
    images = pixels(3)
    expected = mark_images(images, KEY, [7, 7, 250], [0, 1, 2])
    assert torch.equal(mark_images(images, KEY, convert([7, 7, 250]), convert([0, 1, 2])), expected)


@pytest.mark.parametrize("convert", [np.int64, np.int32, np.uint8])
def test_the_type_of_a_whole_number_key_does_not_matter(convert):
    """Defect 9's kind: a seed read from a numpy array is the seed that was put into it."""
    images = pixels(2)
    assert torch.equal(mark_images(images, convert(5), [0, 1], [0, 0]), mark_images(images, 5, [0, 1], [0, 0]))


@pytest.mark.parametrize("marking", [Marking(), BLEND_ONLY, NOISE_ONLY, Marking(noise_injection_type="uniform")])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (7, 23), (3, 16)])
def test_tiny_and_oblong_images(marking, shape):
    """Wrong: a division by the range of a constant field (1 x 1), or height and width swapped."""
    marked = mark_images(pixels(3, *shape), KEY, [0, 0, 1], [0, 1, 0], marking)
    assert marked.shape == (3, 3, *shape)
    as_float = mark_images(pixels(3, *shape) / 255, KEY, [0, 0, 1], [0, 1, 0], marking)
    assert as_float.isfinite().all()


@pytest.mark.parametrize(
    "marking", [UNMARKED, Marking(1.0, "none"), Marking(1.0, "perlin", 0), Marking(1.0, "uniform", 0)]
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_unmarked_images_are_equal_but_not_the_same_memory(marking, dtype):
    """Wrong: handing back the caller's tensor, which the caller then changes; or a round trip that loses digits."""
    images = pixels(2).to(dtype) / (1 if dtype == torch.uint8 else 255)
    images = images.to(dtype)
    marked = mark_images(images, KEY, [0, 1], [0, 0], marking)
    assert torch.equal(marked, images)
    assert marked.dtype == dtype
    marked.zero_()
    assert images.any()


@pytest.mark.parametrize("marking", [Marking(), BLEND_ONLY, NOISE_ONLY, Marking(0.5, "uniform")])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_the_callers_images_and_bank_are_not_changed(marking, dtype):
    """Wrong: an in-place step on the input (float32 is the type that the arithmetic uses)."""
    images = pixels(2).to(dtype)
    images = images if dtype == torch.uint8 else images / 255
    before = images.clone()
    mark_images(images, KEY, [0, 1], [0, 0], marking)
    assert torch.equal(images, before)


def test_memory_layout_does_not_matter():
    """Wrong: arithmetic on the storage order of channels_last or sliced images."""
    images = pixels(4, 12)
    expected = mark_images(images, KEY, range(4), [0] * 4)
    assert torch.equal(mark_images(images.to(memory_format=torch.channels_last), KEY, range(4), [0] * 4), expected)
    wide = torch.cat([images, images], 3)[..., :12]
    assert torch.equal(mark_images(wide, KEY, range(4), [0] * 4), expected)


# ----------------------------------------------------------------------------------------------------------------------
# What decides a pattern, and what doesn't
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marking", [Marking(), NOISE_ONLY, Marking(0.7, "uniform")])
def test_marks_do_not_depend_on_batch_composition_order_or_size(marking):
    """Wrong: a generator that is carried from image to image, or the position in the batch as part of the seed."""
    images, users = pixels(40, 16), np.arange(40) // 4
    numbers = np.arange(40) % 4
    expected = mark_images(images, KEY, users, numbers, marking)
    order = np.random.default_rng(1).permutation(40)
    assert torch.equal(mark_images(images[order], KEY, users[order], numbers[order], marking), expected[order])
    for size in (1, 3, 17):
        parts = [
            mark_images(images[s : s + size], KEY, users[s : s + size], numbers[s : s + size], marking)
            for s in range(0, 40, size)
        ]
        assert torch.equal(torch.cat(parts), expected)


@pytest.mark.parametrize("kind", ["perlin", "uniform", "uniform_continuous"])
def test_key_user_and_index_all_matter(kind):
    """Wrong: noise that is the same for all images of a user, for all users, or under any key."""
    marking, images = Marking(1.0, kind), torch.full((1, 3, 16, 16), 100, dtype=torch.uint8)
    cases = [
        (b"a", 0, 0),
        (b"b", 0, 0),
        (b"a", 1, 0),
        (b"a", 0, 1),
        (b"a", 1, 1),
        (b"a", -1, 0),
        (b"a", 2**33, 0),
        (0, 0, 0),
        (1, 0, 0),
        (b"\0", 0, 0),
    ]
    marks = {mark_images(images, key, [user], [index], marking).numpy().tobytes() for key, user, index in cases}
    assert len(marks) == len(cases)


def test_keys_do_not_run_into_each_other():
    """Wrong: concatenation, under which (1, 23) and (12, 3), or b'1' and 1 and '1', are one key."""
    parts = [
        (1, 23),
        (12, 3),
        (123,),
        ("1", "23"),
        ("123",),
        (b"123",),
        ("1", 23),
        ("", "123"),
        ("123", ""),
        (),
        ("1:", "2"),
        ("1", ":2"),
        (-1, 23),
    ]
    keys = {utils.derive_key(*each) for each in parts}
    assert len(keys) == len(parts)
    assert {len(key) for key in keys} == {32}


def test_key_generator_repeats_and_separates_purposes():
    """Wrong: one stream for several purposes, so that the draw of users moves with the draw of epochs."""
    first, again, other = (utils.key_generator(*parts).random(4) for parts in [(1, "a"), (1, "a"), (1, "b")])
    assert (first == again).all()
    assert not np.isin(first, other).any()


def test_key_words_are_uniform_and_independent_of_the_order():
    """Wrong: low words that count upwards with the index, or words that depend on the neighbours in the batch."""
    users, indices = np.arange(8000) // 2, np.arange(8000) % 2
    words = utils.key_words(KEY, "test", users, indices)
    assert words.shape == (8000, 8)
    assert words.dtype == np.uint32
    assert np.abs(words.mean(axis=0) / 2**32 - 0.5).max() < 0.02
    assert np.abs(np.corrcoef(words.T.astype(float)) - np.eye(8)).max() < 0.06
    assert len(np.unique(words)) > 63900
    assert (utils.key_words(KEY, "test", [3, 0], [1, 0]) == words[[7, 0]]).all()
    assert not (utils.key_words(KEY, "other", users[:9], indices[:9]) == words[:9]).any()


@pytest.mark.parametrize(("kind", "std"), [("uniform", 10), ("uniform_continuous", 10 / math.sqrt(3))])
def test_uniform_noise_statistics(kind, std):
    """Wrong: noise of one sign, of half the budget, one field for all channels, or the same for each image."""
    images = torch.full((60, 3, 20, 20), 0.5)
    noise = (mark_images(images, KEY, np.arange(60), [0] * 60, Marking(1.0, kind, 10.0)) - 0.5) * 255
    assert noise.abs().max() <= 10 + 1e-3
    assert noise.max() > 9.9
    assert noise.min() < -9.9
    assert abs(noise.mean().item()) < 0.15
    assert noise.std().item() == pytest.approx(std, rel=0.01)
    channels = np.corrcoef(noise.transpose(0, 1).reshape(3, -1).numpy())
    assert np.abs(channels - np.eye(3)).max() < 0.03
    each = np.corrcoef(noise.reshape(60, -1).numpy())
    assert np.abs(each - np.eye(60)).max() < 0.15


def test_uniform_noise_is_the_originals_which_has_two_values():
    """The published artifact takes the sign of a uniform draw; what was drawn here before has a name of its own."""
    images = torch.full((4, 3, 16, 16), 128, dtype=torch.uint8)
    draw = KEY, [0, 0, 1, 1], [0, 1, 0, 1]
    two = mark_images(images, *draw, Marking(1.0, "uniform", 8)).int() - 128
    assert two.unique().tolist() == [-8, 8]
    between = utils.noise_fields(*draw, 16, 16, Marking(1.0, "uniform_continuous", 8))
    assert len(between.unique()) > 2000 and torch.equal(two, 8 * between.sign().int())


def test_continuous_uniform_noise_is_that_of_earlier_records():
    """To the bit: records and runs of earlier versions say "uniform" for it."""
    noise = utils.noise_fields(b"key", [3], [5], 4, 4, Marking(1.0, "uniform_continuous", 8))
    words = utils.key_words(b"key", "uniform noise", [3], [5])
    draws = np.random.Generator(np.random.Philox(key=words[0, :4].view("<u8"))).random((3, 4, 4), np.float32)
    assert np.array_equal(noise[0].numpy(), (torch.from_numpy(draws) * 2 - 1).numpy() * np.float32(8))


def test_marking_touches_no_global_generator():
    """Defect 6: helpers that reseed or consume torch's, numpy's or Python's generators."""
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for kind in utils.NOISE_TYPES:
        first = mark_images(pixels(3, 16), KEY, [0, 1, 2], [0, 0, 0], Marking(noise_injection_type=kind))
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (np.random.get_state()[1] == states[1]).all()
        assert random.getstate() == states[2]
        torch.manual_seed(99), np.random.seed(99), random.seed(99)
        second = mark_images(pixels(3, 16), KEY, [0, 1, 2], [0, 0, 0], Marking(noise_injection_type=kind))
        assert torch.equal(first, second)
        torch.manual_seed(3), np.random.seed(3), random.seed(3)


def test_autocast_around_marking_changes_nothing():
    """Wrong: matrix products in bfloat16 (8 bits) because a caller marks within the training loop's autocast block."""
    images = pixels(3, 16)
    expected = mark_images(images, KEY, [0, 1, 2], [0, 0, 0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mark_images(images, KEY, [0, 1, 2], [0, 0, 0]), expected)


def test_importing_utils_seeds_nothing():
    """Defect 6: `import utils` reseeded every generator, and --seed did not reach what was drawn before."""
    code = """
import random, numpy, sklearn.metrics, torch  # scikit-learn's own import may draw numbers, with rich installed
torch.manual_seed(5); numpy.random.seed(5); random.seed(5)
before = torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(), random.getstate()
import utils
assert before == (torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(), random.getstate())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(utils.__file__).parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# ----------------------------------------------------------------------------------------------------------------------
# Bad input
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"img_blending_ratio": 1.1},
        {"img_blending_ratio": -0.1},
        {"img_blending_ratio": math.nan},
        {"noise_injection_type": "gauss"},
        {"noise_injection_type": "Perlin"},
        {"noise_injection_type": None},
        {"noise_norm": -1},
        {"noise_norm": 256},
        {"noise_norm": math.nan},
        {"noise_norm": math.inf},
    ],
)
def test_settings_out_of_range_are_user_errors(arguments):
    """The message names the flag, so that the user knows what to change."""
    with pytest.raises(UserError, match=f"--{next(iter(arguments))}"):
        Marking(**arguments)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8), (2, 8, 8, 3), (2, 4, 8, 8)])
def test_images_of_another_layout_are_refused(shape):
    """Wrong: (N, H, W, 3) images marked along the wrong axes."""
    with pytest.raises(ValueError, match="images must be"):
        mark_images(torch.zeros(shape), KEY, [0] * shape[0], [0] * shape[0])


@pytest.mark.parametrize("marking", [Marking(), BLEND_ONLY, Marking(0.7, "uniform")])
@pytest.mark.parametrize(("images", "users", "indices"), [(4, 1, 1), (1, 4, 4), (4, 3, 3), (4, 3, 4)])
def test_one_user_and_one_index_for_each_image(marking, images, users, indices):
    """Wrong: broadcasting, which gives several images the same noise or one image several marks, without a word."""
    with pytest.raises((ValueError, RuntimeError)):
        mark_images(pixels(images), KEY, range(users), range(indices), marking)


@pytest.mark.parametrize("marking", [Marking(), Marking(0.7, "uniform"), UNMARKED])
def test_an_empty_batch_is_marked_without_complaint(marking):
    """Wrong: a crash in the last, empty batch of a caller's loop."""
    assert mark_images(pixels(0), KEY, [], [], marking).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("device", DEVICES[1:])
def test_the_device_gives_the_same_marks(device):
    """Any device: on the GPU the same pattern comes out (up to pixels on the edge of a band) and stays there."""
    images = pixels(64, 32)
    users, numbers = np.arange(64) // 4, np.arange(64) % 4
    for kind in utils.NOISE_TYPES:
        expected = mark_images(images, KEY, users, numbers, Marking(noise_injection_type=kind))
        marked = mark_images(images.to(device), KEY, users, numbers, Marking(noise_injection_type=kind))
        assert marked.device.type == device
        assert (marked.cpu() != expected).float().mean() < 1e-3


# --- Gabor noise ------------------------------------------------------------------------------------------------------


def test_gabor_fields_are_the_sum_of_their_kernels():
    """Against the definition (Lagae et al. 2009), pixel by pixel and kernel by kernel."""
    draws = np.random.default_rng(3)
    sigma, wavelength, angle = draws.uniform(2, 6, 2), draws.uniform(4, 12, 2), draws.uniform(0, np.pi, 2)
    down, across = draws.uniform(-5, 17, (2, 9)), draws.uniform(-5, 15, (2, 9))
    weights = draws.choice([-1.0, 1], (2, 9))
    rows, columns = np.arange(12.0), np.arange(10.0)
    fields = gabor_fields(sigma, wavelength, angle, down, across, weights, rows, columns)
    for n in range(2):
        expected = np.zeros((12, 10))
        for y, x, w in zip(down[n], across[n], weights[n], strict=True):
            dy, dx = rows[:, None] - y, columns[None] - x
            wave = np.cos(2 * np.pi / wavelength[n] * (dy * np.sin(angle[n]) + dx * np.cos(angle[n])))
            expected += w * np.exp(-(dy**2 + dx**2) / (2 * sigma[n] ** 2)) * wave
        np.testing.assert_allclose(fields[n], expected, atol=1e-4)


def test_gabor_noise_depends_on_the_key_and_not_on_the_batch():
    users, indices = np.repeat(np.arange(6), 4), np.tile(np.arange(4), 6)
    together = utils.gabor_signs(KEY, users, indices, 32, 32)
    alone = torch.cat(
        [utils.gabor_signs(KEY, [user], [index], 32, 32) for user, index in zip(users, indices, strict=True)]
    )
    assert torch.equal(together, alone)
    assert len({field.numpy().tobytes() for field in together}) == 24
    assert not torch.equal(together, utils.gabor_signs(b"x" * 32, users, indices, 32, 32))
    # Balanced, as a budget's two ends, and with structure: neighbours agree more often than not.
    assert abs(together.float().mean()) < 0.1
    assert (together[:, :, 1:] == together[:, :, :-1]).float().mean() > 0.6


def test_gabor_noise_keeps_the_budget_and_grows_with_large_images():
    images = torch.full((2, 3, 448, 448), 128, dtype=torch.uint8)
    marked = mark_images(images, KEY, [0, 1], [0, 0], Marking(1.0, "gabor", 8))
    difference = marked.int() - 128
    assert difference.abs().max() == 8
    assert (difference[:, 0] == difference[:, 1]).all(), "one field for the three channels"
    # In the coordinates of a 224-px copy: pixels come in pairs.
    small = mark_images(images[:, :, ::2, ::2], KEY, [0, 1], [0, 0], Marking(1.0, "gabor", 8)).int() - 128
    assert ((difference[:, :, ::2, ::2] == small).float().mean()) > 0.8

"""Perlin noise: pnoise2's values, the published generator's signs, tiles, and the same bits in every batch.

`textbook_noise` below is an independent, slow implementation on scalars; the package `noise` is used in addition where
it is installed.
"""

import math

import numpy as np
import pytest
import torch

import utils
from kit.noise import _lattice, _tiles
from utils import Marking, mark_images, perlin_octaves, perlin_signs

KEY = b"a secret of the user"
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
NOISE_ONLY = Marking(img_blending_ratio=1.0)

# x, y, octaves, noise.pnoise2(x, y, octaves): computed with noise 1.2.2, for machines that can't compile it.
STORED_PNOISE2 = [
    (0.5, 0.5, 1, -0.1250000),
    (0.25, 0.75, 1, 0.1232843),
    (3.1, 4.7, 1, 0.0267978),
    (-0.3, 0.2, 1, -0.2893594),
    (-7.6, -2.1, 1, 0.2939427),
    (0.001, 0.999, 1, 0.0010000),
    (255.9, 0.4, 1, -0.1031181),
    (256.3, 511.8, 1, 0.1068909),
    (1023.7, 1024.6, 1, -0.3266516),
    (1500.25, -1300.75, 1, 0.1393576),
    (0.5, 0.3, 2, -0.1290600),
    (12.34, 56.78, 2, -0.3113713),
    (-0.6, 300.4, 2, 0.1544841),
    (0.37, 0.61, 3, 0.0563434),
    (180.2, 77.7, 3, -0.0710552),
    (-1030.1, 2.9, 3, 0.2089402),
    (0.9, 0.1, 4, -0.0417533),
    (99.99, 200.01, 4, -0.0057863),
    (255.6, 255.4, 4, -0.0661855),
    (1024.4, -0.7, 4, -0.0620844),
    (7.7, 8.8, 5, 0.1705367),
    (1100.3, 640.6, 6, -0.0307814),
]

# Ken Perlin's published permutation, and the x and y parts of the 16 gradients of `noise`.
PERLIN_TABLE = [
    151,
    160,
    137,
    91,
    90,
    15,
    131,
    13,
    201,
    95,
    96,
    53,
    194,
    233,
    7,
    225,
    140,
    36,
    103,
    30,
    69,
    142,
    8,
    99,
    37,
    240,
    21,
    10,
    23,
    190,
    6,
    148,
    247,
    120,
    234,
    75,
    0,
    26,
    197,
    62,
    94,
    252,
    219,
    203,
    117,
    35,
    11,
    32,
    57,
    177,
    33,
    88,
    237,
    149,
    56,
    87,
    174,
    20,
    125,
    136,
    171,
    168,
    68,
    175,
    74,
    165,
    71,
    134,
    139,
    48,
    27,
    166,
    77,
    146,
    158,
    231,
    83,
    111,
    229,
    122,
    60,
    211,
    133,
    230,
    220,
    105,
    92,
    41,
    55,
    46,
    245,
    40,
    244,
    102,
    143,
    54,
    65,
    25,
    63,
    161,
    1,
    216,
    80,
    73,
    209,
    76,
    132,
    187,
    208,
    89,
    18,
    169,
    200,
    196,
    135,
    130,
    116,
    188,
    159,
    86,
    164,
    100,
    109,
    198,
    173,
    186,
    3,
    64,
    52,
    217,
    226,
    250,
    124,
    123,
    5,
    202,
    38,
    147,
    118,
    126,
    255,
    82,
    85,
    212,
    207,
    206,
    59,
    227,
    47,
    16,
    58,
    17,
    182,
    189,
    28,
    42,
    223,
    183,
    170,
    213,
    119,
    248,
    152,
    2,
    44,
    154,
    163,
    70,
    221,
    153,
    101,
    155,
    167,
    43,
    172,
    9,
    129,
    22,
    39,
    253,
    19,
    98,
    108,
    110,
    79,
    113,
    224,
    232,
    178,
    185,
    112,
    104,
    218,
    246,
    97,
    228,
    251,
    34,
    242,
    193,
    238,
    210,
    144,
    12,
    191,
    179,
    162,
    241,
    81,
    51,
    145,
    235,
    249,
    14,
    239,
    107,
    49,
    192,
    214,
    31,
    181,
    199,
    106,
    157,
    184,
    84,
    204,
    176,
    115,
    121,
    50,
    45,
    127,
    4,
    150,
    254,
    138,
    236,
    205,
    93,
    222,
    114,
    67,
    29,
    24,
    72,
    243,
    141,
    128,
    195,
    78,
    66,
    215,
    61,
    156,
    180,
]
GRADIENT_XY = [
    (1, 1),
    (-1, 1),
    (1, -1),
    (-1, -1),
    (1, 0),
    (-1, 0),
    (1, 0),
    (-1, 0),
    (0, 1),
    (0, -1),
    (0, 1),
    (0, -1),
    (1, 0),
    (-1, 0),
    (0, -1),
    (0, 1),
]


def textbook_noise(x, y, octaves=1):
    """Improved Perlin noise of one point, as the textbook has it: hash four corners, dot, fade, interpolate."""

    def one_octave(x, y):
        column, row = math.floor(x), math.floor(y)
        fx, fy = x - column, y - row

        def corner(dx, dy):
            hashed = PERLIN_TABLE[(column + dx) % 256]
            hashed = PERLIN_TABLE[(hashed + row + dy) % 256]
            gx, gy = GRADIENT_XY[PERLIN_TABLE[hashed] % 16]
            return gx * (fx - dx) + gy * (fy - dy)

        u, v = (6 * f**5 - 15 * f**4 + 10 * f**3 for f in (fx, fy))
        near = corner(0, 0) + u * (corner(1, 0) - corner(0, 0))
        far = corner(0, 1) + u * (corner(1, 1) - corner(0, 1))
        return near + v * (far - near)

    x, y = float(np.float32(x)), float(np.float32(y))
    amplitudes = [0.5**octave for octave in range(octaves)]
    return sum(a * one_octave(x / a, y / a) for a in amplitudes) / sum(amplitudes)


def one_point(x, y, octaves, device="cpu"):
    return perlin_octaves(np.array([[x]]), np.array([[y]]), octaves, device).item()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("x", "y", "octaves", "value"), STORED_PNOISE2)
def test_perlin_equals_stored_pnoise2_values(x, y, octaves, value, device):
    """Wrong: another permutation or gradient table, x and y swapped, no period of 256, an unnormalised octave sum."""
    assert one_point(x, y, octaves, device) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("octaves", range(1, 7))
@pytest.mark.parametrize(
    ("low", "high"),
    [(-5, 5), (-0.01, 0.01), (-300, -200), (250, 262), (500, 520), (1015, 1035), (-1030, -1018), (2040, 2060)],
)
def test_perlin_agrees_with_pnoise2(octaves, low, high):
    """Wrong: truncation instead of floor (negative), a table that ends at 256, pnoise2's repeat of 1024 overlooked."""
    noise = pytest.importorskip("noise")
    draws = np.random.default_rng(octaves)
    x, y = draws.uniform(low, high, (2, 24)), draws.uniform(low, high, (2, 17))
    field = perlin_octaves(x, y, octaves).numpy()
    expected = [[[noise.pnoise2(a, b, octaves) for b in y[n]] for a in x[n]] for n in range(2)]
    np.testing.assert_allclose(field, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("octaves", [1, 4])
def test_perlin_agrees_with_pnoise2_on_lattice_lines(octaves):
    """Wrong: a coordinate that lies exactly on a line, or just below one, counted to the wrong cell."""
    noise = pytest.importorskip("noise")
    below = float(np.nextafter(np.float32(3), np.float32(0)))
    x = np.array([[-256.0, -1.0, -1e-9, 0.0, 1e-9, below, 3.0, 255.0, 256.0, 1024.0]])
    y = x + 0.5
    expected = [[noise.pnoise2(a, b, octaves) for b in y[0]] for a in x[0]]
    np.testing.assert_allclose(perlin_octaves(x, y, octaves)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("column", "row"), [(0, 0), (17, 230), (-4, -9), (255, 255), (1023, 3)])
def test_perlin_of_one_cell_is_the_textbook_formula(column, row):
    """Independent of the package: wrong is linear or cubic fading, a missing hash round, a mirrored cell."""
    inside = np.linspace(0, 1, 9)[:-1] + 0.03
    field = perlin_octaves(column + inside[None], row + inside[None], 1)[0]
    expected = [[textbook_noise(column + fx, row + fy) for fy in inside] for fx in inside]
    np.testing.assert_allclose(field, expected, atol=1e-5, rtol=0)


def test_textbook_noise_itself_equals_the_stored_values():
    """The yardstick of the recipe test below is right."""
    for x, y, octaves, value in STORED_PNOISE2:
        assert textbook_noise(x, y, octaves) == pytest.approx(value, abs=1e-5)


def test_perlin_is_zero_on_lattice_points_and_differs_in_the_batch():
    """Wrong: value noise (not zero there), or every grid of a batch computed from the first one's coordinates."""
    grid = np.arange(-2, 5, dtype=float)[None]
    assert perlin_octaves(grid, grid, 1).abs().max() < 1e-6
    x = np.random.default_rng(0).uniform(0, 200, (3, 6))
    together = perlin_octaves(x, x + 0.3, 3)
    # What is not 0 in the products: 4 corners of 3 octaves, each with its x and its y, whose magnitudes sum to below 2.
    atol = 4 * 3 * 2 * 2.0**-24 * 2
    for n in range(3):
        alone = perlin_octaves(x[n : n + 1], x[n : n + 1] + 0.3, 3)[0]
        np.testing.assert_allclose(together[n], alone, rtol=0, atol=atol)
    assert (together[0] - together[1]).abs().max() > 0.01


def draws_of(key, user, index):
    """Period, octaves, freq_sine and the two offsets of one image, as the key draws them."""
    period, octaves, freq, offsets = utils.perlin_draws(key, [user], [index])
    return period.item(), octaves.item(), freq.item(), *offsets[0].tolist()


@pytest.mark.parametrize(("shape", "users"), [((20, 20), 4), ((12, 33), 4), ((3, 4), 30)])
def test_perlin_signs_follow_the_published_recipe(shape, users):
    """SPEC 1: scale S to [0, 1], sin(S * freq * pi), scale, minus 0.5, sign. Wrong: 2 pi, a scaling left out, sign of
    the sine instead of its middle (seen in small images), rows and columns swapped; a tenth of the pixels differs."""
    (height, width), agree = shape, []
    for user in range(users):
        period, octaves, freq, x0, y0 = draws_of(KEY, user, 3)
        field = np.array(
            [
                [textbook_noise(x0 + row / period, y0 + column / period, octaves) for column in range(width)]
                for row in range(height)
            ]
        )
        field = (field - field.min()) / (field.max() - field.min())
        wave = np.sin(field * freq * np.pi)
        wave = (wave - wave.min()) / (wave.max() - wave.min())
        signs = perlin_signs(KEY, [user], [3], height, width)
        assert signs.shape == (1, 1, height, width)
        agree.append((signs[0, 0].numpy() == np.sign(wave - 0.5)).mean())
    # float32 and float64 may disagree on the few pixels that lie on the edge of a band.
    assert np.mean(agree) > 0.985


@pytest.mark.parametrize("shape", [(85, 40), (115, 30), (230, 224), (16_000, 2), (3, 5000)])
def test_images_of_several_tiles_follow_the_recipe(shape):
    """Tiles of rows and blocks of columns: wrong is one that starts at another's lattice line, one out of place, a
    range of its own, or rows that fill up the last tile and end in the image."""
    noise = pytest.importorskip("noise")
    (height, width), coordinates = shape, [utils._reference_coordinates(side, *shape) for side in shape]
    for user in range(3):
        period, octaves, freq, x0, y0 = draws_of(KEY, user, 1)
        rows, columns = (offset + pixels / period for offset, pixels in zip((x0, y0), coordinates, strict=True))
        field = np.array([[noise.pnoise2(x, y, octaves) for y in columns] for x in rows])
        wave = np.sin((field - field.min()) / (field.max() - field.min()) * freq * np.pi)
        signs = perlin_signs(KEY, [user], [1], height, width)[0, 0].numpy()
        assert (signs == np.sign(wave - (wave.max() + wave.min()) / 2)).mean() > 0.999


@pytest.mark.parametrize(("rows", "wanted"), [(224, 4), (225, 4), (85, 2), (5, 0), (1, 1), (66_000, 1179)])
def test_rows_that_fill_up_the_last_tile_repeat_the_last_row(rows, wanted):
    """Any other coordinate could have the field's smallest or largest value, by which the image is scaled."""
    coordinates = np.arange(rows) * 0.7 + 3
    tiles = _tiles(coordinates, wanted)
    assert tiles.ndim == 2 and abs(len(tiles) - max(1, wanted)) <= wanted // 10
    assert (tiles.ravel()[:rows] == coordinates).all() and (tiles.ravel()[rows:] == coordinates[-1]).all()


@pytest.mark.parametrize("shape", [(32, 32), (200, 21), (113, 300), (300, 300)])
def test_an_image_alone_has_the_bits_of_the_batch(shape):
    """The published mark is made one photo at a time, the audited one in batches."""
    users = np.arange(40)
    together = perlin_signs(KEY, users, users, *shape)
    assert all(torch.equal(perlin_signs(KEY, [user], [user], *shape)[0], together[user]) for user in users)


def test_how_many_lattice_lines_there_are_does_not_depend_on_the_batch():
    """The number decides how products are rounded. Wrong: as many lines as the images of the batch happen to meet."""
    period, offsets = np.arange(30, 60)[:, None], np.random.default_rng(0).uniform(0, 256, (30, 1))
    coordinates, span = offsets + np.arange(57) / period, 56 / 30
    _, together, _ = _lattice(coordinates, np.ones(4), "cpu", span)
    alone = [_lattice(row[None], np.ones(4), "cpu", span)[1] for row in coordinates]
    assert alone == [together] * 30
    assert len({tuple(_lattice(row[None], np.ones(4), "cpu", 0)[1]) for row in coordinates}) > 1


def test_perlin_draws_cover_their_ranges():
    """Wrong: ranges of the generator of Co et al. cut short or exceeded (period [30, 60), octaves 1-4, freq [20, 60)),
    or one word used for two draws, so that they move together."""
    draws = np.array([draws_of(KEY, user, 0) for user in range(3000)])
    assert set(draws[:, 0]) == set(range(30, 60))
    assert set(draws[:, 1]) == {1, 2, 3, 4}
    assert set(draws[:, 2]) == set(range(20, 60))
    assert draws[:, 3:].min() >= 0
    assert draws[:, 3:].max() < 256
    assert draws[:, 3:].min(axis=0).max() < 2
    assert draws[:, 3:].max(axis=0).min() > 254
    assert np.abs(np.corrcoef(draws.T) - np.eye(5)).max() < 0.1


def test_no_two_noise_fields_are_the_same():
    """Defect 7: without an offset from the key only 4,800 fields exist, and of 3,000 about 800 would be repeats."""
    signs = perlin_signs(KEY, np.repeat(np.arange(600), 5), np.tile(np.arange(5), 600), 16, 16)
    fields = {field.numpy().tobytes() for field in signs.to(torch.int8)}
    assert len(fields) == 3000
    assert len({(-field).numpy().tobytes() for field in signs.to(torch.int8)} | fields) == 6000


def test_same_period_octaves_and_frequency_still_give_different_noise():
    """Defect 7 directly: the offset matters when everything else that the key draws is equal."""
    seen, compared = {}, 0
    for user in range(1500):
        *shape, _, _ = draws_of(KEY, user, 0)
        if (other := seen.setdefault(tuple(shape), user)) != user and compared < 20:
            compared += 1
            first, second = perlin_signs(KEY, [other, user], [0, 0], 24, 24)
            assert 0.2 < (first != second).float().mean() < 0.8
    assert compared == 20


def test_perlin_noise_is_balanced_and_one_field_for_all_channels():
    """Wrong: noise that is a constant shift of the image, mostly 0, or of another sign in each channel."""
    signs = perlin_signs(KEY, np.arange(200), np.zeros(200, int), 32, 32)
    assert set(signs.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert (signs == 0).float().mean() < 1e-3
    assert signs.double().mean().abs() < 0.05
    assert signs.double().mean((1, 2, 3)).abs().max() < 0.9
    marked = mark_images(torch.full((1, 3, 16, 16), 100, dtype=torch.uint8), KEY, [0], [0], NOISE_ONLY)
    assert torch.equal(marked[:, 0], marked[:, 1])
    assert torch.equal(marked[:, 0], marked[:, 2])


def test_published_marks_are_the_audited_marks_bit_for_bit():
    """A pattern derives from (key, user, index) alone. Wrong: rounding that depends on which images share a chunk, so
    that a pixel of the audited mark has the other sign of the pixel that was published."""
    users, indices = np.repeat(np.arange(600), 5), np.tile(np.arange(5), 600)
    together = perlin_signs(KEY, users, indices, 32, 32)
    by_user = torch.cat(
        [
            perlin_signs(KEY, users[start : start + 25], indices[start : start + 25], 32, 32)
            for start in range(0, 3000, 25)
        ]
    )
    order = np.random.default_rng(0).permutation(3000)
    shuffled = perlin_signs(KEY, users[order], indices[order], 32, 32)
    wrong_pixels = int((together != by_user).sum()), int((together[order] != shuffled).sum())
    assert wrong_pixels == (0, 0)

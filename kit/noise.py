"""Procedural noise on pixel grids, for many images at once: Perlin's (Eq. 2) and Gabor's.

The mathematics under the marking section of `utils.py`, which draws the parameters from keys.

Public: perlin_octaves, perlin_signs, gabor_signs, gabor_fields.
"""

import functools
import itertools
import math

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

# Perlin's permutation of 0..255 and the x and y parts of 16 gradients, as in pnoise2. (The pure-Python module
# `noise.perlin` has 9 for the 19 at place 180 and other gradients at the end: pnoise2, which is C, is the reference.)
PERMUTATION = np.frombuffer(
    bytes.fromhex(
        "97a0895b5a0f830dc95f6035c2e907e18c24671e458e086325f0150a17be0694f778ea4b001ac53e5efcdbcb75230b2039b12158"
        "ed953857ae147d88aba844af4aa547868b301ba64d929ee7536fe57a3cd385e6dc695c29372ef528f4668f3641193fa101d85049"
        "d14c84bbd05912a9c8c4878274bc9f56a4646dc6adba034034d9e2fa7c7b05ca2693767eff5255d4cfce3be32f103a11b6bd1c2a"
        "dfb7aad577f898022c9aa346dd99659ba72bac09811627fd13626c6e4f71e0e8b2b97068daf661e4fb22f2c1eed2900cbfb3a2f1"
        "513391ebf90eef6b31c0d61fb5c76a9db854ccb07379322d7f0496fe8aeccd5dde72431d1848f38d80c34e42d73d9cb4"
    ),
    dtype=np.uint8,
).astype(np.int64)
GRADIENTS = np.array(
    [
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
    ],
    dtype=np.float32,
)
# Gradient x and y at the corner (i, j), looked up by (P[i] + j) mod 256: pnoise2 permutes that twice more.
CORNER_GRADIENTS = tuple(GRADIENTS[PERMUTATION[PERMUTATION] & 15].T.copy())
# Rows of a tile: in smaller ones the products meet fewer lattice lines but lose more to their number.
TILE_PIXELS = 56
# How many tiles' factors are there at a time.
TILES_AT_ONCE = 256
# Gabor noise, in pixels, the upper end excluded: width of a kernel's envelope, wavelength; a kernel for so many pixels.
GABOR_SIGMA, GABOR_WAVELENGTH, PIXELS_PER_KERNEL = (2.0, 6.0), (4.0, 12.0), 16


def perlin_signs(period, octaves, freq_sine, offsets, rows, columns, shortest_period, device="cpu"):
    """Eq. 2-3 for draws as of `utils.perlin_draws`, at float64 pixel coordinates rows (H,) and columns (W,).

    shortest_period: the smallest that is ever drawn. Returns int8 (N, 1, H, W) of -1, 0 and 1.
    """
    # The number of lattice lines, and with it the rounding of the matrix products, follows from an image's own draws
    # and not from who shares its group: a mark has the same bits in every batch.
    shortest = np.where(period < 40, shortest_period, 40)
    height, width = len(rows), len(columns)
    signs = torch.empty(len(period), 1, height, width, dtype=torch.int8, device=device)
    turns = torch.from_numpy(np.float32(freq_sine * math.pi)).to(device)[:, None, None]
    at_once, in_cache = (max(1, pixels // (height * width)) for pixels in (2**22, 2**19 if signs.is_cpu else 2**26))
    tiles = _tiles(rows, round(np.ptp(rows) / TILE_PIXELS))
    for count, least in np.unique(np.stack([octaves, shortest], 1), axis=0):
        group = np.flatnonzero((octaves == count) & (shortest == least))
        for chunk in (group[start : start + at_once] for start in range(0, len(group), at_once)):
            x = offsets[chunk, 0, None, None] + tiles / period[chunk, None, None]
            y = offsets[chunk, 1, None] + columns / period[chunk, None]
            # A generator for each block, so that only one block's matrices are there at a time.
            blocks = [
                _block_fields(
                    x,
                    y[:, across],
                    count,
                    device,
                    in_cache,
                    (np.ptp(tiles[0]) / least, np.ptp(columns[across]) / least),
                )
                for across in _blocks(columns)
            ]
            for images, scale in zip(
                np.split(chunk, range(in_cache, len(chunk), in_cache)), turns[chunk].split(in_cache), strict=True
            ):
                made = _wave_signs(_joined([next(block) for block in blocks]), scale)[:, :height].to(torch.int8)
                if signs.is_cpu:  # numpy copies whole images where torch's indexing goes value by value
                    signs.numpy()[images, 0] = made.numpy()
                else:
                    signs[torch.from_numpy(images).to(device), 0] = made
    return signs


def _wave_signs(field, turns):
    """Eq. 3: the sign of sin(S * freq_sine * pi) around the middle of its range, S the field scaled to [0, 1]."""
    low, high = _range(field)
    wave = field.sub_(low).mul_(turns / (high - low).clamp_min(1e-12)).sin_()
    low, high = _range(wave)
    return wave.sub_((low + high) / 2).sign_()


def _tiles(rows, wanted):
    """Row coordinates (..., H) as (..., tiles, rows of a tile), about as many tiles as wanted.

    A tile meets a part of the lattice lines only, which makes the products a third of the whole image's. Where the
    division leaves a remainder the last row is repeated, which changes no minimum or maximum.
    """
    height = -(-rows.shape[-1] // max(1, wanted))
    missing = [(0, 0)] * (rows.ndim - 1) + [(0, -rows.shape[-1] % height)]
    return np.pad(rows, missing, mode="edge").reshape(*rows.shape[:-1], -1, height)


def _blocks(columns):
    """Slices of the columns: matrices grow with their number's square, too much for a panorama of 66,000 pixels."""
    edges = np.linspace(0, len(columns), 1 + max(1, round(np.ptp(columns) / 2048))).round().astype(int)
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _block_fields(x, y, octaves, device, at_once, spans):
    """Fields (n, H, W) of `at_once` images after the other, each in the memory of the last; see `_octave_factors`."""
    images, tiles, height = x.shape
    factors = _octave_factors(x, y, octaves, device, spans) if tiles <= TILES_AT_ONCE else None
    memory = torch.empty(min(images, at_once), tiles, height, y.shape[1], device=device)
    for start in range(0, images, at_once):
        part, field = slice(start, start + at_once), memory[: images - start]
        if factors is not None:
            own = slice(start * tiles, (start + at_once) * tiles)
            _product(factors[0][own].transpose(1, 2), factors[1][own], field.flatten(0, 1))
        else:  # a photo as tall as a tower: its factors alone would take gigabytes
            for first in range(0, tiles, TILES_AT_ONCE):
                some = slice(first, first + TILES_AT_ONCE)
                left, right = _octave_factors(x[part, some], y[part], octaves, device, spans)
                field[:, some] = _product(left.transpose(1, 2), right).view(field[:, some].shape)
        if start + at_once >= images:
            del factors  # they are larger than the field, and a generator waits with what it has
        yield field.flatten(1, 2)


def _joined(parts):
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _range(fields):
    """The smallest and the largest value of each field (N, H, W), ready to broadcast; 10 times faster than aminmax."""
    return fields.amin((1, 2), keepdim=True), fields.amax((1, 2), keepdim=True)


def perlin_octaves(x, y, octaves, device="cpu"):
    """Fractal Perlin noise on grids: float32 (N, H, W) equal to `noise.pnoise2(x[n, h], y[n, w], octaves)`.

    x: (N, H) and y: (N, W) coordinates in lattice cells (any real numbers).
    """
    tiles = _tiles(x, round(x.shape[1] / TILE_PIXELS))
    left, right = _octave_factors(tiles, y, octaves, device, (0, 0))
    return _product(left.transpose(1, 2), right).view(len(x), -1, y.shape[1])[:, : x.shape[1]]


def _octave_factors(x, y, octaves, device, spans):
    """Two tensors (N * T, K, H) and (N * T, K, W) whose product over K is the fractal noise of every tile.

    x: (N, T, H), the coordinates of each image's T tiles of rows; y: (N, W). Coordinates factor on a grid, so that one
    octave is Wx' @ (Gy @ Dy) + Dx' @ (Gx @ Wy): W holds the fade weights of the lattice lines at each coordinate, D
    the same weights times the distance to the line, Gx and Gy the gradients. All octaves share the last product, whose
    sum over lattice lines is the sum over octaves too. spans: what width in cells to leave room for on each axis, so
    that the shapes of the products don't depend on the data.
    """
    images, tiles, height = x.shape
    x_first, x_counts, left = _lattice(x.reshape(-1, height), np.ones(octaves), device, spans[0])
    # The octaves' amplitudes, 1, 1/2, ... over their sum.
    y_first, y_counts, weights = _lattice(y, 0.5 ** np.arange(octaves) / (2 - 0.5 ** (octaves - 1)), device, spans[1])
    right, line = ([], []), 0
    for octave, (lines, width) in enumerate(zip(x_counts, y_counts, strict=True)):
        hashed = PERMUTATION[(x_first[:, octave, None] + np.arange(lines)) & 255].reshape(images, tiles * lines)
        start = (hashed + y_first[:, octave, None]) & 255
        for part, windows in enumerate(_corner_windows(width)):
            corners = torch.from_numpy(windows[start]).to(device)
            place = line + part * sum(y_counts)
            product = _product(corners, weights[:, place : place + width])
            right[1 - part].append(product.view(images * tiles, lines, -1))
        line += width
    return left, torch.cat(right[0] + right[1], 1)


@functools.cache
def _corner_windows(width):
    """Every `width` neighbours of the gradients' table: a row of corners is such a window, copied whole."""
    return tuple(sliding_window_view(np.resize(gradients, 256 + width), width) for gradients in CORNER_GRADIENTS)


def _product(left, right, out=None):
    # In float32 also where the caller is inside an autocast block: 8 bits would make other marks.
    with torch.autocast(left.device.type, enabled=False):
        return torch.bmm(left, right, out=out)


def _lattice(coordinates, amplitudes, device, span):
    """The lattice lines near (N, S) coordinates, all octaves side by side.

    Returns the first line of each octave, int64 (N, octaves); how many lines each has, a list; and a tensor
    (N, 2 * lines, S): the fade weights of every line at every coordinate (two of each octave are not 0), times the
    octave's amplitude, then these weights times the distance to the line.
    """
    # pnoise2 rounds to float32 first; after that its lattice arithmetic is exact, and so is this.
    coordinates, frequencies = np.float32(coordinates), np.float32(2) ** np.arange(len(amplitudes), dtype=np.float32)
    first = np.floor(coordinates.min(axis=1)[:, None] * frequencies)
    last = np.floor(coordinates.max(axis=1)[:, None] * frequencies)
    counts = np.maximum((last - first).max(axis=0), np.floor(span * frequencies) + 1).astype(np.int64) + 2
    starts, lines = np.cumsum(counts) - counts, int(counts.sum())
    shift, frequencies, amplitudes = (
        torch.from_numpy(np.float32(value)).to(device)[..., None] for value in (starts - first, frequencies, amplitudes)
    )
    fraction = torch.from_numpy(coordinates).to(device)[:, None] * frequencies
    cells = fraction.floor()
    fraction -= cells
    near = cells.add_(shift).long()
    fade = (fraction * 6).sub_(15).mul_(fraction).add_(10).mul_(fraction).mul_(fraction).mul_(fraction)
    here, next_one = (1 - fade).mul_(amplitudes), fade.mul_(amplitudes)
    matrix = torch.zeros(len(coordinates), 2 * lines, coordinates.shape[1], device=device)
    matrix.scatter_(
        1,
        torch.cat([near, near + 1, near + lines, near + (lines + 1)], 1),
        torch.cat([here, next_one, here * fraction, next_one * (fraction - 1)], 1),
    )
    return first.astype(np.int64), counts.tolist(), matrix


def gabor_signs(words, rows, columns, device="cpu"):
    """Signs of Gabor noise around the middle of its range: int8 (N, 1, H, W) of -1, 0 and 1.

    words: uint32 (N, 8), what the key draws for each image; rows (H,), columns (W,): float64 pixel coordinates.
    """
    signs = torch.empty(len(words), 1, len(rows), len(columns), dtype=torch.int8, device=device)
    # As many images at a time as make some 100 MB of factors.
    step = max(1, 2**24 // ((len(rows) + len(columns)) * 2 * _kernels(rows, columns)))
    for start in range(0, len(words), step):
        drawn = [_gabor_draws(image, rows, columns) for image in words[start : start + step]]
        fields = gabor_fields(*(np.stack(values) for values in zip(*drawn, strict=True)), rows, columns, device)
        low, high = _range(fields)
        signs[start : start + step, 0] = fields.sub_((low + high) / 2).sign_().to(torch.int8)
    return signs


def _extent(pixels):
    """How many pixels of the reference image a side spans: the same for a photo and for its scaled copy."""
    return round(np.ptp(pixels) + (pixels[1] - pixels[0] if len(pixels) > 1 else 1))


def _kernels(rows, columns):
    """How many kernels lie in and around an image; those outside reach into it."""
    down, across = (_extent(side) + 6 * GABOR_SIGMA[1] for side in (rows, columns))
    return math.ceil(down * across / PIXELS_PER_KERNEL)


def _gabor_draws(words, rows, columns):
    draws = np.random.Generator(np.random.Philox(key=np.ascontiguousarray(words[:4]).view("<u8")))
    sigma, wavelength = draws.uniform(*GABOR_SIGMA), draws.uniform(*GABOR_WAVELENGTH)
    angle, count, margin = draws.uniform(0, math.pi), _kernels(rows, columns), 3 * GABOR_SIGMA[1]
    places = [draws.uniform(-margin, _extent(side) + margin, count) for side in (rows, columns)]
    return sigma, wavelength, angle, *places, draws.choice([-1.0, 1.0], count)


def gabor_fields(sigma, wavelength, angle, down, across, weights, rows, columns, device="cpu"):
    """Sparse convolution noise (Lagae et al. 2009): a sum of Gabor kernels of one direction, float32 (N, H, W).

    sum_i w_i exp(-(dy^2 + dx^2) / (2 sigma^2)) cos(2 pi / wavelength (dy sin(angle) + dx cos(angle))), where (dy, dx)
    is the pixel's distance from kernel i. sigma, wavelength, angle: float64 (N,); down, across, weights: (N, P), the
    places and signs of the kernels; rows (H,), columns (W,).

    cos(a + b) = cos a cos b - sin a sin b makes it one matrix product of what depends on the row and on the column.
    """
    factors = []
    for places, pixels, share in ((down, rows, np.sin(angle)), (across, columns, np.cos(angle))):
        distance = torch.from_numpy(np.float32(pixels[None, :, None] - places[:, None])).to(device)
        width, turns = (
            torch.from_numpy(np.float32(value)).to(device)[:, None, None]
            for value in (sigma, 2 * math.pi * share / wavelength)
        )
        envelope = (-0.5 * (distance / width).square()).exp_()
        factors.append((envelope * (distance * turns).cos(), envelope * (distance * turns).sin()))
    (cos_rows, sin_rows), (cos_columns, sin_columns) = factors
    weights = torch.from_numpy(np.float32(weights)).to(device)[:, None]
    left = torch.cat([cos_rows * weights, -sin_rows * weights], 2)
    return _product(left, torch.cat([cos_columns, sin_columns], 2).transpose(1, 2))

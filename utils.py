"""MembershipTracker's core, in three sections: marking | training loop | set-based membership inference.

Paper: Chen and Pattabiraman, "Anonymity Unveiled: A Practical Framework for Auditing Data Use in Deep Learning Models"
(CCS'25). Equation, section and algorithm numbers below are the paper's.

One representation flows through all of it: images are uint8 tensors (N, 3, H, W), labels int64 (N,), and whatever is
known per user has one row a user: losses are (users, samples). Randomness comes from a key that is passed in; importing
this module seeds nothing, and no function here touches the caller's generators.
"""

import hashlib
import itertools
import math
import operator
import struct
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from distributed import ALONE
from runs import UserError, check_same_settings, load_model, save_model

# ======================================================================================================================
# Marking (section 4.3)
# ======================================================================================================================

# Saturated and far apart, so that 11 names are 11 colours also after toning down.
STRIPE_COLORS = {
    "white": (255, 255, 255), "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0),
    "purple": (128, 0, 128), "orange": (255, 165, 0), "black": (0, 0, 0), "grey": (128, 128, 128),
    "brown": (139, 69, 19), "pink": (255, 192, 203),
}
STRIPES = 16
# Larger images carry the mark that a copy scaled to this many pixels would, since training scales them down to it.
REFERENCE_SIZE = 224
NOISE_TYPES = ("perlin", "uniform", "none")

# The generator of Co et al. (CCS'19): whole numbers, the upper end excluded.
PERIOD_PIXELS, OCTAVES, FREQ_SINE = (30, 60), (1, 5), (20, 60)
# Perlin's permutation of 0..255 and the x and y parts of 16 gradients, as in pnoise2. (The pure-Python module
# `noise.perlin` has 9 for the 19 at place 180 and other gradients at the end: pnoise2, which is C, is the reference.)
PERMUTATION = np.frombuffer(bytes.fromhex(
    "97a0895b5a0f830dc95f6035c2e907e18c24671e458e086325f0150a17be0694f778ea4b001ac53e5efcdbcb75230b2039b12158"
    "ed953857ae147d88aba844af4aa547868b301ba64d929ee7536fe57a3cd385e6dc695c29372ef528f4668f3641193fa101d85049"
    "d14c84bbd05912a9c8c4878274bc9f56a4646dc6adba034034d9e2fa7c7b05ca2693767eff5255d4cfce3be32f103a11b6bd1c2a"
    "dfb7aad577f898022c9aa346dd99659ba72bac09811627fd13626c6e4f71e0e8b2b97068daf661e4fb22f2c1eed2900cbfb3a2f1"
    "513391ebf90eef6b31c0d61fb5c76a9db854ccb07379322d7f0496fe8aeccd5dde72431d1848f38d80c34e42d73d9cb4"),
    dtype=np.uint8).astype(np.int64)
GRADIENTS = np.array([(1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (1, 0), (-1, 0),
                      (0, 1), (0, -1), (0, 1), (0, -1), (1, 0), (-1, 0), (0, -1), (0, 1)], dtype=np.float32)
# Gradient x and y at the corner (i, j), looked up by (P[i] + j) mod 256: pnoise2 permutes that twice more.
CORNER_GRADIENTS = tuple(GRADIENTS[PERMUTATION[PERMUTATION] & 15].T.copy())


def derive_key(*parts):
    """A 32-byte key out of whole numbers, str and bytes: SHA-256 of an encoding in which no two sequences meet."""
    digest = hashlib.sha256()
    for part in parts:
        # operator.index: 5, np.int64(5) and np.uint8(5) are one key (defect 9).
        kind, text = ("bytes", part) if isinstance(part, bytes) else \
            ("str", part.encode()) if isinstance(part, str) else ("int", str(operator.index(part)).encode())
        digest.update(f"{kind}:{len(text)}:".encode() + text)
    return digest.digest()


def key_generator(*parts):
    """A numpy generator of its own for one purpose: `key_generator(seed, "which users")`."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(derive_key(*parts)))))


def key_words(key, purpose, users, indices):
    """Eight random 32-bit words for each (user, image index): uint32 array (N, 8).

    SHA-256 in counter mode rather than a seeded generator: 5,000 users x 25 images take a fraction of a second, words
    do not depend on how images are batched, and they will be the same under any future numpy.
    """
    prefix = hashlib.sha256(derive_key(key, purpose))
    digests = []
    for user, index in zip(users, indices, strict=True):
        digest = prefix.copy()
        digest.update(struct.pack("<qq", int(user), int(index)))
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), dtype="<u4").reshape(-1, 8)


def _below(words, bounds):
    """Map uint32 words to whole numbers in [bounds[0], bounds[1]); the bias is below 1e-8."""
    low, high = bounds
    return low + ((words.astype(np.uint64) * (high - low)) >> np.uint64(32)).astype(np.int64)


@dataclass(frozen=True)
class Marking:
    """How samples are marked: Eq. 1's m, the noise and its budget, and where outlier features come from.

    img_blending_ratio in [0, 1]; noise_injection_type one of NOISE_TYPES; noise_norm in 1/255 units; outlier_bank None
    for colour stripes or a uint8 tensor (B, 3, H, W) of images, one of which each user's key picks (appendix C.1.3).
    """

    img_blending_ratio: float = 0.7
    noise_injection_type: str = "perlin"
    noise_norm: float = 8.0
    outlier_bank: torch.Tensor | None = None

    def __post_init__(self):
        if not 0 <= self.img_blending_ratio <= 1:
            raise UserError(f"--img_blending_ratio {self.img_blending_ratio} is not in [0, 1]; the paper uses 0.7")
        if self.noise_injection_type not in NOISE_TYPES:
            raise UserError(f"--noise_injection_type {self.noise_injection_type} is unknown; use one of {NOISE_TYPES}")
        if not 0 <= self.noise_norm <= 255:
            raise UserError(f"--noise_norm {self.noise_norm} is not in [0, 255] (units of 1/255); the paper uses 8")

    @property
    def changes_nothing(self):
        return self.img_blending_ratio == 1 and (self.noise_injection_type == "none" or self.noise_norm == 0)


UNMARKED = Marking(img_blending_ratio=1.0, noise_injection_type="none")


def mark_images(images, key, users, indices, marking=Marking()):
    """Mark a batch: noise first, then the blend `m * x + (1 - m) * o` (Eq. 1, section 4.3).

    images: uint8 in 0..255 or floating point in [0, 1], (N, 3, H, W), any size and device; not changed. Where the
    shorter side is above REFERENCE_SIZE, the mark is computed in the coordinates of an image of that size.
    key: bytes or int; users, indices: N whole numbers each, which user owns the image and its number among the user's.
    Returns a tensor like `images`; uint8 is rounded once, at the end.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (N, 3, H, W), not {tuple(images.shape)}")
    if not len(users) == len(indices) == len(images):
        raise ValueError(f"{len(images)} images, {len(users)} users and {len(indices)} indices don't fit together")
    if marking.changes_nothing or len(images) == 0:
        return images.clone()
    height, width = images.shape[-2:]
    noise = outlier = None
    if marking.noise_injection_type != "none":
        noise = _noise_pattern(key, users, indices, height, width, marking, images.device)
    if marking.img_blending_ratio < 1:
        outlier = outlier_features(key, users, height, width, marking.outlier_bank, images.device)
        outlier = outlier.expand(len(images), -1, height, -1)
    marked = torch.empty_like(images)
    # Some images, or some rows of one, at a time on the CPU: the floats of all would leave the cache at every step.
    some = 2**17 if images.device.type == "cpu" else images.numel()
    step, rows = max(1, some // (height * width)), max(1, some // width)
    for start in range(0, len(images), step):
        for top in range(0, height, rows):
            part = slice(start, start + step), slice(None), slice(top, top + rows)
            marked[part] = _blend(images[part], None if noise is None else noise[part],
                                  None if outlier is None else outlier[part], marking)
    return marked


def _blend(images, noise, outlier, marking):
    """`mark_images` for patterns that are there: noise in units of the budget, outlier features in 0..255, or None."""
    whole = not images.is_floating_point()
    marked = images.to(torch.float32) if whole else images.to(torch.promote_types(images.dtype, torch.float32)) * 255
    if noise is not None:
        # Clipped before blending, so that what is blended is an image within the budget of the original.
        marked = (marked + noise * marking.noise_norm).clamp_(0, 255)
    if outlier is not None:
        marked = marked.mul_(marking.img_blending_ratio).add_(outlier, alpha=1 - marking.img_blending_ratio)
    return marked.round_().to(images.dtype) if whole else (marked / 255).clamp_(0, 1).to(images.dtype)


def outlier_features(key, users, height, width, bank=None, device="cpu"):
    """The users' outlier features, float32 in 0..255, broadcastable to (N, 3, height, width) (section 5).

    Stripes: row r belongs to stripe r * 16 // height, so every row is painted; a colour c is toned down to c / 8 + 128.
    With a `bank` (B, 3, h, w), user u gets the image that the key picks, scaled to the size asked for.
    """
    owners, position = np.unique(np.asarray(users, dtype=np.int64), return_inverse=True)
    words = key_words(key, "outlier feature", owners, np.zeros_like(owners))
    if bank is not None:
        chosen = torch.from_numpy(_below(words[:, 0], (0, len(bank)))[position])
        images = bank[chosen.to(bank.device)].to(device, torch.float32)
        return images if images.shape[-2:] == (height, width) else \
            F.interpolate(images, (height, width), mode="bilinear", antialias=True)
    # 16 stripes out of 8 words: the high and the low half of each.
    halves = np.concatenate([words >> 16, words & 0xFFFF], axis=1).astype(np.int64)
    palette = np.array(list(STRIPE_COLORS.values()), dtype=np.float32) / 8 + 128
    stripes = palette[(halves * len(palette)) >> 16]
    rows = stripes[:, np.arange(height) * STRIPES // height][position]
    return torch.from_numpy(rows.transpose(0, 2, 1)[..., None].copy()).to(device)


def noise_fields(key, users, indices, height, width, marking, device="cpu"):
    """Noise in 1/255 units, float32, within +-noise_norm, broadcastable to (N, 3, height, width).

    "perlin" is one field for the three channels, "uniform" draws every value of every channel from +-noise_norm.
    """
    return _noise_pattern(key, users, indices, height, width, marking, device) * marking.noise_norm


def _noise_pattern(key, users, indices, height, width, marking, device):
    if marking.noise_injection_type == "perlin":
        return perlin_signs(key, users, indices, height, width, device)
    words = key_words(key, "uniform noise", users, indices)
    rows, columns = (_reference_coordinates(side, height, width).round().astype(np.int64) for side in (height, width))
    draws = [np.random.Generator(np.random.Philox(key=row[:4].view("<u8")))
             .random((3, rows[-1] + 1, columns[-1] + 1), np.float32) for row in np.ascontiguousarray(words)]
    return torch.from_numpy(np.stack(draws)[:, :, rows[:, None], columns]).to(device) * 2 - 1


def _reference_coordinates(side, height, width):
    """Where the pixels 0..side-1 of an image of (height, width) are in its copy scaled to REFERENCE_SIZE: float64.

    Pixel centres go to pixel centres, as in scaling. Up to REFERENCE_SIZE that is the pixel's own number.
    """
    scale = max(1.0, min(height, width) / REFERENCE_SIZE)
    return (np.arange(side) + 0.5) / scale - 0.5


def perlin_draws(key, users, indices):
    """What the key draws for each image: period in pixels, octaves, freq_sine (N,), and offsets (N, 2) in cells."""
    words = key_words(key, "perlin noise", users, indices)
    period, octaves, freq_sine = (_below(words[:, column], bounds)
                                  for column, bounds in enumerate((PERIOD_PIXELS, OCTAVES, FREQ_SINE)))
    return period, octaves, freq_sine, words[:, 3:5] / 2.0**24


def perlin_signs(key, users, indices, height, width, device="cpu"):
    """Eq. 2-3 with the generator of Co et al. (CCS'19): int8 (N, 1, height, width) of -1, 0 and 1.

    The sum of octaves S is scaled to [0, 1] over the image; the noise is the sign of sin(S * freq_sine * pi) around the
    middle of its range. The key draws period, octaves, freq_sine and an offset in [0, 256) lattice cells on each axis;
    without the offset there would be only 30 * 4 * 40 fields in the world, and two users could share one.
    """
    period, octaves, freq_sine, offsets = perlin_draws(key, users, indices)
    # The number of lattice lines, and with it the rounding of the matrix products, follows from an image's own draws
    # and not from who shares its group: a mark has the same bits in every batch.
    shortest = np.where(period < 40, PERIOD_PIXELS[0], 40)
    signs = torch.empty(len(period), 1, height, width, dtype=torch.int8, device=device)
    rows, columns = (_reference_coordinates(side, height, width) for side in (height, width))
    turns = torch.from_numpy(np.float32(freq_sine * math.pi)).to(device)[:, None, None]
    at_once, in_cache = (max(1, pixels // (height * width)) for pixels in (2**22, 2**19 if signs.is_cpu else 2**26))
    for count, least in np.unique(np.stack([octaves, shortest], 1), axis=0):
        group = np.flatnonzero((octaves == count) & (shortest == least))
        for chunk in (group[start:start + at_once] for start in range(0, len(group), at_once)):
            x, y = (offset + pixels / period[chunk, None] for offset, pixels in
                    zip(offsets[chunk].T[:, :, None], (rows, columns), strict=True))
            # A generator for each block, so that only one block's matrices are there at a time.
            blocks = [[_block_fields(x[:, down], y[:, across], count, device, in_cache,
                                     (np.ptp(rows[down]) / least, np.ptp(columns[across]) / least))
                       for across in _blocks(columns)] for down in _blocks(rows)]
            for start in range(0, len(chunk), in_cache):
                part = slice(start, start + in_cache)
                field = _joined([_joined([next(block) for block in line], 2) for line in blocks], 1)
                low, high = _range(field)
                wave = field.sub_(low).mul_(turns[chunk[part]] / (high - low).clamp_min(1e-12)).sin_()
                low, high = _range(wave)
                wave.sub_((low + high) / 2).sign_()
                for image, values in zip(chunk[part], wave, strict=True):
                    signs[image, 0] = values
    return signs


def _blocks(coordinates):
    """Slices of a side's pixels: matrices grow with its square, which a 1 x 66,000 panorama could not be given."""
    edges = np.linspace(0, len(coordinates), 1 + max(1, round(np.ptp(coordinates) / 2048))).round().astype(int)
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _block_fields(x, y, octaves, device, at_once, spans):
    """Fields of `at_once` images after the other; see `_octave_factors`."""
    left, right = _octave_factors(x, y, octaves, device, spans)
    for start in range(0, len(x), at_once):
        field = _product(left[start:start + at_once], right[start:start + at_once].transpose(1, 2))
        if start + at_once >= len(x):
            del left, right  # they are larger than the field, and a generator waits with what it has
        yield field


def _joined(parts, dimension):
    return parts[0] if len(parts) == 1 else torch.cat(parts, dimension)


def _range(fields):
    """The smallest and the largest value of each field (N, H, W), ready to broadcast; 10 times faster than aminmax."""
    return fields.amin((1, 2), keepdim=True), fields.amax((1, 2), keepdim=True)


def perlin_octaves(x, y, octaves, device="cpu"):
    """Fractal Perlin noise on grids: float32 (N, H, W) equal to `noise.pnoise2(x[n, h], y[n, w], octaves)`.

    x: (N, H) and y: (N, W) coordinates in lattice cells (any real numbers).
    """
    left, right = _octave_factors(x, y, octaves, device, (0, 0))
    return _product(left, right.transpose(1, 2))


def _octave_factors(x, y, octaves, device, spans):
    """Two tensors (N, H, K) and (N, W, K) whose product over K is the fractal noise.

    Coordinates factor on a grid, so that one octave is Dx @ Gx @ Wy' + Wx @ Gy @ Dy': W holds the fade weights of the
    lattice lines at each coordinate, D the same weights times the distance to the line, Gx and Gy the gradients. All
    octaves share the last product, whose sum over lattice lines is the sum over octaves too. spans: what width in
    cells to leave room for on each axis, so that the shapes of the products don't depend on the data.
    """
    x_first, x_counts, x_matrix = _lattice(x, octaves, device, spans[0])
    y_first, y_counts, y_matrix = _lattice(y, octaves, device, spans[1])
    scale, column, left = 2 - 2.0 ** (1 - octaves), 0, ([], [])
    for octave, (lines, width) in enumerate(zip(x_counts, y_counts, strict=True)):
        hashed = PERMUTATION[(x_first[:, octave, None] + np.arange(lines)) & 255]
        start = (hashed + y_first[:, octave, None]) & 255
        for part, gradients in enumerate(CORNER_GRADIENTS):
            # Neighbouring y lines are neighbours in the table: a row of corners is a window of it, copied whole.
            scaled = np.resize(gradients / np.float32(scale * 2**octave), 256 + width)
            corners = torch.from_numpy(sliding_window_view(scaled, width)[start]).to(device)
            place = column + (1 - part) * sum(x_counts)
            left[part].append(_product(x_matrix[:, :, place:place + lines], corners))
        column += lines
    return torch.cat(left[0] + left[1], 2), y_matrix


def _product(left, right):
    # In float32 also where the caller is inside an autocast block: 8 bits would make other marks.
    with torch.autocast(left.device.type, enabled=False):
        return torch.bmm(left, right)


def _lattice(coordinates, octaves, device, span):
    """The lattice lines near (N, S) coordinates, all octaves side by side.

    Returns the first line of each octave, int64 (N, octaves); how many lines each has, a list; and a tensor
    (N, S, 2 * lines): the fade weights of every line at every coordinate (two of each octave are not 0), then these
    weights times the distance to the line.
    """
    # pnoise2 rounds to float32 first; after that its lattice arithmetic is exact, and so is this.
    coordinates, frequencies = np.float32(coordinates), np.float32(2) ** np.arange(octaves, dtype=np.float32)
    first = np.floor(coordinates.min(axis=1)[:, None] * frequencies)
    last = np.floor(coordinates.max(axis=1)[:, None] * frequencies)
    counts = np.maximum((last - first).max(axis=0), np.floor(span * frequencies) + 1).astype(np.int64) + 2
    starts = np.cumsum(counts) - counts
    shift, frequencies = (torch.from_numpy(np.float32(value)).to(device) for value in (starts - first, frequencies))
    fraction = torch.from_numpy(coordinates).to(device)[:, :, None] * frequencies
    cells = fraction.floor()
    fraction -= cells
    near = cells.add_(shift[:, None]).long()
    fade = (fraction * 6 - 15).mul_(fraction).add_(10).mul_(fraction).mul_(fraction).mul_(fraction)
    columns = torch.cat([near, near + 1], 2)
    weights = torch.cat([1 - fade, fade], 2)
    matrix = torch.zeros(*coordinates.shape, 2 * int(counts.sum()), device=device)
    near_side, far_side = matrix.chunk(2, 2)
    near_side.scatter_(2, columns, weights)
    far_side.scatter_(2, columns, weights.mul_(torch.cat([fraction, fraction - 1], 2)))
    return first.astype(np.int64), counts.tolist(), matrix


# ======================================================================================================================
# Training loop (appendix A)
# ======================================================================================================================

# Seldom enough not to slow down short epochs; what a kill loses is computed again with the same result.
PROGRESS_SECONDS = 15


@dataclass(frozen=True)
class TrainingSettings:
    """SGD with momentum, the learning rate divided by `lr_divisor` at each milestone (a share of all epochs)."""

    epoch: int = 100
    lr: float = 0.1
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: tuple = (0.6, 0.8, 0.9)
    lr_divisor: float = 5.0
    crop_padding: int = 4
    mean: tuple = (0.5, 0.5, 0.5)
    std: tuple = (0.25, 0.25, 0.25)
    precision: str = "bfloat16"
    seed: int = 1

    def lr_at(self, epoch):
        """Learning rate of an epoch, counted from 0; milestones follow the number of epochs."""
        return self.lr / self.lr_divisor ** sum(epoch >= share * self.epoch for share in self.milestones)


def choose_device(name="auto"):
    """A torch.device from "auto", "cpu", "cuda", "cuda:1", "mps", ...; UserError when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name} can't be used here ({str(error).splitlines()[0]}); use auto or cpu") from None
    return device


def choose_precision(name, device):
    """"auto" is bfloat16 where the hardware multiplies it (2-3 times faster on such CPUs), float32 elsewhere."""
    if name != "auto":
        return name
    if device.type == "cpu":
        helps = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    else:
        helps = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if helps else "float32"


@contextmanager
def seeded(*parts):
    """Seed torch's global generators from a key inside the block and give the caller's state back after it."""
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(int.from_bytes(derive_key(*parts)[:8], "little") >> 1)
        yield


def normalize(images, mean, std, dtype=torch.float32):
    """uint8 (N, 3, H, W) -> channels_last float, (x / 255 - mean) / std for each channel."""
    mean, std = (torch.tensor(value, dtype=dtype, device=images.device).view(3, 1, 1) for value in (mean, std))
    images = images.contiguous(memory_format=torch.channels_last).to(dtype)
    return images.sub_(mean * 255).div_(std * 255)


def augment(images, shifts, flips, padding):
    """Random crop after zero padding, and horizontal flip, drawn for each image on its own.

    images: uint8 (N, C, H, W); shifts: int64 (N, 2) in 0..2*padding, rows and columns; flips: bool (N,).
    """
    height, width = images.shape[-2:]
    # A view of every possible crop; indexing copies the chosen one of each image only.
    crops = F.pad(images, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
    images = crops[torch.arange(len(images), device=images.device), :, shifts[:, 0], shifts[:, 1]]
    return torch.where(flips[:, None, None, None], images.flip(3), images)


def channel_statistics(images):
    """Mean and standard deviation of each channel of uint8 images in [0, 1] units, rounded to four digits."""
    total, square = (sum(batch.to(torch.float64).div(255).pow(power).sum((0, 2, 3)) for batch in images.split(256))
                     for power in (1, 2))
    count = images.shape[0] * images.shape[2] * images.shape[3]
    mean = total / count
    std = (square / count - mean**2).clamp_min(1e-6).sqrt()
    return tuple(round(value, 4) for value in mean.tolist()), tuple(round(value, 4) for value in std.tolist())


def _autocast(device, precision):
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def make_query(model, recipe, device):
    """What an auditor sees of a model: a function from uint8 images (n, 3, H, W) to float32 logits (n, classes)."""
    model = model.to(device, memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def query(images):
        with _autocast(device, recipe.precision):
            return model(normalize(images.to(device, non_blocking=True), recipe.mean, recipe.std)).float()
    return query


def train_model(model, images, labels, recipe, device, progress_path, settings, validation=None, team=ALONE):
    """Train `model` in place and leave the chosen weights in it: the best on validation data, else the last.

    images: uint8 (N, 3, H, W) and labels: int64 (N,), moved to the device once. validation: None or the same pair.
    progress_path: the file that makes the run resumable. It holds `settings`, and is refused if those differ; a run
    that is killed at any moment and started again ends with the same weights bit for bit on the same machine, because
    every epoch's draws come from (seed, epoch) alone. team: the processes that train this model together (torchrun);
    all call this with the same arguments. Returns the history: a list with one dict per epoch.
    """
    images, labels = images.to(device), labels.to(device)
    model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum,
                                weight_decay=recipe.weight_decay)
    history, best = _load_progress(progress_path, model, optimizer, settings)
    saved_at = time.monotonic()
    bar = tqdm(range(len(history), recipe.epoch), "training", recipe.epoch, initial=len(history),
               disable=None if team.leader else True)
    with _deterministic(), team.training(model) as parallel:
        for epoch in bar:
            record = _train_epoch(parallel, images, labels, recipe, optimizer, epoch, team)
            if validation is not None:
                record["val_accuracy"] = accuracy(make_query(model, recipe, device), *validation, 4 * recipe.batch_size)
            history.append(record)
            if validation is None or record["val_accuracy"] > max(
                    (past["val_accuracy"] for past in history[:-1]), default=-1):
                best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            bar.set_postfix({name: f"{value:.3f}" for name, value in record.items() if name != "epoch"})
            if team.leader and time.monotonic() - saved_at > PROGRESS_SECONDS:
                _save_progress(progress_path, model, optimizer, settings, history, best)
                saved_at = time.monotonic()
    model.load_state_dict(best)
    return history


def _train_epoch(model, images, labels, recipe, optimizer, epoch, team):
    """One pass over the training images in an order, crops and flips that (seed, epoch) decides."""
    count, device = len(images), images.device
    draws = key_generator(recipe.seed, "epoch", epoch)
    order = torch.from_numpy(draws.permutation(count)).to(device)
    shifts = torch.from_numpy(draws.integers(0, 2 * recipe.crop_padding + 1, (count, 2))).to(device)
    flips = torch.from_numpy(draws.random(count) < 0.5).to(device)
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr_at(epoch)
    model.train()
    loss_sum, correct, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
    with seeded(recipe.seed, "layers", epoch):
        for start in range(0, count, recipe.batch_size):
            draw = slice(start, start + recipe.batch_size)
            together = len(order[draw])
            if together < max(2, team.size) and start > 0:
                break  # Batch normalisation can't be computed on one image; another one is left out next epoch.
            chosen, shift, flip = (team.share(part[draw]) for part in (order, shifts, flips))
            batch = augment(images[chosen], shift, flip, recipe.crop_padding)
            with _autocast(device, recipe.precision):
                logits = model(normalize(batch, recipe.mean, recipe.std))
            loss = F.cross_entropy(logits.float(), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            # Gradients are averaged over the processes, whose shares may differ by one image.
            (loss * (len(chosen) * team.size / together)).backward()
            optimizer.step()
            # Summed on the device: reading a number here would make the device wait in every step.
            loss_sum += loss.detach() * len(chosen)
            correct += (logits.detach().argmax(1) == labels[chosen]).sum()
            seen += len(chosen)
    loss_sum, correct, seen = team.total(torch.stack([loss_sum, correct, torch.full_like(correct, seen)])).tolist()
    if not math.isfinite(loss := loss_sum / seen):
        raise UserError(f"training diverged in epoch {epoch + 1} (loss {loss}); lower --lr (now {recipe.lr})")
    return {"epoch": epoch + 1, "loss": loss, "train_accuracy": correct / seen}


def _save_progress(path, model, optimizer, settings, history, best):
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors[f"momentum.{index}"] = state["momentum_buffer"]
    save_model(path, tensors, {"settings": settings, "history": history})


def _load_progress(path, model, optimizer, settings):
    """Continue from `path` when it is there: returns (history, best weights), ([], None) otherwise."""
    if not path.exists():
        return [], None
    tensors, stored = load_model(path)
    check_same_settings(stored.get("settings"), settings, path)
    parts = {prefix: {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
             for prefix in ("model.", "best.", "momentum.")}
    state = optimizer.state_dict()
    state["state"] = {int(index): {"momentum_buffer": tensor} for index, tensor in parts["momentum."].items()}
    try:
        model.load_state_dict(parts["model."])
        optimizer.load_state_dict(state)
        return stored["history"], parts["best."]
    except (KeyError, RuntimeError, ValueError):
        raise UserError(f"{path} does not hold an unfinished run of this network; delete it and start again") from None


@contextmanager
def _deterministic():
    """Same arguments, same bits: cuDNN's deterministic kernels inside the block, the caller's choice after it."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def accuracy(query, images, labels, batch_size=1024, rows=None):
    """Share of images whose top class is the label, in constant memory. rows: which ones (all, unless told)."""
    rows = torch.arange(len(labels)) if rows is None else rows
    bar = tqdm(rows.split(batch_size), "accuracy", disable=True if len(rows) < 10 * batch_size else None, leave=False)
    hits = sum(int((query(images[part]).argmax(1).cpu() == labels[part].cpu()).sum()) for part in bar)
    return hits / len(rows)


# ======================================================================================================================
# Set-based membership inference (section 4.4, algorithm 1)
# ======================================================================================================================

SIGNALS = ("cross_entropy", "scaled_loss")


@dataclass(frozen=True)
class Users:
    """Who owns which samples, and under which key they are marked.

    samples: int64 (users, K), rows of the data set; classes: int64 (users,), the label of all samples of a user;
    key: 32 bytes; user number u and sample number k of that user give the mark, so that order means nothing.
    """

    samples: np.ndarray
    classes: np.ndarray
    key: bytes

    def __post_init__(self):
        if self.samples.ndim != 2 or self.classes.shape != self.samples.shape[:1]:
            raise ValueError(f"samples {self.samples.shape} and classes {self.classes.shape} don't fit together")

    def __len__(self):
        return len(self.samples)


def draw_target_users(labels, pool, classes, samples_per_user, key):
    """One user for each entry of `classes`, each with `samples_per_user` images of that class, no image twice.

    labels: int64 (N,); pool: rows that may be used. Raises UserError when a class has too few images (defect 4).
    """
    labels, pool, classes = np.asarray(labels), np.asarray(pool), np.asarray(classes, dtype=np.int64)
    samples = np.empty((len(classes), samples_per_user), dtype=np.int64)
    for label in np.unique(classes):
        members, owners = pool[labels[pool] == label], np.flatnonzero(classes == label)
        needed = len(owners) * samples_per_user
        if len(members) < needed:
            raise UserError(f"class {label} has {len(members)} images to choose from, but {len(owners)} user(s) x "
                            f"{samples_per_user} samples need {needed}; lower --marked_samples_per_user or the number "
                            "of users, raise --train_size, or choose another class")
        chosen = key_generator(key, "target users", int(label)).permutation(members)[:needed]
        samples[owners] = chosen.reshape(len(owners), samples_per_user)
    return Users(samples, classes, key)


def draw_non_member_users(labels, pool, count, samples_per_user, key, classes=None):
    """`count` users of the out-world, each with distinct images of one class; users may share images (section 5).

    classes: the class wished for each user, or None for one drawn anew each time. A class with fewer images than a user
    needs is replaced by another one, never by a short group (defect 4). Raises UserError when no class has enough.
    """
    labels, pool = np.asarray(labels), np.asarray(pool)
    members = {int(label): pool[labels[pool] == label] for label in np.unique(labels[pool])}
    enough = [label for label, rows in members.items() if len(rows) >= samples_per_user]
    if not enough:
        raise UserError(f"no class outside the training set has the {samples_per_user} images of a non-member user; "
                        "lower --marked_samples_per_user or --train_size")
    draws = key_generator(key, "non-member users")
    drawn = draws.choice(enough, count)
    if classes is not None:
        drawn = np.where(np.isin(classes, enough), classes, drawn)
    samples = np.stack([draws.choice(members[int(label)], samples_per_user, replace=False) for label in drawn])
    return Users(samples, drawn.astype(np.int64), key)


def sample_signals(logits, labels):
    """Membership signals of each sample, float64 and lower for members: tensors (n,) for SIGNALS, and `correct`.

    cross_entropy is -log p_y; scaled_loss is LiRA's logit scaling with the sign turned, log(1 - p_y) - log p_y, which
    is the logsumexp of the other logits minus the label's: no probability is ever rounded to 0 or 1.
    """
    logits = logits.to(torch.float64) if logits.device.type != "mps" else logits.cpu().to(torch.float64)
    column = labels.to(logits.device)[:, None]
    scaled = logits.scatter(1, column, -math.inf).logsumexp(1) - logits.gather(1, column)[:, 0]
    # -log p = log(1 + exp(scaled)), which keeps its digits where p rounds to 1.
    return {"cross_entropy": -F.logsigmoid(-scaled), "scaled_loss": scaled,
            "correct": (logits.argmax(1) == column[:, 0]).to(torch.float64)}


def score_users(query, images, users, marking, device, batch_size=512, description="users"):
    """Ask the model about every user's marked samples, batch by batch in constant memory.

    query: see `make_query`; images: whatever indexes to uint8 (n, 3, H, W); they are marked on `device` on their way to
    the model. Returns a dict of float64 arrays (users, K) for each of SIGNALS and `correct`. Raises UserError for
    outputs that are not finite.
    """
    shape = users.samples.shape
    owners, numbers = (index.reshape(-1) for index in np.indices(shape))
    rows, labels = torch.from_numpy(users.samples.reshape(-1)), torch.from_numpy(users.classes[owners])
    collected = []
    bar = tqdm(total=len(rows), desc=f"audit: {description}", unit="image", disable=None, leave=False)
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        batch = mark_images(images[rows[part]].to(device), users.key, owners[part], numbers[part], marking)
        collected.append(sample_signals(query(batch), labels[part]))
        bar.update(len(batch))
    bar.close()
    signals = {name: torch.cat([part[name] for part in collected]).cpu().numpy().reshape(shape)
               for name in collected[0]}
    for name in SIGNALS:
        if not np.isfinite(signals[name]).all():
            raise UserError("the model returned logits that are not finite for "
                            f"{int((~np.isfinite(signals[name])).sum())} of {len(rows)} images; is its file damaged?")
    return signals


def clopper_pearson(successes, trials, confidence=0.95):
    """Exact two-sided binomial interval [low, high] for a rate."""
    interval = binomtest(int(successes), int(trials)).proportion_ci(confidence, method="exact")
    return [float(interval.low), float(interval.high)]


def threshold_at_fpr(non_member_scores, fpr):
    """Algorithm 1, line 4: the tau for which at most a share `fpr` of the out-world's scores is below it."""
    ranked = np.sort(np.asarray(non_member_scores, dtype=np.float64).ravel())
    allowed = math.floor(fpr * len(ranked) + 1e-9)
    return math.inf if allowed >= len(ranked) else float(ranked[allowed])


def membership_inference(member_losses, non_member_losses, instance_mi=False, fprs=(1e-3, 1e-4, 0.0)):
    """How well losses tell member users from non-member users (section 3.1.2).

    member_losses: (users, K), non_member_losses: (other users, K'), the same signal on both sides, lower for members.
    Set-based scores are the users' means; instance_mi takes every sample by itself. Returns a JSON-ready dict:
    FPR@100%TPR, TPR at each of `fprs` and AUC, each rate with its 95 % Clopper-Pearson interval.
    """
    member, other = (np.asarray(losses, dtype=np.float64) for losses in (member_losses, non_member_losses))
    if member.ndim != 2 or other.ndim != 2 or 0 in member.shape or 0 in other.shape:
        raise ValueError(f"losses must be (users, samples), not {member.shape} and {other.shape}")
    member, other = (losses.ravel() if instance_mi else losses.mean(axis=1) for losses in (member, other))
    false_positives = int((other <= member.max()).sum())
    at_fpr = []
    for fpr in fprs:
        hits = int((member < threshold_at_fpr(other, fpr)).sum())
        at_fpr.append({"fpr": fpr, "tpr": hits / len(member), "interval": clopper_pearson(hits, len(member))})
    truth = np.concatenate([np.ones(len(member)), np.zeros(len(other))])
    return {"members": len(member), "non_members": len(other),
            "fpr_at_100_tpr": false_positives / len(other), "false_positives": false_positives,
            "fpr_interval": clopper_pearson(false_positives, len(other)), "tpr_at_fpr": at_fpr,
            "auc": float(roc_auc_score(truth, -np.concatenate([member, other])))}


def verify_provenance(user_losses, non_member_losses, fpr=1e-3):
    """Algorithm 1: which users' data the model was trained on.

    user_losses: (users, K), non_member_losses: (other users, K'). Returns (bool array (users,): used, threshold tau);
    "used" is a mean loss strictly below tau, so that the share of accused out-world users never exceeds `fpr`.
    """
    tau = threshold_at_fpr(np.asarray(non_member_losses).mean(axis=1), fpr)
    return np.asarray(user_losses).mean(axis=1) < tau, tau

"""MembershipTracker's core, in three sections: marking | training loop | set-based membership inference.

Paper: Chen and Pattabiraman, "Anonymity Unveiled: A Practical Framework for Auditing Data Use in Deep Learning Models"
(CCS'25). Equation, section and algorithm numbers below are the paper's.

One representation flows through all of it: images are uint8 tensors (N, 3, H, W), labels int64 (N,), and whatever is
known per user has one row a user: losses are (users, samples). Randomness comes from a key that is passed in; importing
this module seeds nothing, and no function here touches the caller's generators.

Public, marking: derive_key, key_generator, key_words, Marking, UNMARKED, mark_images, outlier_features, noise_fields,
perlin_draws, perlin_signs, perlin_octaves, gabor_signs, STRIPE_COLORS, STRIPES, REFERENCE_SIZE, NOISE_TYPES.
Public, training: TrainingSettings, TrainingHooks, PLAIN_TRAINING, train_model, train_epoch, epoch_draws, make_query,
in_pieces, images_at_once, accuracy, choose_device, choose_precision, autocast, deterministic, seeded, normalize,
augment, channel_statistics.
Public, inference: Users, draw_target_users, draw_non_member_users, sample_signals, score_users, SIGNALS,
membership_inference, verify_provenance, threshold_at_fpr, clopper_pearson.
"""

import hashlib
import math
import operator
import struct
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import betaincinv
from sklearn.metrics import roc_auc_score

from kit import noise as fields
from kit.cores import Cores
from kit.distributed import ALONE
from kit.errors import UserError
from kit.files import check_same_settings, load_model, save_model
from kit.names import NOISE_TYPES
from kit.noise import perlin_octaves  # noqa: F401  (part of marking, kept where it is computed)
from kit.progress import Progress

# ======================================================================================================================
# Marking (section 4.3)
# ======================================================================================================================

# Saturated and far apart, so that 11 names are 11 colours also after toning down.
STRIPE_COLORS = {
    "white": (255, 255, 255),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "purple": (128, 0, 128),
    "orange": (255, 165, 0),
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
    "brown": (139, 69, 19),
    "pink": (255, 192, 203),
}
STRIPES = 16
# Larger images carry the mark that a copy scaled to this many pixels would, since training scales them down to it.
REFERENCE_SIZE = 224

# The generator of Co et al. (CCS'19): whole numbers, the upper end excluded.
PERIOD_PIXELS, OCTAVES, FREQ_SINE = (30, 60), (1, 5), (20, 60)


def derive_key(*parts):
    """A 32-byte key out of whole numbers, str and bytes: SHA-256 of an encoding in which no two sequences meet."""
    digest = hashlib.sha256()
    for part in parts:
        # operator.index: 5, np.int64(5) and np.uint8(5) are one key: a mark must not depend on a dtype.
        kind, text = (
            ("bytes", part)
            if isinstance(part, bytes)
            else ("str", part.encode())
            if isinstance(part, str)
            else ("int", str(operator.index(part)).encode())
        )
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
            raise UserError(
                f"--img_blending_ratio {self.img_blending_ratio} is not in [0, 1]", advice="the paper uses 0.7"
            )
        if self.noise_injection_type not in NOISE_TYPES:
            raise UserError(
                f"--noise_injection_type {self.noise_injection_type} is unknown", advice=f"use one of {NOISE_TYPES}"
            )
        if not 0 <= self.noise_norm <= 255:
            raise UserError(
                f"--noise_norm {self.noise_norm} is not in [0, 255] (units of 1/255)", advice="the paper uses 8"
            )

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
            marked[part] = _blend(
                images[part],
                None if noise is None else noise[part],
                None if outlier is None else outlier[part],
                marking,
            )
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
        return (
            images
            if images.shape[-2:] == (height, width)
            else F.interpolate(images, (height, width), mode="bilinear", antialias=True)
        )
    # 16 stripes out of 8 words: the high and the low half of each.
    halves = np.concatenate([words >> 16, words & 0xFFFF], axis=1).astype(np.int64)
    palette = np.array(list(STRIPE_COLORS.values()), dtype=np.float32) / 8 + 128
    stripes = palette[(halves * len(palette)) >> 16]
    rows = stripes[:, np.arange(height) * STRIPES // height][position]
    return torch.from_numpy(rows.transpose(0, 2, 1)[..., None].copy()).to(device)


def noise_fields(key, users, indices, height, width, marking, device="cpu"):
    """Noise in 1/255 units, float32, within +-noise_norm, broadcastable to (N, 3, height, width).

    "perlin" and "gabor" are one field for the three channels. "uniform" draws every value of every channel from two,
    +noise_norm and -noise_norm, as the published artifact has it; "uniform_continuous" from all between them.
    """
    return _noise_pattern(key, users, indices, height, width, marking, device) * marking.noise_norm


def _noise_pattern(key, users, indices, height, width, marking, device):
    if marking.noise_injection_type in ("perlin", "gabor"):
        signs = perlin_signs if marking.noise_injection_type == "perlin" else gabor_signs
        return signs(key, users, indices, height, width, device)
    words = key_words(key, "uniform noise", users, indices)
    rows, columns = (_reference_coordinates(side, height, width).round().astype(np.int64) for side in (height, width))
    draws = [
        np.random.Generator(np.random.Philox(key=row[:4].view("<u8"))).random(
            (3, rows[-1] + 1, columns[-1] + 1), np.float32
        )
        for row in np.ascontiguousarray(words)
    ]
    draws = torch.from_numpy(np.stack(draws)[:, :, rows[:, None], columns]).to(device) * 2 - 1
    return draws if marking.noise_injection_type == "uniform_continuous" else (draws >= 0).to(torch.int8) * 2 - 1


def _reference_coordinates(side, height, width):
    """Where the pixels 0..side-1 of an image of (height, width) are in its copy scaled to REFERENCE_SIZE: float64.

    Pixel centres go to pixel centres, as in scaling. Up to REFERENCE_SIZE that is the pixel's own number.
    """
    scale = max(1.0, min(height, width) / REFERENCE_SIZE)
    return (np.arange(side) + 0.5) / scale - 0.5


def perlin_draws(key, users, indices):
    """What the key draws for each image: period in pixels, octaves, freq_sine (N,), and offsets (N, 2) in cells."""
    words = key_words(key, "perlin noise", users, indices)
    period, octaves, freq_sine = (
        _below(words[:, column], bounds) for column, bounds in enumerate((PERIOD_PIXELS, OCTAVES, FREQ_SINE))
    )
    return period, octaves, freq_sine, words[:, 3:5] / 2.0**24


def perlin_signs(key, users, indices, height, width, device="cpu"):
    """Eq. 2-3 with the generator of Co et al. (CCS'19): int8 (N, 1, height, width) of -1, 0 and 1.

    The sum of octaves S is scaled to [0, 1] over the image; the noise is the sign of sin(S * freq_sine * pi) around the
    middle of its range. The key draws period, octaves, freq_sine and an offset in [0, 256) lattice cells on each axis;
    without the offset there would be only 30 * 4 * 40 fields in the world, and two users could share one.
    """
    period, octaves, freq_sine, offsets = perlin_draws(key, users, indices)
    rows, columns = (_reference_coordinates(side, height, width) for side in (height, width))
    return fields.perlin_signs(period, octaves, freq_sine, offsets, rows, columns, PERIOD_PIXELS[0], device)


def gabor_signs(key, users, indices, height, width, device="cpu"):
    """Gabor noise, which the paper leaves to future work (appendix C.1.3): int8 (N, 1, height, width) of -1, 0 and 1.

    The key draws, per image, width of the envelope, wavelength and direction, and where the kernels lie.
    """
    words = key_words(key, "gabor noise", users, indices)
    rows, columns = (_reference_coordinates(side, height, width) for side in (height, width))
    return fields.gabor_signs(words, rows, columns, device)


# ======================================================================================================================
# Training loop (appendix A)
# ======================================================================================================================

CACHED_PIXELS = 1 << 17  # of images that a CPU is asked about at once, see `images_at_once`
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
        raise UserError(
            f"--device {name} can't be used here ({str(error).splitlines()[0]})", advice="use auto or cpu"
        ) from None
    return device


def choose_precision(name, device):
    """ "auto" is bfloat16 where the hardware multiplies it (2-3 times faster on such CPUs), float32 elsewhere."""
    if name != "auto":
        return name
    if device.type == "cpu":
        # The second question is oneDNN's, which does the work and may have been told to use less than there is.
        library = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
        helps = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)() and library()
    else:
        helps = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if helps else "float32"


class TrainingHooks:
    """What a countermeasure may change in the training loop; as it stands, nothing: the paper's training.

    stop_after: None, or the number of epochs after which training ends early, the schedule being that of all epochs.
    """

    stop_after = None

    def attach(self, model, optimizer):
        """What the loop calls and steps in place of the model and its SGD: (model, optimizer)."""
        return model, optimizer

    def steps(self, draws, count, batch_size):
        """Which of `count` rows each step of an epoch trains on: a list of int64 arrays. draws: numpy generator."""
        order = draws.permutation(count)
        return [order[start : start + batch_size] for start in range(0, count, batch_size)]

    def transform(self, images):
        """Change an augmented batch: uint8 (N, 3, H, W) to the same, or to floats in units of 1/255.

        Random draws may come from torch's global generator, which is seeded for each epoch.
        """
        return images

    def loss(self, logits, labels):
        """Mean loss of float32 logits (N, C); labels int64 (N,), or probabilities float32 (N, C)."""
        return F.cross_entropy(logits, labels)

    def trained(self, model, epoch):
        """Called after each epoch, counted from 0; a resumed run may come to an epoch again, with the same bits."""


PLAIN_TRAINING = TrainingHooks()


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
    total, square = (
        sum(batch.to(torch.float64).div(255).pow(power).sum((0, 2, 3)) for batch in images.split(256))
        for power in (1, 2)
    )
    count = images.shape[0] * images.shape[2] * images.shape[3]
    mean = total / count
    std = (square / count - mean**2).clamp_min(1e-6).sqrt()
    return tuple(round(value, 4) for value in mean.tolist()), tuple(round(value, 4) for value in std.tolist())


def autocast(device, precision):
    """Context manager: what runs inside is computed in `precision`, "float32" or "bfloat16"."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def make_query(model, recipe, device):
    """What an auditor sees of a model: a function from uint8 images (n, 3, H, W) to float32 logits (n, classes)."""
    model = model.to(device, memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def query(images):
        images = images.to(device, non_blocking=True)
        with autocast(device, recipe.precision):
            return torch.cat(
                [model(normalize(part, recipe.mean, recipe.std)).float() for part in in_pieces(images, device)]
            )

    return query


def in_pieces(images, device):
    """A batch (n, C, H, W) in as many images at a time as a network is asked about fastest: on a CPU `images_at_once`,
    elsewhere all."""
    return images.split(images_at_once(*images.shape[-2:]) if device.type == "cpu" else max(1, len(images)))


def images_at_once(height, width):
    """Of how many images what a network makes of them stays in a CPU's cache (benchmarks/query.py)."""
    return max(8, CACHED_PIXELS // max(1, height * width))


def train_model(
    model, images, labels, recipe, device, progress_path, settings, validation=None, team=ALONE, hooks=PLAIN_TRAINING
):
    """Train `model` in place and leave the chosen weights in it: the best on validation data, else the last.

    images: uint8 (N, 3, H, W) and labels: int64 (N,), or probabilities float32 (N, classes), moved to the device once.
    validation: None or the same pair.
    progress_path: the file that makes the run resumable. It holds `settings`, and is refused if those differ; a run
    that is killed at any moment and started again ends with the same weights bit for bit on the same machine, because
    every epoch's draws come from (seed, epoch) alone. team: the processes that train this model together (torchrun);
    all call this with the same arguments. hooks: see TrainingHooks. Returns the history: a list, one dict an epoch.
    """
    images, labels = images.to(device), labels.to(device)
    model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    attached, optimizer = hooks.attach(model, optimizer)
    history, best = _load_progress(progress_path, model, optimizer, settings)
    saved_at = time.monotonic()
    cores = Cores(torch.get_num_threads() if device.type == "cpu" else 1)
    epochs = min(recipe.epoch, hooks.stop_after or recipe.epoch)
    bar = Progress(
        range(len(history), epochs), "training", epochs, initial=len(history), disable=not team.leader, leave=True
    )
    with deterministic(), team.training(attached) as parallel:
        for epoch in bar:
            record = train_epoch(parallel, images, labels, recipe, optimizer, epoch, team, hooks)
            if validation is not None:
                record["val_accuracy"] = accuracy(make_query(model, recipe, device), *validation, 4 * recipe.batch_size)
            history.append(record)
            if team.leader:
                hooks.trained(model, epoch)
                cores.look()
            if validation is None or record["val_accuracy"] > max(
                (past["val_accuracy"] for past in history[:-1]), default=-1
            ):
                best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            bar.set_postfix({name: f"{value:.3f}" for name, value in record.items() if name != "epoch"})
            if team.leader and time.monotonic() - saved_at > PROGRESS_SECONDS:
                _save_progress(progress_path, model, optimizer, settings, history, best)
                saved_at = time.monotonic()
    model.load_state_dict(best)
    return history


def epoch_draws(recipe, epoch, count, hooks=PLAIN_TRAINING):
    """What (seed, epoch) decides about training on `count` images: rows int64 (S,) of all steps one after the other,
    shifts int64 (S, 2) and flips bool (S,) for `augment`, and the sizes of the steps, a list."""
    draws = key_generator(recipe.seed, "epoch", epoch)
    steps = hooks.steps(draws, count, recipe.batch_size)
    order = np.concatenate(steps)
    shifts = draws.integers(0, 2 * recipe.crop_padding + 1, (len(order), 2))
    flips = draws.random(len(order)) < 0.5
    return *map(torch.from_numpy, (order, shifts, flips)), [len(rows) for rows in steps]


def train_epoch(model, images, labels, recipe, optimizer, epoch, team=ALONE, hooks=PLAIN_TRAINING):
    """One pass of `train_model` over its images in an order, crops and flips that (seed, epoch) decides.

    model, images and labels are on the device; epoch counts from 0. Returns its row of the history, a dict.
    """
    device = images.device
    *drawn, sizes = epoch_draws(recipe, epoch, len(images), hooks)
    order, shifts, flips = (part.to(device) for part in drawn)
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr_at(epoch)
    model.train()
    loss_sum, correct, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
    with seeded(recipe.seed, "layers", epoch):
        for together, end in zip(sizes, np.cumsum(sizes).tolist(), strict=True):
            draw = slice(end - together, end)
            if together < max(2, team.size) and end > together:
                continue  # Batch normalisation can't be computed on one image; another one is left out next epoch.
            chosen, shift, flip = (team.share(part[draw]) for part in (order, shifts, flips))
            batch = hooks.transform(augment(images[chosen], shift, flip, recipe.crop_padding))
            with autocast(device, recipe.precision):
                logits = model(normalize(batch, recipe.mean, recipe.std))
            truth = labels[chosen]
            loss = hooks.loss(logits.float(), truth)
            optimizer.zero_grad(set_to_none=True)
            # Gradients are averaged over the processes, whose shares may differ by one image.
            (loss * (len(chosen) * team.size / together)).backward()
            optimizer.step()
            # Summed on the device: reading a number here would make the device wait in every step.
            loss_sum += loss.detach() * len(chosen)
            correct += (logits.detach().argmax(1) == (truth if truth.ndim == 1 else truth.argmax(1))).sum()
            seen += len(chosen)
    loss_sum, correct, seen = team.total(torch.stack([loss_sum, correct, torch.full_like(correct, seen)])).tolist()
    if not math.isfinite(loss := loss_sum / seen):
        raise UserError(f"training diverged in epoch {epoch + 1} (loss {loss})", advice=f"lower --lr (now {recipe.lr})")
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
    parts = {
        prefix: {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in ("model.", "best.", "momentum.")
    }
    state = optimizer.state_dict()
    state["state"] = {int(index): {"momentum_buffer": tensor} for index, tensor in parts["momentum."].items()}
    try:
        model.load_state_dict(parts["model."])
        optimizer.load_state_dict(state)
        return stored["history"], parts["best."]
    except (KeyError, RuntimeError, ValueError):
        raise UserError(
            f"{path} does not hold an unfinished run of this network", advice="delete it and start again"
        ) from None


@contextmanager
def deterministic():
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
    bar = Progress(rows.split(batch_size), "accuracy", disable=len(rows) < 10 * batch_size)
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

    labels: int64 (N,); pool: rows that may be used. Raises UserError when a class has too few images: a short
    group would make every later user's average a mix of two users.
    """
    labels, pool, classes = np.asarray(labels), np.asarray(pool), np.asarray(classes, dtype=np.int64)
    samples = np.empty((len(classes), samples_per_user), dtype=np.int64)
    for label in np.unique(classes):
        members, owners = pool[labels[pool] == label], np.flatnonzero(classes == label)
        needed = len(owners) * samples_per_user
        if len(members) < needed:
            raise UserError(
                f"class {label} has {len(members)} images to choose from, but {len(owners)} user(s) x "
                f"{samples_per_user} samples need {needed}",
                advice="lower --marked_samples_per_user or the number "
                "of users, raise --train_size, or choose another class",
            )
        chosen = key_generator(key, "target users", int(label)).permutation(members)[:needed]
        samples[owners] = chosen.reshape(len(owners), samples_per_user)
    return Users(samples, classes, key)


def draw_non_member_users(labels, pool, count, samples_per_user, key, classes=None):
    """`count` users of the out-world, each with distinct images of one class; users may share images (section 5).

    classes: the class wished for each user, or None for one drawn anew each time. A class with fewer images than a user
    needs is replaced by another one, never by a short group. Raises UserError when no class has enough.
    """
    labels, pool = np.asarray(labels), np.asarray(pool)
    members = {int(label): pool[labels[pool] == label] for label in np.unique(labels[pool])}
    enough = [label for label, rows in members.items() if len(rows) >= samples_per_user]
    if not enough:
        raise UserError(
            f"no class outside the training set has the {samples_per_user} images of a non-member user",
            advice="lower --marked_samples_per_user or --train_size",
        )
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
    return {
        "cross_entropy": -F.logsigmoid(-scaled),
        "scaled_loss": scaled,
        "correct": (logits.argmax(1) == column[:, 0]).to(torch.float64),
    }


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
    with Progress(total=len(rows), desc=f"audit: {description}", unit="image") as bar:
        for start in range(0, len(rows), batch_size):
            part = slice(start, start + batch_size)
            batch = mark_images(images[rows[part]].to(device), users.key, owners[part], numbers[part], marking)
            collected.append(sample_signals(query(batch), labels[part]))
            bar.update(len(batch))
    signals = {
        name: torch.cat([part[name] for part in collected]).cpu().numpy().reshape(shape) for name in collected[0]
    }
    for name in SIGNALS:
        if not np.isfinite(signals[name]).all():
            raise UserError(
                "the model returned logits that are not finite for "
                f"{int((~np.isfinite(signals[name])).sum())} of {len(rows)} images",
                advice="is its file damaged?",
            )
    return signals


def clopper_pearson(successes, trials, confidence=0.95):
    """Exact two-sided binomial interval [low, high] for a rate."""
    hits, misses, tail = int(successes), int(trials) - int(successes), (1 - confidence) / 2
    if hits < 0 or misses < 0 or not trials:
        raise ValueError(f"{successes} of {trials} is no rate")
    # As quantiles of beta distributions, some hundred times as fast as scipy's `binomtest`, which searches for them.
    low = float(betaincinv(hits, misses + 1, tail)) if hits else 0.0
    return [low, float(betaincinv(hits + 1, misses, 1 - tail)) if misses else 1.0]


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
    return {
        "members": len(member),
        "non_members": len(other),
        "fpr_at_100_tpr": false_positives / len(other),
        "false_positives": false_positives,
        "fpr_interval": clopper_pearson(false_positives, len(other)),
        "tpr_at_fpr": at_fpr,
        "auc": float(roc_auc_score(truth, -np.concatenate([member, other]))),
    }


def verify_provenance(user_losses, non_member_losses, fpr=1e-3):
    """Algorithm 1: which users' data the model was trained on.

    user_losses: (users, K), non_member_losses: (other users, K'). Returns (bool array (users,): used, threshold tau);
    "used" is a mean loss strictly below tau, so that the share of accused out-world users never exceeds `fpr`.
    """
    tau = threshold_at_fpr(np.asarray(non_member_losses).mean(axis=1), fpr)
    return np.asarray(user_losses).mean(axis=1) < tau, tau

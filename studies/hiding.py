"""How a mark may be hidden from eyes: a marked photo made less plain beside its original, for studies/visibility.py.

All take (originals, marked), uint8 (N, 3, H, W), and return what is published instead, of the same form: the original
and a part of the change that marking made. None is offered by data_marking.py.

Public: chroma, blue_yellow, just_noticeable, textured, luminance, threshold, busy.
"""

import numpy as np
import torch
from scipy.ndimage import correlate, uniform_filter

# Of R, G and B in luminance (ITU-R BT.601), those of JPEG.
WEIGHTS = np.array([0.299, 0.587, 0.114])
# A change by 1 of blue with as much of its opposite as leaves luminance alone. Eyes resolve it worst.
BLUE_YELLOW = np.array([-0.114 / 0.886, -0.114 / 0.886, 1.0])
SIDE = 5  # of the neighbourhood, in pixels, in both models below
# Chou and Li, "A perceptually tuned subband image coder based on the measure of just-noticeable-distortion profile"
# (IEEE Transactions on Circuits and Systems for Video Technology 5(6), 1995), its model in the spatial domain: weights
# of the background, and of the edges in four directions.
BACKGROUND = np.array([[1, 1, 1, 1, 1], [1, 2, 2, 2, 1], [1, 2, 0, 2, 1], [1, 2, 2, 2, 1], [1, 1, 1, 1, 1]]) / 32
_ACROSS = np.array([[0, 0, 0, 0, 0], [1, 3, 8, 3, 1], [0, 0, 0, 0, 0], [-1, -3, -8, -3, -1], [0, 0, 0, 0, 0]]) / 16
_SLANTED = np.array([[0, 0, 1, 0, 0], [0, 8, 3, 0, 0], [1, 3, 0, -3, -1], [0, 0, -3, -8, 0], [0, 0, -1, 0, 0]]) / 16
EDGES = (_ACROSS, _ACROSS.T, _SLANTED, _SLANTED[:, ::-1])
# Voloshynovskiy et al., "A stochastic approach to content adaptive digital image watermarking" (Information Hiding
# 1999): the constant D of the noise visibility function, 50 to 100 in the paper.
MASKING = 75


def luminance(images):
    """float64 (N, H, W) of images or of changes, (N, 3, H, W)."""
    return np.tensordot(np.asarray(images, dtype=np.float64), WEIGHTS, axes=(1, 0))


def chroma(originals, marked):
    """The change in colour alone: noise that is the same in all channels goes, and so does the light of stripes."""
    change = _change(originals, marked)
    return _with(originals, change - luminance(change)[:, None])


def blue_yellow(originals, marked):
    """As `chroma`, but what would have changed luminance changes blue against yellow by as much, so noise stays."""
    change = _change(originals, marked)
    light = luminance(change)[:, None]
    return _with(originals, change - light + light * BLUE_YELLOW[:, None, None])


def just_noticeable(originals, marked):
    """The change, scaled so that its root mean square about a pixel is at most that pixel's `threshold`."""
    change = _change(originals, marked)
    strength = np.sqrt(np.maximum(_local_mean(np.square(change).mean(axis=1)), 0))  # running sums round below 0
    allowed = threshold(luminance(originals))
    weight = np.divide(allowed, strength, out=np.ones_like(strength), where=strength > allowed)
    return _with(originals, change * weight[:, None])


def textured(originals, marked):
    """The change where the photo is busy, and nothing where it is flat."""
    return _with(originals, _change(originals, marked) * busy(luminance(originals))[:, None])


def threshold(light):
    """The change of luminance that is just noticeable (Chou and Li): the larger of what eyes miss because of the
    background's luminance, and of what edges and texture about a pixel mask. float64 (N, H, W), in and out 0..255."""
    background = _filtered(light, BACKGROUND)
    adaptation = np.where(background <= 127, 17 * (1 - np.sqrt(background / 127)) + 3, 3 / 128 * (background - 127) + 3)
    edge = np.max([np.abs(_filtered(light, kernel)) for kernel in EDGES], axis=0)
    masking = edge * (0.0001 * background + 0.115) + 0.5 - 0.01 * background
    return np.maximum(adaptation, masking)


def busy(light):
    """How much a pixel's texture hides, from 0 in flat parts up to almost 1: one minus the noise visibility function
    of Voloshynovskiy et al., out of local variances. light: float64 (N, H, W) in 0..255."""
    variance = np.maximum(_local_mean(np.square(light)) - np.square(_local_mean(light)), 0)
    most = variance.max(axis=(1, 2), keepdims=True)
    weighed = np.divide(MASKING * variance, most, out=np.zeros_like(variance), where=most > 0)
    return weighed / (1 + weighed)


def _change(originals, marked):
    return marked.numpy().astype(np.float64) - originals.numpy()


def _with(originals, change):
    """Photos after a change, float64, that is weakened at pixels where a channel would leave 0..255, in all channels
    alike, because cutting one off would change luminance."""
    pixels = originals.numpy().astype(np.float64)
    room = np.where(change > 0, 255 - pixels, pixels)
    fits = np.divide(room, np.abs(change), out=np.ones_like(change), where=np.abs(change) > room)
    return torch.from_numpy(np.rint(pixels + change * fits.min(axis=1, keepdims=True)).astype(np.uint8))


def _filtered(light, kernel):
    return correlate(light, kernel[None], mode="nearest")


def _local_mean(light):
    return uniform_filter(light, (1, SIDE, SIDE), mode="nearest")

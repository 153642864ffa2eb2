"""A fixed wavelet scattering and one linear layer that learns: the network with which DP-SGD trains on CPUs.

Nothing but the linear layer is trained, and nothing of the rest was learnt from data: few weights need noise, and no
image is spent on the features (Tramer and Boneh, "Differentially Private Learning Needs Better Features (or Much More
Data)", ICLR'21). The scattering is of order 2 over 4 pixels (Bruna and Mallat 2013): moduli of Morlet wavelets of 2
scales in 8 directions, and the coarse wavelets of the fine moduli, averaged. Two things differ from Tramer and Boneh,
for speed: order 2 looks at grey images alone (10,000 CIFAR-10 images, epsilon 8, one try each: 58 % with the moduli of
all colours, 60 % with those of green), and the filters are convolutions in space, three times as fast on a CPU as
kymatio's Fourier ones (and kymatio 0.3 can't be imported beside SciPy 1.17).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from networks.layers import Classifier

_DIRECTIONS = 8
_CHANNELS = 3 * (1 + 2 * _DIRECTIONS) + _DIRECTIONS**2  # colours and their moduli; moduli of grey moduli
_GROUPS = 23
_PLACES = 8  # on each side of the averaged maps, for images of any size
_RADIUS = (3, 5)  # of the filters of each scale, in pixels
_AT_ONCE = 16  # images whose maps stay in a CPU's cache


def build(num_classes):
    """ScatterNet: 7,360 weights and a bias for each class, all of them the linear layer's."""
    return ScatterNet(num_classes)


class ScatterNet(nn.Module):
    """(N, 3, S, S) normalised images -> (N, num_classes) float32 logits; only `classifier` has parameters.

    The maps of an image are normalised in groups, by that image alone, so that it spends no privacy.
    """

    def __init__(self, num_classes):
        super().__init__()
        self.register_buffer("fine", morlets(0), persistent=False)
        self.register_buffer("coarse", morlets(1), persistent=False)
        self.normalization = nn.GroupNorm(_GROUPS, _CHANNELS, affine=False)
        self.classifier = Classifier(_CHANNELS * _PLACES**2, num_classes)

    def forward(self, x):
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            parts = x.to(self.fine.dtype).contiguous().split(_AT_ONCE)
            features = torch.cat([self.normalization(self.scatter(part)).flatten(1) for part in parts])
        return self.classifier(features)

    def scatter(self, x):
        """float (N, 3, S, S) -> (N, 115, 8, 8): averages of x, of its moduli, and of order 2 of grey."""
        fine = moduli(torch.cat([x, x.mean(1, keepdim=True)], 1), self.fine)
        coloured, grey = fine.split((3 * _DIRECTIONS, _DIRECTIONS), 1)
        coarse = moduli(torch.cat([x, grey], 1), self.coarse, stride=2)
        return torch.cat([averaged(x), averaged(coloured), averaged(coarse)], 1)


def moduli(x, wavelets, stride=1):
    """(N, C, H, W) and filters of `morlets` -> (N, 8 C, H / stride, W / stride), channel by channel."""
    maps = F.pad(x, [wavelets.shape[-1] // 2] * 4, mode="reflect").flatten(0, 1)[:, None]
    real, imaginary = F.conv2d(maps, wavelets, stride=stride).chunk(2, 1)
    return real.square_().addcmul_(imaginary, imaginary).sqrt_().unflatten(0, x.shape[:2]).flatten(1, 2)


def averaged(x):
    """(N, C, H, W) -> (N, C, 8, 8): Gaussian averages at 8 x 8 places, 0.8 of their distance wide."""
    rows, columns = (_gaussians(side, x) for side in x.shape[-2:])
    return rows @ x @ columns.T


def _gaussians(side, like):
    # (8, side): weights of a line's pixels for each place; they add up to 1
    step = side / _PLACES
    places = (torch.arange(_PLACES, dtype=like.dtype, device=like.device) + 0.5) * step - 0.5
    distances = torch.arange(side, dtype=like.dtype, device=like.device) - places[:, None]
    weights = torch.exp(-0.5 * (distances / (0.8 * step)) ** 2)
    return weights / weights.sum(1, keepdim=True)


def morlets(scale):
    """Morlet wavelets of scale 0 or 1: float32 (2 * 8, 1, K, K), real parts of 8 directions, then imaginary ones.

    A plane wave of 3/4 pi / 2^scale radians a pixel in a Gaussian window, 0.8 * 2^scale pixels wide along its direction
    and twice that across, less the multiple of the window that makes the mean 0.
    """
    places = torch.arange(-_RADIUS[scale], _RADIUS[scale] + 1, dtype=torch.float64)
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    found = []
    for angle in torch.arange(_DIRECTIONS, dtype=torch.float64) * (math.pi / _DIRECTIONS):
        along = columns * angle.cos() + rows * angle.sin()
        across = rows * angle.cos() - columns * angle.sin()
        window = torch.exp(-(along**2 + (across / 2) ** 2) / (2 * (0.8 * 2**scale) ** 2))
        window /= window.sum()
        wave = torch.polar(torch.ones_like(along), 0.75 * math.pi / 2**scale * along)
        found.append((wave - (wave * window).sum()) * window)
    found = torch.stack(found)
    return torch.cat([found.real, found.imag])[:, None].float()

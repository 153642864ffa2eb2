"""De-striping: an owner who knows the tool takes the users' stripes out of queries, or of what the model is trained on.

Marks are public but for their key: 16 horizontal stripes of 11 colours, blended at a known share. Where one stripe ends
and the next begins every column jumps by the same colour, one of few; a chain of 16 unknown colours is fitted to these
jumps (forward and backward), and what the stripes most likely added is subtracted, as far as there are stripes at all.
The noise stays, and so does the lost contrast. Needs images of 32 pixels or more, whose stripes have two rows.

Public: DestripeQueries, DestripeTraining, boundaries, opponent, jumps, stripe_evidence, flattened.
"""

import math
from typing import ClassVar

import torch
from pydantic import Field

import utils
from countermeasures.base import Countermeasure

SHARE = 1 - utils.Marking().img_blending_ratio
# Rows: luminance and two chroma axes, orthonormal. Natural edges are mostly luminance, and stripes mostly chroma.
OPPONENT = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
OPPONENT = OPPONENT / OPPONENT.norm(dim=1, keepdim=True)
PALETTE = torch.tensor(list(utils.STRIPE_COLORS.values()), dtype=torch.float32) / 8
# Standard error of a median over W columns, in median absolute deviations, for columns that are no independent draws.
ERROR, ROUNDING = 1.4826 * 1.253 * math.sqrt(3), 0.3
OUTLIER = -12.0  # log likelihood at which a jump counts as an edge of the picture, and says nothing about stripes
AT_ONCE = 2**24  # pixels


class DestripeQueries(Countermeasure):
    """Every query is de-striped before the model sees it. share: how strongly the stripes are blended in, 1 - m."""

    name: ClassVar[str] = "destripe_queries"
    needs_training: ClassVar[bool] = False
    share: float = Field(SHARE, gt=0, lt=1)

    def answer(self, query, seed, learned=None):
        return lambda images: query(flattened(images, self.share))


class DestripeTraining(Countermeasure):
    """Every training image is de-striped before training; with `queries`, every query as well."""

    name: ClassVar[str] = "destripe_training"
    share: float = Field(SHARE, gt=0, lt=1)
    queries: bool = False

    def train(self, job):
        return job.fit(job.model, flattened(job.images, self.share))

    def answer(self, query, seed, learned=None):
        return DestripeQueries(share=self.share).answer(query, seed) if self.queries else query


def flattened(images, share=SHARE):
    """Images without their stripes: uint8 (N, 3, H, W) -> the same, on their device; the mean colour stays.

    share: of the outlier features in the blend, 1 - m. An image that shows no stripes is returned as it is, as the
    subtracted colours are weighted with the probability that there are stripes (even odds beforehand).
    """
    return torch.cat([_flattened(part, share) for part in _parts(images)]) if len(images) else images.clone()


def _flattened(images, share):
    evidence, colours = _decoded(images, share)
    height = images.shape[2]
    added = torch.sigmoid(evidence)[:, None, None] * share * (colours - colours.mean(1, keepdim=True))
    rows = torch.arange(height, device=images.device) * utils.STRIPES // height
    offsets = added[:, rows].transpose(1, 2)[..., None]
    return (images - offsets).round_().clamp_(0, 255).to(torch.uint8)


def stripe_evidence(images, share=SHARE):
    """Log odds that an image has stripes, given its jumps: uint8 (N, 3, H, W) -> float32 (N,), any sign."""
    return torch.cat([_decoded(part, share)[0] for part in _parts(images)])


def _parts(images):
    return images.split(max(1, AT_ONCE // images[0].numel()))


def opponent(images):
    """Luminance and two chroma axes, float32 (N, 3, H, W) in units of 1/255, of uint8 (N, 3, H, W)."""
    return torch.einsum("ac,nchw->nahw", OPPONENT.to(images.device), images.float())


def boundaries(height):
    """The first rows of stripes 1 to 15 in images of `height` rows: int64 (15,)."""
    return torch.tensor([-(-stripe * height // utils.STRIPES) for stripe in range(1, utils.STRIPES)])


def jumps(values, rows):
    """By how much every column jumps as it enters the rows `rows` (B,), beyond the slope on both sides of the boundary.

    values: float (N, A, H, W). Returns the medians over the columns and their standard errors, float32 (N, A, B).
    """
    before, first = values[:, :, rows - 1], values[:, :, rows]
    steps = 1.5 * (first - before) - 0.5 * (values[:, :, rows + 1] - values[:, :, rows - 2])
    middle = steps.median(dim=3).values
    spread = (steps - middle[..., None]).abs().median(dim=3).values
    return middle, ERROR * spread / math.sqrt(values.shape[3]) + ROUNDING


def _decoded(images, share):
    """(log odds of stripes (N,), expected colours of the stripes (N, 16, 3) in 1/255 units if there are some)."""
    found, error = jumps(opponent(images), boundaries(images.shape[2]).to(images.device))
    found, error = (part.transpose(1, 2) for part in (found, error))  # (N, 15, 3)
    palette = PALETTE.to(images.device)
    toned = share * palette @ OPPONENT.to(images.device).T
    steps = toned[None, :] - toned[:, None]  # from colour i to colour j
    chain = _likelihood((found[:, :, None, None] - steps) / error[:, :, None, None])  # (N, 15, 11, 11)
    none = _likelihood(found / error).sum(1)
    forward, backward = _passes(chain)
    evidence = forward[:, -1].logsumexp(1) - utils.STRIPES * math.log(len(palette)) - none
    return evidence, (forward + backward).softmax(2) @ palette


def _likelihood(deviations):
    """Log likelihood of deviations in standard errors (..., 3), with a floor for edges of the picture itself."""
    return torch.logaddexp(-deviations.square().sum(-1) / 2, torch.tensor(OUTLIER, device=deviations.device))


def _passes(chain):
    """Log sums over all colours before and after each stripe: two (N, 16, 11) of transitions (N, 15, 11, 11)."""
    start = torch.zeros_like(chain[:, 0, :, 0])
    forward, backward = [start], [start]
    for step in range(chain.shape[1]):
        forward.append((forward[-1][:, :, None] + chain[:, step]).logsumexp(1))
        backward.append((backward[-1][:, None, :] + chain[:, -1 - step]).logsumexp(2))
    return torch.stack(forward, 1), torch.stack(backward[::-1], 1)

"""Refusal of marked queries: an owner who knows the tool trains a detector of marks, with keys of its own making.

Nine hand-made features of an image (`features`), and boosting of scikit-learn, whose trees are kept as tensors in the
model's file. What is flagged gets an answer that says nothing, or none.

Public: RefuseMarked, FEATURES, features, fit_detector, scores, flagged, own_marks.
"""

import math
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from sklearn.ensemble import GradientBoostingClassifier

import utils
from countermeasures import stripes
from countermeasures.base import Countermeasure

FEATURES = (
    "stripe evidence",
    "chroma jumps at stripes",
    "luminance jumps at stripes",
    "darkest value",
    "brightest value",
    "grey steps as high as the noise",
    "excess of these steps",
    "colour of fine detail",
    "contrast",
)
MARKING = utils.Marking()
# How far two neighbours are apart where the noise changes its sign, once it is blended: 11.2 of 255.
STEP = 2 * MARKING.noise_norm * MARKING.img_blending_ratio
TREES, DEPTH, MOST = 60, 3, 2000
AT_ONCE = 2**24  # values


class RefuseMarked(Countermeasure):
    """Queries that look marked are refused: `answer` is uniform (all classes alike) or none (a row of NaN).

    The detector is fitted on clean images, `share` as many as training images (at most 2,000), half of which decide
    from which score on queries are flagged: so that `false_alarms` of them are, or fewer.
    """

    name: ClassVar[str] = "refuse_marked"
    needs_training: ClassVar[bool] = False
    share: float = Field(0.1, gt=0, le=1)
    false_alarms: float = Field(0.01, ge=0, lt=1)
    answers: str = Field("uniform", pattern="^(uniform|none)$")

    @property
    def clean_share(self):
        return self.share

    @property
    def refuses(self):
        return self.answers == "none"

    def after(self, job):
        job.learned.update(fit_detector(job.clean()[0], job.seed, self.false_alarms))

    def answer(self, query, seed, learned=None):
        nothing = math.nan if self.refuses else 0.0

        def guarded(images):
            logits = query(images)
            return logits.masked_fill(flagged(images, learned).to(logits.device)[:, None], nothing)

        return guarded

    def report(self, job):
        """Shares of the clean images that did not fit the trees: flagged with a mark of the owner's, and without."""
        return {name: float(job.learned[name]) for name in ("detected", "false_alarms")}


def own_marks(images, seed):
    """Images uint8 (N, 3, H, W) as users might mark them, each with a key of its own that follows from `seed`."""
    key = utils.derive_key(seed, "the owner's own marks")
    return utils.mark_images(images, key, np.arange(len(images)), np.zeros(len(images), np.int64), MARKING)


def fit_detector(images, seed, false_alarms=0.01):
    """A detector as tensors: `feature` int64 and `threshold` (trees, 7), `value` (trees, 8), `limit`, and two shares
    of the images that did not fit the trees, `detected` once they are marked and `false_alarms`.

    images: uint8 (n, 3, H, W), unmarked, of the size of the queries; n at least 2. The same arguments, the same bits.
    """
    order = torch.from_numpy(utils.key_generator(seed, "detector").permutation(len(images))[:MOST])
    fitted, others = (images[part] for part in order.tensor_split(2))
    values = torch.cat([features(fitted), features(own_marks(fitted, seed))]).cpu().numpy()
    trees = GradientBoostingClassifier(
        n_estimators=TREES, max_depth=DEPTH, learning_rate=0.2, min_samples_leaf=max(1, len(fitted) // 100)
    )
    trees.set_params(random_state=int.from_bytes(utils.derive_key(seed, "boosting")[:4], "little"))
    learned = _tensors(trees.fit(values, np.repeat([0, 1], len(fitted))))
    clean, marked = scores(others, learned), scores(own_marks(others, seed + 1), learned)
    # Nothing is flagged that looks more like an unmarked image, even where fewer false alarms come than are allowed.
    limit = max(0.0, -utils.threshold_at_fpr(-clean.cpu().numpy(), false_alarms))
    shares = {"detected": (marked > limit).double().mean(), "false_alarms": (clean > limit).double().mean()}
    return learned | {"limit": torch.tensor(limit, dtype=torch.float64)} | shares


def _tensors(trees):
    """Boosted trees as full binary trees: the children of node k are 2 k + 1 and 2 k + 2."""
    inner, leaves = 2**DEPTH - 1, 2**DEPTH
    feature = np.zeros((len(trees.estimators_), inner), np.int64)
    threshold = np.full(feature.shape, math.inf)
    value = np.zeros((len(feature), inner + leaves))
    for number, (regressor,) in enumerate(trees.estimators_):
        tree, at = regressor.tree_, {0: 0}
        for place in range(inner + leaves):
            node = at[place] if place in at else at[(place - 1) // 2]
            at[place] = node
            value[number, place] = tree.value[node, 0, 0]
            if place < inner and tree.children_left[node] >= 0:
                feature[number, place], threshold[number, place] = tree.feature[node], tree.threshold[node]
                at[2 * place + 1], at[2 * place + 2] = tree.children_left[node], tree.children_right[node]
    found = feature, threshold, trees.learning_rate * value[:, inner:]
    return dict(zip(("feature", "threshold", "value"), map(torch.from_numpy, found), strict=True))


def scores(images, learned):
    """How marked images look, float64 (N,): the trees' log odds, up to a constant near 0. uint8 (N, 3, H, W)."""
    found = features(images).double()
    feature, threshold, value = (learned[name].to(images.device) for name in ("feature", "threshold", "value"))
    trees = torch.arange(len(feature), device=images.device)
    place = torch.zeros(len(found), len(feature), dtype=torch.int64, device=images.device)
    for _ in range(DEPTH):
        right = found.gather(1, feature[trees, place]) > threshold[trees, place]
        place = 2 * place + 1 + right
    return value[trees, place - feature.shape[1]].sum(1)


def flagged(images, learned):
    """Which images the detector takes for marked ones: bool (N,) of uint8 (N, 3, H, W), on their device."""
    return scores(images, learned) > float(learned["limit"])


def features(images):
    """FEATURES of uint8 images (N, 3, H, W) of 32 to 224 pixels: float32 (N, 9).

    - stripe evidence: how much better 16 stripes of the palette explain the jumps of the columns than none do, per
      boundary (see `stripes`).
    - chroma and luminance jumps at stripes: log of the mean jump in the rows where stripes begin, over that in all
      other rows. A picture has as many edges here as there.
    - darkest, brightest value: the 1 % and the 99 % quantile of all values. Blending with colours near 140 leaves
      neither black nor white.
    - grey steps as high as the noise: the share of horizontal neighbours that differ by 11 in all three channels alike,
      as they do where the sign of the noise changes.
    - excess of these steps: the log of their number over that of grey steps somewhat lower and higher, which are as
      frequent in pictures of the same sharpness.
    - colour of fine detail: log of chroma over luminance in horizontal second differences. Noise is grey.
    - contrast: log of the standard deviation of the luminance.
    """
    return torch.cat([_features(part) for part in images.split(max(1, AT_ONCE // images[0].numel()))])


def _features(images):
    axes = stripes.opponent(images)
    columns = [stripes.stripe_evidence(images) / (utils.STRIPES - 1), *_jumps(axes), *_extremes(images)]
    columns += [*_grey_steps(images), _colour_of_detail(axes), _log(axes[:, 0].flatten(1).std(1))]
    return torch.stack(columns, dim=1)


def _log(values):
    return (values + 1e-3).log()


def _jumps(axes):
    """Log ratios of jumps at the stripes to jumps elsewhere: chroma, luminance; each (N,)."""
    height = axes.shape[2]
    rows = torch.arange(2, height - 1)
    inside = torch.isin(rows, stripes.boundaries(height), invert=True)
    heights = stripes.jumps(axes, rows.to(axes.device))[0].abs()
    at, elsewhere = (heights[:, :, chosen.to(axes.device)].mean(2) for chosen in (~inside, inside))
    ratio = _log(at) - _log(elsewhere)
    return ratio[:, 1:].mean(1), ratio[:, 0]


def _extremes(images):
    """The 1 % and 99 % quantiles of all values, (N,) each."""
    values = images.flatten(1).float()
    few = values.shape[1] // 100 + 1
    return values.kthvalue(few).values, values.kthvalue(values.shape[1] - few + 1).values


def _grey_steps(images):
    """(share of grey steps as high as the noise, log of their number over that of lower and higher ones), (N,) each."""
    steps = images[..., 1:].to(torch.int16) - images[..., :-1]
    grey = steps.amax(1) - steps.amin(1) <= 3
    height = steps.float().mean(1).abs()

    def count(low, high):
        return (grey & (height >= STEP + low) & (height < STEP + high)).flatten(1).float().mean(1)

    as_high, others = count(-1.5, 1.5), count(-5, -2) + count(2, 5)
    return as_high, _log(as_high) - _log(others)


def _colour_of_detail(axes):
    """Log of the chroma's mean second difference over the luminance's: (N,)."""
    detail = (axes[..., 2:] - 2 * axes[..., 1:-1] + axes[..., :-2]).abs().flatten(2).mean(2)
    return _log(detail[:, 1:].mean(1)) - _log(detail[:, 0])

"""Detectors of marked images for the model owner (section 5.2.6): what input_detection.py measures.

Public: UNSUPERVISED, Head, fit_detector (eight detectors of pytorch-ood), fit_head, NeuralPCA, train_mchad, detection;
library, check_classes, ROC_GRID.
All scores are float64 and high for images that look marked. pytorch-ood is needed by fit_detector and train_mchad.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import utils
from kit.errors import UserError
from kit.progress import Progress
from networks import build_network

UNSUPERVISED = ("Mahalanobis", "MSP", "Energy", "RMD", "kNN", "KLMatching", "ViM", "DICE")
FEWEST_OF_CLASS = 5  # one component of neural PCA
ROC_GRID = np.linspace(0, 1, 101)
_DICE_DROPPED = 0.9  # share of the last layer's weights: the DICE paper's choice for its ImageNet models
_NEIGHBOURS = 50
_AT_ONCE = 128  # DICE makes a copy of the last layer's weights for every image


@dataclass(frozen=True)
class Head:
    """A last layer, float32: weight (C, D) and bias (C,). logits((N, D)) is (N, C)."""

    weight: torch.Tensor
    bias: torch.Tensor

    def logits(self, features):
        return features @ self.weight.T + self.bias


def library():
    """The module pytorch_ood; a UserError that names the command when it is not installed."""
    try:
        import pytorch_ood
        import pytorch_ood.detector
        import pytorch_ood.loss
    except ImportError as error:
        raise UserError(
            f"the detectors come from pytorch-ood, which can't be imported ({error})",
            advice="pip install 'pytorch-ood>=0.4'",
        ) from None
    return pytorch_ood


def check_classes(labels, classes):
    """UserError unless each class 0..classes-1 has FEWEST_OF_CLASS of the clean images; labels: int64 (N,)."""
    counts = torch.bincount(labels, minlength=classes)
    if counts.min() < FEWEST_OF_CLASS:
        raise UserError(
            f"class {int(counts.argmin())} has {int(counts.min())} of the {len(labels)} clean images that "
            f"the detectors are fitted on, but {FEWEST_OF_CLASS} are needed",
            advice="raise --train_size or --fit_share",
        )


def fit_detector(name, features, labels, head):
    """Fit a detector of UNSUPERVISED on clean images: a function from features (N, D) to float64 scores (N,).

    features: float32 (n, D), CPU; labels: int64 (n,), 0..C'-1, each there; head: the network's last layer, for those
    that look at logits (MSP, Energy, KLMatching, ViM, DICE). Sources: [37, 25, 42, 51, 62, 24, 67, 61] of the paper.
    """
    ood = library().detector
    on_logits = {"MSP": ood.MaxSoftmax, "Energy": ood.EnergyBased, "KLMatching": ood.KLMatching}
    if name in on_logits:
        detector = on_logits[name](None)
        if name == "KLMatching":
            detector.fit_logits(head.logits(features), labels)
        return _in_batches(lambda part: detector.predict_logits(head.logits(part)))
    make = {
        "Mahalanobis": lambda: ood.Mahalanobis(None),
        "RMD": lambda: ood.RMD(None),
        "kNN": lambda: ood.KNN(None, k=min(_NEIGHBOURS, len(features))),
        "ViM": lambda: ood.ViM(None, features.shape[1] // 2, head.weight, head.bias),
        "DICE": lambda: ood.DICE(None, head.weight, head.bias, _DICE_DROPPED),
    }
    return _in_batches(make[name]().fit_features(features, labels).predict_features)


def _in_batches(score):
    @torch.inference_mode()
    def scores(features):
        return torch.cat([score(part).double() for part in features.split(_AT_ONCE)]).numpy()

    return scores


def fit_head(features, labels):
    """A linear classifier on features float32 (N, D), labels int64 (N,): Head for the classes 0..C-1.

    Multinomial logistic regression on standardised features, with L2 weight 1/N.
    """
    scale, regression = model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=500))
    model.fit(features.double().numpy(), labels.numpy())
    weight, bias = regression.coef_, regression.intercept_
    if len(weight) == 1:  # two classes have one row of weights
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scale.scale_
    return Head(*(torch.from_numpy(np.float32(part)) for part in (weight, bias - weight @ scale.mean_)))


class NeuralPCA:
    """Class-wise neural PCA (Neuhaus et al., "Spurious Features Everywhere", ICCV 2023, section 4; the paper's [49]).

    For class k with last-layer weights w_k, psi_k(x) = w_k * phi(x) (elementwise) has the logit as the sum of its
    entries, <1, psi_k(x)> = f_k(x) - b_k. With the mean m_k and the principal components v_l of psi_k over clean images
    of the class, alpha_l(x) = <1, v_l> <psi_k(x) - m_k, v_l> is what component l adds to the logit: the alphas sum to
    f_k(x) - b_k - <1, m_k>, and the sign of v_l cancels out. A spurious feature is a component that alone pushes the
    logit up. The score of an image of class k (its label) is max_l alpha_l(x) / std_l, where std_l is the deviation of
    alpha_l over the clean images: how far out the most unusual push is. That last step is ours; the source leaves the
    choice of components to people who look at them.
    """

    def __init__(self, features, labels, head, components=128):
        """features: float32 (n, D) and labels int64 (n,) of clean images; head: weights of these classes.

        components: at most so many for each class, as in the source, and at most a fifth of its images: the deviation
        along a direction that the clean images hardly fill could not be estimated.
        """
        self._weight = head.weight.double()
        self._parts = {
            int(label): self._fit(self._psi(features[labels == label], int(label)), components)
            for label in labels.unique()
        }

    def _psi(self, features, label):
        return features.double() * self._weight[label]

    def _fit(self, psi, components):
        mean = psi.mean(0)
        values, vectors = torch.linalg.eigh((psi - mean).T @ (psi - mean) / len(psi))  # ascending
        kept = max(1, min(components, len(psi) // 5, int((values > values[-1] * 1e-10).sum())))
        return mean, vectors[:, -kept:].flip(1), values[-kept:].flip(0).sqrt()

    def alphas(self, features, label):
        """Contributions of the components to the logit of class `label`: (N, D) -> float64 (N, L), largest first."""
        mean, vectors, _ = self._parts[label]
        return (self._psi(features, label) - mean) @ vectors * vectors.sum(0)

    def scores(self, features, labels):
        """Largest normalised alpha of each image: (N, D) and labels int64 (N,) -> float64 (N,)."""
        found = np.empty(len(features))
        for label in labels.unique():
            rows = labels == label
            _, vectors, deviation = self._parts[int(label)]
            # A component orthogonal to 1 adds nothing to the logit, and 0 / 0 to the score.
            normal = deviation * vectors.sum(0).abs()
            usable = normal > 1e-9 * normal.max()
            alphas = self.alphas(features[rows], int(label))[:, usable] / normal[usable]
            found[rows.numpy()] = alphas.amax(1).numpy()
        return found


def train_mchad(images, labels, marking, settings, device):
    """Multi-Class Hypersphere Anomaly Detection (Kirchheim et al., ICPR 2022; the paper's [33]) with known outliers.

    images: uint8 (n, 3, H, W), clean, with labels int64 (n,) from 0..C-1. Outliers are the same images under `marking`,
    each with a key of its own, drawn anew in every epoch, so that no pattern can be learnt by heart.
    settings: {"epochs", "batch_size", "lr", "margin", "weight_oe", "seed"}. A SmallNet maps an image into R^C; the loss
    pulls it to its class's centre, keeps the classes apart and pushes outliers out of a sphere around every centre.
    Returns a function from uint8 images (N, 3, H, W) to float64 scores (N,): squared distance to the nearest centre.
    """
    classes = int(labels.max()) + 1
    mean, std = utils.channel_statistics(images)
    with utils.seeded(settings["seed"], "mchad weights"):
        model = build_network("smallnet", classes, images.shape[-1]).to(device, memory_format=torch.channels_last)
        # The library averages the first term over batch and classes and sums the last: here all are means over images.
        loss = (
            library()
            .loss.MCHADLoss(
                classes,
                classes,
                margin=settings["margin"],
                weight_center=classes,
                weight_oe=settings["weight_oe"] / settings["batch_size"],
            )
            .to(device)
        )
    weights = [*model.parameters(), *(value for value in loss.parameters() if value.requires_grad)]
    optimizer = torch.optim.AdamW(weights, settings["lr"])
    steps = settings["epochs"] * -(-2 * len(images) // settings["batch_size"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings["lr"], total_steps=steps)
    fast = utils.choose_precision("auto", device) == "bfloat16"
    targets = torch.cat([labels, torch.full_like(labels, -1)])
    for epoch in Progress(range(settings["epochs"]), "training MCHAD"):
        key = utils.derive_key(settings["seed"], "mchad outliers", epoch)
        outliers = utils.mark_images(images, key, np.arange(len(images)), np.zeros(len(images), int), marking)
        both, draws = torch.cat([images, outliers]), utils.key_generator(settings["seed"], "mchad epoch", epoch)
        model.train()
        for rows in torch.from_numpy(draws.permutation(len(both))).split(settings["batch_size"]):
            shifts, flips = draws.integers(0, 9, (len(rows), 2)), draws.random(len(rows)) < 0.5
            batch = utils.augment(both[rows], torch.from_numpy(shifts), torch.from_numpy(flips), 4).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=fast):
                embedded = model(utils.normalize(batch, mean, std))
            value = loss(loss.distance(embedded.float()), targets[rows].to(device))
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            schedule.step()
    return _mchad_scores(model.eval(), loss, (mean, std), device)


def _mchad_scores(model, loss, normal, device):
    @torch.inference_mode()
    def scores(images):
        parts = [loss.distance(model(utils.normalize(part.to(device), *normal))) for part in images.split(_AT_ONCE)]
        return torch.cat([part.amin(1).double().cpu() for part in parts]).numpy()

    return scores


def detection(marked, clean, key, draws=1000):
    """How well scores tell marked images from clean ones: float64 (n,) and (m,), high for marked.

    Returns {"auc", "interval" (95 %, bootstrap over images, `draws` times, drawn from `key`), "tpr_at_5_fpr" and
    "tpr_interval" (share of marked images that score above all but at most 5 % of the clean ones), "roc" (TPR at each
    of ROC_GRID)}, JSON-ready.
    """
    low = utils.membership_inference(-np.asarray(marked)[:, None], -np.asarray(clean)[:, None], True, [0.05])
    truth = np.concatenate([np.ones(len(marked)), np.zeros(len(clean))])
    fpr, tpr, _ = roc_curve(truth, np.concatenate([marked, clean]))
    interval = np.quantile(_bootstrap(marked, clean, utils.key_generator(key, "bootstrap"), draws), [0.025, 0.975])
    return {
        "auc": low["auc"],
        "interval": interval.tolist(),
        "tpr_at_5_fpr": low["tpr_at_fpr"][0]["tpr"],
        "tpr_interval": list(low["tpr_at_fpr"][0]["interval"]),
        "roc": np.interp(ROC_GRID, fpr, tpr).round(4).tolist(),
    }


def _bootstrap(marked, clean, generator, draws):
    """AUCs of `draws` resamples: how often each image is drawn is all that changes, so the scores are sorted once."""
    clean = np.sort(clean)
    below, upto = np.searchsorted(clean, marked, "left"), np.searchsorted(clean, marked, "right")
    found = np.empty(draws)
    for draw in range(draws):
        ours, theirs = (
            np.bincount(generator.integers(0, size, size), minlength=size) for size in (len(marked), len(clean))
        )
        ahead = np.concatenate([[0], np.cumsum(theirs)])
        found[draw] = ours @ (ahead[below] + ahead[upto]) / (2 * len(marked) * len(clean))
    return found

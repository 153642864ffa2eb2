"""Adversarial augmentation (section 5.2.2): every training image is changed further, anew in every epoch."""

from typing import ClassVar

import torch
from pydantic import Field
from torchvision import transforms
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

import utils
from countermeasures.base import Countermeasure


class GaussianNoise(Countermeasure):
    """Zero-mean Gaussian noise on every pixel; std where white is 1 (the paper: 0.02 to 0.5)."""

    name: ClassVar[str] = "gaussian_noise"
    std: float = Field(0.1, ge=0, le=10)

    def hooks(self, job):
        hooks = utils.TrainingHooks()
        hooks.transform = lambda images: images + torch.randn(images.shape, device=images.device) * (self.std * 255)
        return hooks


class RandAugment(Countermeasure):
    """RandAugment (Cubuk et al. 2020): `operations` random changes of every image (the paper: 3 to 15)."""

    name: ClassVar[str] = "randaugment"
    operations: int = Field(3, ge=1, le=100)
    magnitude: int = Field(9, ge=0, le=30)

    def hooks(self, job):
        hooks, change = utils.TrainingHooks(), transforms.RandAugment(self.operations, self.magnitude)

        def transform(images):
            # Image by image, since each has draws of its own; Pillow is several times faster at that than tensors.
            changed = [pil_to_tensor(change(to_pil_image(image))) for image in images.cpu()]
            return torch.stack(changed).to(images.device)

        hooks.transform = transform
        return hooks

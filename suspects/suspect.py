"""What every model under audit is to the audit: how its input is made, and what it answers.

Public: Answers, Preprocessing, Suspect. `provenance.models` opens files, `provenance.protocol` servers.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from kit.errors import UserError

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Answers:
    """What a model said about N images, as it came.

    values: float32 (N, k), logits or probabilities, or None when only the top class comes back;
    classes: int32 (N, k), which classes the values belong to, or None for 0..k-1 in this order.
    Label-only answers are classes (N, 1) without values; top-k answers have both, -1 standing for "no such entry".
    """

    values: np.ndarray | None
    classes: np.ndarray | None = None

    def __post_init__(self):
        shapes = [array.shape for array in (self.values, self.classes) if array is not None]
        if not shapes or any(len(shape) != 2 for shape in shapes) or len(set(shapes)) > 1:
            raise ValueError(f"values and classes must be (N, k) and alike, not {shapes}")

    def __len__(self):
        return len(self.values if self.values is not None else self.classes)


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes a model's input: resized, cropped at the centre, scaled, normalised.

    size: (height, width) of the input in pixels; resize: the shorter side in pixels before the crop, None for the
    smallest that covers the input; white: what the value 255 becomes, 1.0 or 255.0; mean, std: three numbers each, in
    the same units; interpolation: see INTERPOLATIONS; source: where all that came from, for the printed line.
    """

    size: tuple
    resize: int | None = None
    mean: tuple = (0.0, 0.0, 0.0)
    std: tuple = (1.0, 1.0, 1.0)
    white: float = 1.0
    interpolation: str = "bilinear"
    source: str = "flags"

    def __post_init__(self):
        if len(self.size) != 2 or not all(1 <= side <= 4096 for side in self.size):
            raise UserError(
                f"a model input of {self.size} pixels can't be", advice="give --input_size", flag="--input_size"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError(f"mean {self.mean} and std {self.std} must be three numbers each, std above 0")
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(
                f"interpolation {self.interpolation!r} is unknown", advice=f"use one of {', '.join(INTERPOLATIONS)}"
            )

    def fit(self, pixels):
        """Resize and crop one photo, uint8 (H, W, 3) of any size, to uint8 (3, height, width)."""
        height, width = self.size
        image = Image.fromarray(pixels)
        if self.resize is not None:
            # As torchvision's Resize has it, which cuts the longer side's fraction off.
            wanted = [max(1, self.resize * side // min(image.size)) for side in image.size]
        else:
            # As dataset/store.py does for training.
            scale = max(height / image.height, width / image.width)
            wanted = [max(least, round(side * scale)) for side, least in zip(image.size, (width, height), strict=True)]
        if wanted != list(image.size):
            image = image.resize(wanted, INTERPOLATIONS[self.interpolation])
        left, top = (
            (whole - part) // 2 if self.resize is None else round((whole - part) / 2)
            for whole, part in zip(image.size, (width, height), strict=True)
        )
        if (left, top) != (0, 0) or image.size != (width, height):
            image = image.crop((left, top, left + width, top + height))  # black where the photo is too small
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def normalize(self, images):
        """uint8 (N, 3, h, w) to the float32 input of the model."""
        mean, std = (np.asarray(value, dtype=np.float32)[:, None, None] for value in (self.mean, self.std))
        return (images.astype(np.float32) * np.float32(self.white / 255) - mean) / std

    def describe(self):
        """One line for people."""
        resize = "scaled to cover it" if self.resize is None else f"shorter side scaled to {self.resize}"
        return (
            f"input {self.size[0]} x {self.size[1]} px, {resize} ({self.interpolation}), centre crop, "
            f"mean {list(self.mean)}, std {list(self.std)}, white is {self.white:g} (from {self.source})"
        )


class Suspect:
    """A model under audit. Subclasses set the attributes and implement `ask`.

    name: what to call it in the report; preprocessing: see above; classes: how many there are, None when unknown;
    class_names: tuple of str, or None; identity: JSON-ready dict that says which model it was (digest, address);
    batch_size: how many images one `ask` may hold at most (1 where a server has a fixed batch of one).
    """

    name: str
    preprocessing: Preprocessing
    classes: int | None = None
    class_names: tuple | None = None
    identity: dict
    batch_size: int = 64

    def ask(self, images):
        """Answers for uint8 images (N, 3, h, w), numpy, of the preprocessing's size. Raises UserError."""
        raise NotImplementedError

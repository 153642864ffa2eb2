"""A reference made at home: a network trained on public labelled images, on nothing that looks like the user's photos.

Public: train, REFERENCE_FILE, EPOCHS.
"""

from pathlib import Path

import numpy as np
import torch

from dataset import load_dataset
from experiment import training
from kit.errors import UserError
from kit.progress import Progress
from provenance.duplicates import NEAR_BITS, perceptual_hash
from provenance.photos import read_photo
from provenance.record import private_folder
from suspects.suspect import Preprocessing

REFERENCE_FILE = "reference.safetensors"  # in the record's folder
EPOCHS = 40  # trained longer it is surer, and tells difficulty less well (results/statistic)
FEWEST = 100  # images


def train(dataset, data_root, folder, path, device, image_size=None, net_type="smallnet", epoch=EPOCHS, seed=1):
    """Train a reference and write it to `path`, in a record's folder, or find it there: (path, images it was trained
    on, images left out).

    dataset, data_root, image_size: as `load_dataset` takes them; folder: the `folder.Folder` of the user's photos,
    whose near-duplicates among the training images are left out. Raises UserError.
    """
    data = load_dataset(dataset, data_root, image_size)
    rows = np.flatnonzero(~data.is_test.numpy())
    kept = rows[~_alike(data, rows, folder)]
    if len(kept) < FEWEST:
        raise UserError(
            f"--reference train: {dataset} has {len(kept)} images that are not the user's own, fewer than {FEWEST}",
            advice="give another data set with --dataset",
            flag="--dataset",
        )
    chosen = torch.from_numpy(kept)
    path = Path(path)
    private_folder(path.parent)
    training.train_on(
        path,
        data.images[chosen],
        data.labels[chosen],
        len(data.class_names),
        seed,
        device,
        net_type=net_type,
        epoch=epoch,
    )
    return path, len(kept), len(rows) - len(kept)


def _alike(data, rows, folder):
    """bool (len(rows),): images that look like one of the user's photos, scaled as the data set scales its own."""
    size = tuple(data.images.image_shape[-2:])
    fit = Preprocessing(size).fit
    mine = np.stack(
        [
            perceptual_hash(fit(read_photo(folder.path / photo["original"])).transpose(1, 2, 0))
            for photo in folder.photos
        ]
    )
    found = np.zeros(len(rows), dtype=bool)
    for place, row in enumerate(Progress(rows, "looking for your photos", unit="image")):
        image = data.images[torch.tensor([row])][0].permute(1, 2, 0).numpy()
        found[place] = ((mine != perceptual_hash(image)).sum(axis=1) <= NEAR_BITS).any()
    return found

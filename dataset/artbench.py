"""ArtBench-10 (224 px, 10 styles of painting): fine-tuning of an ImageNet-pretrained ResNet-18.

Needs `artbench/` (train/ and test/, or plain class folders), `artbench-10-imagefolder-split/` or `artbench.tar` below
`data_root`.
"""

from dataclasses import replace

from dataset import tinyimagenet
from dataset.base import ImageData
from dataset.folders import checked_image_size, class_folder_data, find_folder

FOLDER, ARCHIVE = "artbench", "artbench.tar"
UNPACKED = "artbench-10-imagefolder-split"  # what the published scripts read
CLASS_COUNT = 10
IMAGE_SIZE = 224
RECIPE = replace(tinyimagenet.RECIPE, target_user_cls=(0, 1, 5, 7, 8))


def folder(data_root=None):
    """The data set's folder, unpacked when only the archive is there. Raises UserError."""
    return find_folder(
        "artbench",
        FOLDER,
        ARCHIVE,
        "artbench.tar of the paper's artifact page, https://people.ece.ubc.ca/zitaoc/files/ccs25-artifact/artbench.tar",
        data_root,
        UNPACKED,
    )


def load(data_root=None, image_size=None) -> ImageData:
    """Load ArtBench from `data_root` (default: dataset/). Raises UserError."""
    size = checked_image_size("artbench", image_size, IMAGE_SIZE)
    return class_folder_data("artbench", folder(data_root), RECIPE, size, class_count=CLASS_COUNT)

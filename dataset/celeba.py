"""CelebA-HQ's 307 identities (224 px): fine-tuning of an ImageNet-pretrained ResNet-18. Also an outlier bank.

Needs `celeba/` (train/ and test/, or plain class folders), `CelebA_HQ_facial_identity_dataset/` or `celeba.tar` below
`data_root`.
"""

from dataclasses import replace

from dataset import tinyimagenet
from dataset.base import ImageData
from dataset.folders import checked_image_size, class_folder_data, find_folder

FOLDER, ARCHIVE = "celeba", "celeba.tar"
UNPACKED = "CelebA_HQ_facial_identity_dataset"  # what the published scripts read
CLASS_COUNT = 307
IMAGE_SIZE = 224
RECIPE = replace(
    tinyimagenet.RECIPE,
    train_size=2_000,
    batch_size=16,
    val_portion=0.0,
    marked_samples_per_user=2,
    target_user_cls=(58, 95, 164, 228, 306),
)


def folder(data_root=None):
    """The data set's folder, unpacked when only the archive is there. Raises UserError."""
    return find_folder(
        "celeba",
        FOLDER,
        ARCHIVE,
        "celeba.tar of the paper's artifact page, https://people.ece.ubc.ca/zitaoc/files/ccs25-artifact/celeba.tar",
        data_root,
        UNPACKED,
    )


def load(data_root=None, image_size=None) -> ImageData:
    """Load the 307 identities from `data_root` (default: dataset/). Raises UserError."""
    size = checked_image_size("celeba", image_size, IMAGE_SIZE)
    return class_folder_data("celeba", folder(data_root), RECIPE, size, class_count=CLASS_COUNT)

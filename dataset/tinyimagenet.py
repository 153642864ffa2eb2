"""TinyImageNet (224 px, 200 classes): fine-tuning of an ImageNet-pretrained ResNet-18. Also an outlier bank.

Needs `tiny-224/` or `tiny-224.zip` below `data_root`. Its `val/` is the labelled test set; its `test/` has no labels
and is not read.
Public: RECIPE, load, folder, FOLDER, ARCHIVE.
"""

from dataset.base import ImageData, Recipe
from dataset.folders import checked_image_size, class_folder_data, find_folder

FOLDER, ARCHIVE = "tiny-224", "tiny-224.zip"
CLASS_COUNT = 200
IMAGE_SIZE = 224
# The paper names no batch size and no weight decay for fine-tuning; these are the published artifact's.
RECIPE = Recipe(
    net_type="resnet18_pretrained",
    train_size=25_000,
    epoch=30,
    lr=0.01,
    batch_size=256,
    momentum=0.9,
    weight_decay=0.0,
    val_portion=0.2,
    marked_samples_per_user=25,
    num_of_non_member_user=5_000,
    target_user_cls=(4, 58, 102, 168, 184),
    normalization="imagenet",
)


def folder(data_root=None):
    """The data set's folder, unpacked when only the archive is there. Raises UserError."""
    return find_folder(
        "tinyimagenet",
        FOLDER,
        ARCHIVE,
        "tiny-224.zip of the pytorch-tiny-imagenet release, "
        "https://github.com/tjmoon0104/pytorch-tiny-imagenet/releases",
        data_root,
    )


def load(data_root=None, image_size=None) -> ImageData:
    """Load TinyImageNet from `data_root` (default: dataset/). Raises UserError."""
    size = checked_image_size("tinyimagenet", image_size, IMAGE_SIZE)
    return class_folder_data("tinyimagenet", folder(data_root), RECIPE, size, ("val",), CLASS_COUNT)

"""Purchase-100: 197,324 shoppers, 600 binary features (was a product bought), 100 kinds of shoppers.

Shokri et al., "Membership Inference Attacks against Machine Learning Models" (S&P'17), from Kaggle's "Acquire Valued
Shoppers". It isn't downloaded: put the published `dataset_purchase` (a line for each shopper: the label from 1 to 100,
then 600 zeros and ones) or `purchase100.npz` (features, labels as numbers or one-hot) into `data_root`.
"""

from pathlib import Path

from dataset.folders import DEFAULT_ROOT
from dataset.tabular import TableData, checked_table, load_file, read_numbers
from kit.errors import UserError

FILES = ("dataset_purchase", "dataset_purchase.csv")
CLASSES = 100


def load(data_root=None) -> TableData:
    """Load it from the folder `data_root` (default: dataset/), or from a file of either format. Raises UserError."""
    root = DEFAULT_ROOT if data_root is None else Path(data_root)
    for file in [root] if root.is_file() else [root / name for name in ("purchase100.npz", *FILES)]:
        if file.is_file():
            return load_file(file) if file.suffix == ".npz" else _published(file)
    raise UserError(
        f"data set purchase100: {root} has neither purchase100.npz nor dataset_purchase",
        advice="get dataset_purchase.tgz from https://github.com/privacytrustlab/datasets and unpack it there",
    )


def _published(file):
    numbers = read_numbers(file)
    labels = numbers[:, 0].astype(int)
    if numbers.shape[1] < 2 or labels.min() < 1 or labels.max() > CLASSES or (numbers[:, 0] != labels).any():
        raise UserError(f"data set purchase100: the first column of {file} is not a label from 1 to {CLASSES}")
    return checked_table("purchase100", numbers[:, 1:], labels)

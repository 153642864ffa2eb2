"""Texas-100: 67,330 hospital stays, 6,169 binary features, the 100 most frequent procedures.

Shokri et al., "Membership Inference Attacks against Machine Learning Models" (S&P'17), from the Texas hospital
discharge data. It isn't downloaded: put the published folder with `feats` (zeros and ones with commas) and `labels` (a
number from 1 to 100 in each line), or `texas100.npz` (features, labels as numbers or one-hot), into `data_root`.
"""

from pathlib import Path

from dataset.folders import DEFAULT_ROOT
from dataset.tabular import TableData, checked_table, load_file, read_numbers
from kit.errors import UserError

FOLDERS = (".", "texas/100", "texas", "100")  # as the archive unpacks, and parts of it


def load(data_root=None) -> TableData:
    """Load it from the folder `data_root` (default: dataset/), or from a .npz file. Raises UserError."""
    root = DEFAULT_ROOT if data_root is None else Path(data_root)
    arrays = root if root.is_file() else root / "texas100.npz"
    if arrays.is_file():
        return load_file(arrays)
    for folder in (root / name for name in FOLDERS):
        if (folder / "feats").is_file() and (folder / "labels").is_file():
            features, labels = read_numbers(folder / "feats"), read_numbers(folder / "labels")
            if len(features) != len(labels) or labels.shape[1] != 1:
                raise UserError(
                    f"data set texas100: {folder} has {len(features)} lines of feats and labels {labels.shape}",
                    advice="get an undamaged copy",
                )
            return checked_table("texas100", features, labels)
    raise UserError(
        f"data set texas100: {root} has neither texas100.npz nor feats and labels",
        advice="get dataset_texas.tgz from https://github.com/privacytrustlab/datasets and unpack it there",
    )

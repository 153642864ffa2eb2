"""What anybody who holds a record knows of it without a model: features for quantile regression.

Public: of.
"""

import numpy as np

GRID = 4  # cells of an image, in each direction
MOST_COLUMNS = 64
# Of scikit-learn's gradient boosting: names with more values than this are left out.
MOST_NAMES = 255


def of(records, rows):
    """(float32 (len(rows), F), numbers of the features that are names) of rows int64 (n,) of `data.Records`.

    The class, where there are at most MOST_NAMES of them; of images also the mean of each channel in GRID x GRID cells,
    and its spread; of tables the first MOST_COLUMNS columns; of tokens the length.
    """
    labels = records.labels.numpy()[rows].astype(np.float32)[:, None]
    parts, categorical = ([labels], (0,)) if len(records.class_names) <= MOST_NAMES else ([], ())
    if records.kind == "images":
        parts.append(np.concatenate([_of_images(records.inputs[part]) for part in _batches(rows)]))
    elif records.kind == "table":
        parts.append(records.inputs[rows][:, :MOST_COLUMNS].numpy().astype(np.float32))
    elif records.kind == "tokens":
        parts.append((records.inputs[rows] >= 0).sum(dim=1).numpy().astype(np.float32)[:, None])
    return (np.concatenate(parts, axis=1) if parts else np.zeros((len(rows), 1), np.float32)), categorical


def _of_images(images):
    from torch.nn.functional import adaptive_avg_pool2d

    floats = images.float()
    cells = adaptive_avg_pool2d(floats, GRID).flatten(1)
    return np.concatenate([cells.numpy(), floats.flatten(2).std(dim=2).numpy()], axis=1)


def _batches(rows, size=4096):
    return np.split(rows, range(size, len(rows), size))

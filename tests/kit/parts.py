"""What the tests of kit/ share: tensors, full disks and files that mean harm."""

import errno
import io
import os
import pickle

import numpy as np
import pytest
import torch

from kit.errors import UserError
from kit.files import load_model, read_arrays, read_json, save_model, write_arrays, write_json

SETTINGS = {"lr": 0.1, "net_type": "tiny", "target_user_cls": [17, 36], "name": "Grüße", "nothing": None}


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "steps": torch.tensor(7),
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "empty": torch.zeros(0, 3),
    }


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def refused(read, path, what=None):
    """`read(path)` is a UserError of one line that names the file."""
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert path.name in message
    assert what is None or what in message
    return message


class RunsCode:
    """Opening a pickle of this creates a file: what somebody else's checkpoint could do."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def hostile(kind, marker):
    """Bytes of a file that creates `marker` when it is unpickled."""
    content, buffer = {"model": RunsCode(marker)}, io.BytesIO()
    if kind == "torch zip":
        torch.save(content, buffer)
    elif kind == "torch legacy":
        torch.save(content, buffer, _use_new_zipfile_serialization=False)
    else:
        buffer.write(pickle.dumps(content, protocol=int(kind[-1])))
    return buffer.getvalue()


PICKLES = ["torch zip", "torch legacy", *(f"pickle {protocol}" for protocol in range(6))]


WRITERS = {
    "json": (lambda path, value: write_json(path, {"value": value}), lambda path: read_json(path)["value"]),
    "npz": (lambda path, value: write_arrays(path, a=np.full(9, value)), lambda path: int(read_arrays(path)["a"][0])),
    "safetensors": (
        lambda path, value: save_model(path, tensors(), {"value": value}),
        lambda path: load_model(path)[1]["value"],
    ),
}

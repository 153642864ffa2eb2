"""What the tests of models share: random images, networks as after training, what they must answer, and a server."""

import copy
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kit.errors import UserError
from suspects import wire
from suspects.connection import Fault
from suspects.opened import open_model
from suspects.server import open_server
from tests.suspects.inference_server import make_app, planned, running

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
GIVEN = {"size": 32, "mean": MEAN, "std": STD}


def images(count, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def stirred(model):
    """The model with statistics and biases as after training, where nothing is zero or one by luck."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(noise + 0.5 if name.endswith(("weight", "var")) else noise - 0.5)
    return model


def expected(model, pixels, mean=MEAN, std=STD, dtype=torch.float32):
    mean, std = (torch.tensor(value, dtype=dtype).view(3, 1, 1) for value in (mean, std))
    with torch.no_grad():
        return model.eval()((torch.from_numpy(pixels).double().div(255).to(dtype) - mean) / std).numpy()


def assert_answers(values, model, pixels, mean=MEAN, std=STD):
    """These are the answers of the model itself to these pixels, but for rounding.

    How far rounding takes an answer depends on the network, and on the order of sums, which processors choose. So it is
    measured: the distance of float32's answers from float64's. Another float32 evaluation is a draw from the same
    distribution, whose largest value varies between draws by a small factor; a wrong crop, scale or mode moves answers
    a thousand times as far.
    """
    exact = expected(copy.deepcopy(model).double(), pixels, mean, std, torch.float64)
    rounding = np.abs(expected(model, pixels, mean, std) - exact).max()
    atol = 8 * max(rounding, np.spacing(np.float32(np.abs(exact).max())))
    assert atol < 1e-4 * np.abs(exact).max(), "too coarse to tell anything"
    np.testing.assert_allclose(values, exact, rtol=0, atol=atol)


def saved(path, content):
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


def refused(path, *words, **arguments):
    """open_model(path) is a UserError of one line that names the file and says these words."""
    with pytest.raises(UserError) as caught:
        open_model(path, **{"device": "cpu", **arguments})
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    for word in words or (path.name,):
        assert word in message, message
    return message


# --- a model behind HTTP ---

UNIT = {"mean": 0.0, "std": 1.0}
CLASSES, NCHW, NHWC = 5, [-1, 3, 4, 6], [-1, 4, 6, 3]  # not square, so that a swap of height and width shows
LABELS = ["crane", "7:up", "boat", "3", "ring"]


def predict(images):
    # Each image by itself: a product of matrices may round differently in batches of different sizes.
    weights = np.random.default_rng(0).normal(size=(3 * 4 * 6, CLASSES)).astype(np.float32)
    weights -= weights.mean(0)  # else one class always wins
    return np.stack([(image.reshape(-1, 1).astype(np.float32) * weights).sum(0) for image in images]) / 3


def photos(count, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 4, 6), dtype=np.uint8)


@contextmanager
def audited(*, shape=NCHW, silent=None, **options):
    """(running server, suspect that never really sleeps); keywords go to whichever of the two knows them.

    silent: the faults of `planned`, "timeout" among them.
    """
    names = ("headers", "rate_limit", "timeout", "retries", "overrides", "batch_size", "hints", "sleep", "clock")
    client = {"sleep": lambda seconds: None, **{name: options.pop(name) for name in names if name in options}}
    with running(make_app(predict, input_shape=shape, **options)) as server:
        raw = options.get("datatype") == "UINT8"
        with nullcontext() if silent is None else planned(server.state, silent):
            yield server, (open_server if raw else opened)(server.url, **client)


def opened(url, overrides=None, **client):
    """open_server with mean 0 and std 1, unless the test gives others."""
    return open_server(url, overrides=UNIT | (overrides or {}), **client)


def read(model, content, count, headers=None):
    """What a ServerSuspect makes of a reply over HTTP to a request "x" for `count` images; Fault for a wrong one."""
    try:
        reply, tensors = wire.unpacked(content, headers or {})
    except wire.MALFORMED as error:
        raise Fault(f"the reply is malformed ({error})") from None
    return model._reader.read(reply, tensors, "x", count)


def same_bits(array, expected):
    return array.dtype == expected.dtype and array.shape == expected.shape and array.tobytes() == expected.tobytes()

"""One training on several devices: torchrun --nproc_per_node=N train.py ... (DistributedDataParallel).

Every process holds the whole data set and takes its share of every batch; gradients are averaged and batch
normalisation uses the statistics of the whole batch, so that the result is that of one process but for rounding. One
process, the leader, writes all files. Public: team, Team, ALONE.
"""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from kit.errors import UserError


@dataclass(frozen=True)
class Team:
    """The processes of one training; `rank` counts from 0, the leader's."""

    rank: int = 0
    size: int = 1

    @property
    def leader(self):
        return self.rank == 0

    def share(self, batch):
        """This process's part of a tensor's first dimension; the parts of all processes make the whole."""
        return batch.tensor_split(self.size)[self.rank]

    def total(self, tensor):
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, value):
        """The leader's value, in every process. The others wait for it."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box)
        return box[0]

    @contextmanager
    def training(self, model):
        """The module to call in training: its gradients and batch statistics are those of the whole batch."""
        if self.size == 1:
            yield model
            return
        layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        for layer in layers:
            layer.forward = MethodType(_whole_batch_norm, layer)
        try:
            yield DistributedDataParallel(model, broadcast_buffers=False)
        finally:
            for layer in layers:
                del layer.forward


ALONE = Team()


@contextmanager
def team(device):
    """(Team, device of this process) for a process of torchrun; (ALONE, device) for any other.

    device: what --device says. Raises UserError when there are fewer CUDA devices than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE, device
        return
    local = int(os.environ["LOCAL_RANK"])
    on_cuda = device in ("auto", "cuda") and torch.cuda.is_available()
    if on_cuda and local >= torch.cuda.device_count():
        raise UserError(
            f"--nproc_per_node is more than the {torch.cuda.device_count()} CUDA devices here", advice="lower it"
        )
    if on_cuda:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield Team(dist.get_rank(), dist.get_world_size()), f"cuda:{local}" if on_cuda else device
    finally:
        dist.destroy_process_group()


def _whole_batch_norm(layer, inputs):
    """nn.BatchNorm2d.forward with mean and variance over all processes; torch's own SyncBatchNorm is for GPUs alone."""
    if not layer.training:
        return nn.BatchNorm2d.forward(layer, inputs)
    values = inputs.float()
    count = torch.tensor([values.numel() / values.shape[1]], device=values.device)
    dist.all_reduce(count)
    mean = all_reduce(values.sum((0, 2, 3))) / count
    centred = values - mean[:, None, None]
    variance = all_reduce(centred.square().sum((0, 2, 3))) / count
    with torch.no_grad():
        layer.num_batches_tracked += 1
        layer.running_mean.lerp_(mean, layer.momentum)
        layer.running_var.lerp_(variance * count / (count - 1), layer.momentum)
    scale = torch.rsqrt(variance + layer.eps)
    if layer.affine:
        scale = scale * layer.weight
    normed = centred * scale[:, None, None]
    return (normed + layer.bias[:, None, None] if layer.affine else normed).to(inputs.dtype)

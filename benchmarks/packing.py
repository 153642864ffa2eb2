"""Many small trainings at once: which packing makes most images a second out of one machine or one card?

Example: python -m benchmarks.packing --out results/packing/cpu.json
K trainings (seeds) of the recipe of the data set photos, timed alternately in one run:
  sequential  one after the other with utils.train_model, all threads: the reference
  processes   K processes at once, each trains one: one thread each on a CPU, on CUDA they share the card
  vmapped     one process, the K networks' weights stacked: torch.func.functional_call under vmap, one SGD on the stacks
  streams     one process, the K networks' steps in turn, each on a CUDA stream of its own (left out without CUDA)
Every way runs in processes of its own, which are started and warm before the clock starts; what starting costs is
printed beside it. All ways make the same batches of the same seeds; how vmap and bfloat16 go together: see Ensemble.
Public: Ensemble, Solo, batches_of, train_sequential, train_vmapped, train_streams.
"""

import copy
import multiprocessing
import os
import statistics
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

import utils
from benchmarks import common
from dataset import recipe
from kit.errors import UserError, run_script
from networks import build_network

CLASSES = 99  # of photos


class Solo:
    """One network and its SGD, step by step: what the loop of utils.train_model does with a batch."""

    def __init__(self, model, recipe):
        self.model, self.recipe = model, recipe
        self.optimizer = _sgd(model.parameters(), recipe)

    def step(self, images, labels):
        """images: normalised float32 (n, 3, H, W), labels: int64 (n,). Returns the mean loss, a detached scalar."""
        with utils.autocast(images.device, self.recipe.precision):
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class Ensemble:
    """K networks of one architecture trained at once; `params` and `buffers` hold each tensor of all, (K, ...).

    Batch normalisation takes each network's own batch statistics, and its running statistics are updated on copies
    that each step returns. Autocast has no effect under vmap: for bfloat16 the convolutions' weights and inputs are
    rounded here, which is what autocast rounds in smallnet, and normalisation is given float32 (vmap's does not take
    bfloat16 beside float32 statistics). Autocast also rounds what normalisation returns; here that happens at the next
    convolution, and the mean before the classifier is taken of float32.
    models: on the device, in training mode; they are left as they are.
    """

    def __init__(self, models, recipe):
        self.low = torch.bfloat16 if recipe.precision == "bfloat16" else None
        self.params, self.buffers = stack_module_state(models)
        self.optimizer = _sgd(self.params.values(), recipe)
        self.base = copy.deepcopy(models[0]).to("meta")
        self.rounded = set()
        for name, layer in self.base.named_modules():
            if self.low and isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)):
                layer.register_forward_pre_hook(lambda layer, inputs: (inputs[0].to(layer.weight.dtype),))
                self.rounded |= {f"{name}.weight", f"{name}.bias"} if isinstance(layer, nn.Conv2d) else set()

    def _loss(self, params, buffers, images, labels):
        # Of one network, as vmap's function sees it.
        buffers = {name: value.clone() for name, value in buffers.items()}
        params = {name: value.to(self.low) if name in self.rounded else value for name, value in params.items()}
        logits = functional_call(self.base, (params, buffers), (images,))
        return F.cross_entropy(logits.float(), labels), buffers

    def step(self, images, labels):
        """images: normalised float32 (K, n, 3, H, W), labels: int64 (K, n). Returns the K mean losses, detached."""
        losses, buffers = vmap(self._loss)(self.params, self.buffers, images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()  # no loss depends on another network's weights
        self.optimizer.step()
        self.buffers = {name: value.detach() for name, value in buffers.items()}
        return losses.detach()


def _sgd(parameters, recipe):
    return torch.optim.SGD(list(parameters), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)


def batches_of(images, labels, recipe, seeds, epoch):
    """The batches of utils.train_model in an epoch for several seeds at once.

    Yields normalised images, float32 (seeds, n, 3, H, W), and labels, int64 (seeds, n).
    """
    drawn = [utils.epoch_draws(replace(recipe, seed=seed), epoch, len(images)) for seed in seeds]
    order, shifts, flips = (torch.stack(parts).to(images.device) for parts in list(zip(*drawn, strict=True))[:3])
    for start in range(0, len(images), recipe.batch_size):
        chosen, shift, flip = (
            part[:, start : start + recipe.batch_size].flatten(0, 1) for part in (order, shifts, flips)
        )
        if len(chosen) < 2 * len(seeds) and start > 0:
            return  # as in the training loop
        batch = utils.augment(images[chosen], shift, flip, recipe.crop_padding)
        batch = utils.normalize(batch, recipe.mean, recipe.std)
        yield batch.unflatten(0, (len(seeds), -1)), labels[chosen].unflatten(0, (len(seeds), -1))


def train_vmapped(models, images, labels, recipe, seeds):
    """Train the models together; returns the Ensemble. Arguments as in `train_streams`."""
    ensemble = Ensemble(models, recipe)
    for epoch in range(recipe.epoch):
        _set_rate(ensemble.optimizer, recipe, epoch)
        losses = [ensemble.step(*batch) for batch in batches_of(images, labels, recipe, seeds, epoch)]
        torch.stack(losses).mean(0).tolist()  # read once an epoch, as in the training loop
    return ensemble


def train_streams(models, images, labels, recipe, seeds):
    """Train each model in place on a stream of its own (CUDA; elsewhere they merely take turns).

    models: on the device, one for each of `seeds`; images: uint8 (N, 3, H, W) and labels: int64 (N,) on the device.
    """
    solos, cuda = [Solo(model, recipe) for model in models], images.is_cuda
    streams = [torch.cuda.Stream() if cuda else None for _ in seeds]
    for stream in filter(None, streams):
        stream.wait_stream(torch.cuda.current_stream())
    for epoch in range(recipe.epoch):
        sources = []
        for solo, stream, seed in zip(solos, streams, seeds, strict=True):
            _set_rate(solo.optimizer, recipe, epoch)
            with _on(stream):
                sources.append(batches_of(images, labels, recipe, [seed], epoch))
        losses = [[] for _ in seeds]
        for _ in range(len(images) // recipe.batch_size + 1):
            for solo, stream, source, found in zip(solos, streams, sources, losses, strict=True):
                with _on(stream):
                    found += [solo.step(batch[0], truth[0]) for batch, truth in _next(source)]
        for stream, found in zip(streams, losses, strict=True):
            with _on(stream):
                torch.stack(found).mean().item()


def _on(stream):
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def _next(source):
    return [batch] if (batch := next(source, None)) is not None else []


def _set_rate(optimizer, recipe, epoch):
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr_at(epoch)


def train_sequential(models, images, labels, recipe, seeds):
    """Train one after the other in the loop that all scripts use. Arguments as in `train_streams`."""
    with tempfile.TemporaryDirectory() as folder:
        for model, seed in zip(models, seeds, strict=True):
            utils.train_model(
                model,
                images,
                labels,
                replace(recipe, seed=seed),
                images.device,
                Path(folder, f"{seed}.safetensors"),
                {},
            )


WAYS = {
    "sequential": train_sequential,
    "processes": train_sequential,
    "vmapped": train_vmapped,
    "streams": train_streams,
}


# ----------------------------------------------------------------------------------------------------------------------
# Processes that wait for their turn
# ----------------------------------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """What a process has to know. The data are made, not read, because speed does not depend on them."""

    net_type: str
    images: int
    recipe: utils.TrainingSettings
    device: str

    def train(self, way, seeds, images, labels):
        """Train a new network for each seed, up to the last kernel."""
        models = []
        for seed in seeds:
            with utils.seeded(seed, "weights"):
                model = build_network(self.net_type, CLASSES)
            models.append(model.to(self.device, memory_format=torch.channels_last))
        with utils.deterministic():
            WAYS[way](models, images, labels, self.recipe, seeds)
        if images.is_cuda:
            torch.cuda.synchronize()


def serve(pipe, way, work, seeds, threads):
    """A process: says that it is warm, then trains at every word, and says how much memory it has taken (GB)."""
    torch.set_num_threads(threads)
    draws = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (work.images, 3, 32, 32), dtype=torch.uint8, generator=draws).to(work.device)
    labels = torch.randint(0, CLASSES, (work.images,), generator=draws).to(work.device)
    work.train(way, seeds, images[: 2 * work.recipe.batch_size], labels[: 2 * work.recipe.batch_size])
    pipe.send(None)
    while pipe.recv():
        work.train(way, seeds, images, labels)
        pipe.send({"peak_GB": peak_gb(), "card_GB": torch.cuda.max_memory_reserved() / 1e9 if images.is_cuda else 0.0})


def peak_gb():
    """Peak memory of this process. Not getrusage's, which begins with that of the process that started this one."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1e6
    except (FileNotFoundError, StopIteration):
        return common.peak_gb()


class Group:
    """The processes of one way of training `count` networks, waiting."""

    def __init__(self, way, work, count, threads):
        seeds = list(range(1, count + 1))
        parts = [[seed] for seed in seeds] if way == "processes" else [seeds]
        context, started = multiprocessing.get_context("spawn"), time.perf_counter()
        self.pipes, self.processes = [], []
        for part in parts:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, way, work, part, threads), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        self._answers()
        self.start_s = time.perf_counter() - started

    def _answers(self):
        try:
            return [pipe.recv() for pipe in self.pipes]
        except EOFError:
            raise UserError(
                "a process of the benchmark has died (of memory?)", advice="try a smaller --counts"
            ) from None

    def round(self):
        """Seconds of one round, from the word to the last answer."""
        started = time.perf_counter()
        for pipe in self.pipes:
            pipe.send(True)
        self.memory = self._answers()
        return time.perf_counter() - started

    def close(self):
        """End the processes."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(False)
            process.join()


# ----------------------------------------------------------------------------------------------------------------------
# The comparison
# ----------------------------------------------------------------------------------------------------------------------


def compare(work, count, ways, rounds, cores):
    """Rows of all ways for `count` trainings, in turn in every round, the order turned round each time."""
    alone = work.device == "cpu"
    threads = {way: (1 if alone else max(1, cores // count)) if way == "processes" else cores for way in ways}
    groups = {way: Group(way, work, count, threads[way]) for way in ways}
    seconds = {way: [] for way in ways}
    for turn in range(rounds):
        for way in ways[:: 1 - 2 * (turn % 2)]:
            seconds[way].append(groups[way].round())
    rows = []
    for way in ways:
        groups[way].close()
        total = count * work.images * work.recipe.epoch
        speeds = [total / value for value in seconds[way]]
        found = common.summary(
            [
                {"reference_s": slow, "ours_s": fast}
                for slow, fast in zip(seconds["sequential"], seconds[way], strict=True)
            ]
        )
        rows.append(
            {
                "trainings": count,
                "way": way,
                "processes": len(groups[way].pipes),
                "threads": threads[way],
                "images_per_s": statistics.median(speeds),
                "images_per_s_range": [min(speeds), max(speeds)],
                "start_s": groups[way].start_s,
                **found,
                **{name: sum(part[name] for part in groups[way].memory) for name in ("peak_GB", "card_GB")},
            }
        )
    return rows


def show(row):
    """One line of the table."""
    slowest, fastest = row["images_per_s_range"]
    card = f", {row['card_GB']:.2f} GB on the card" if row["card_GB"] else ""
    print(
        f"{row['trainings']} trainings, {row['way']:<11}{row['images_per_s']:>8.0f} images/s ({slowest:.0f} to "
        f"{fastest:.0f}), ratio {row['median_ratio']:.2f} ({row['ratios'][0]:.2f} to {row['ratios'][1]:.2f}), "
        f"{row['peak_GB']:.2f} GB{card}; start {row['start_s']:.1f} s",
        flush=True,
    )


def main():
    plan = recipe("photos")
    flags = common.parser(__doc__)
    flags.add_argument("--counts", nargs="+", type=common.COUNT, default=[2, 4, 8], help="numbers of trainings at once")
    flags.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    flags.add_argument("--net_type", default=plan.net_type, help="for vmap: without random layers such as dropout")
    flags.add_argument(
        "--images",
        type=common.COUNT,
        default=round(plan.train_size * (1 - plan.val_portion)),
        help="training images of each (default 1200, those of photos)",
    )
    flags.add_argument("--batch_size", type=common.COUNT, default=plan.batch_size)
    flags.add_argument("--epochs", type=common.COUNT, help="of each training in a round (default 1, on CUDA 10)")
    flags.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    args, device = common.start(flags)
    settings = utils.TrainingSettings(
        epoch=args.epochs or (10 if device.type == "cuda" else 1),
        lr=0.01,
        batch_size=args.batch_size,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay,
        precision=utils.choose_precision(args.precision, device),
    )
    cores = args.threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    ways = [way for way in WAYS if way == "sequential" or way in args.ways]
    if device.type != "cuda" and "streams" in ways:
        print("streams need CUDA: left out")
        ways.remove("streams")
    work, rows = Work(args.net_type, args.images, settings, str(device)), []
    for count in args.counts:
        rows += compare(work, count, ways, args.rounds, cores)
        for row in rows[-len(ways) :]:
            show(row)
    common.write(
        args,
        {
            "what": "packing of small trainings, images per second",
            "net_type": args.net_type,
            "images": args.images,
            "batch_size": args.batch_size,
            "epochs": settings.epoch,
            "precision": settings.precision,
            "cores": cores,
            "rows": rows,
        },
        device,
    )


if __name__ == "__main__":
    run_script(main)

"""What the competing methods share: the flags of train.py, the same users and models, rows of figures, ROC plots.

A method is one file of this folder beside common, sequential and summary. It is run as `python -m baselines.NAME --out
FOLDER ...` and leaves result.json with rows and claims (see `row`, `rate`, `claim`), scores.npz and its plots there;
comparison.sh runs every such file, and summary.py merges the rows of all seeds.

Public: parser, parse, start, Setup, base_images, with_images, with_samples, published, model, signals, audit_rows,
rate, row, claim, draw_rocs, finish, table, shown, shown_paper, BATCH.
"""

import hashlib
import json
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

import utils
from dataset import load_dataset
from experiment.flags import make_parser
from experiment.settings import resolve_settings
from experiment.setup import Experiment, marked_images, prepare
from experiment.training import train_on
from kit import files, plots, tables
from kit.environment import hardware_name, software_versions
from kit.errors import UserError

BATCH = 512
WAIT_SECONDS = 2
TEST_IMAGES = 2000  # are enough for a test accuracy that is only there to tell a trained model from a failed one
# What a model's weights depend on besides its images and labels.
RECIPE = ("epoch", "lr", "batch_size", "momentum", "weight_decay")
# What --quick 1 sets where no flag is given: minutes on two cores for one method and seed.
QUICK = {
    "net_type": "smallnet",
    "train_size": 2500,
    "val_portion": 0.0,
    "epoch": 40,
    "batch_size": 128,
    "num_of_multiTarget_diffCls": 10,
    "marked_samples_per_user": 25,
    "num_of_non_member_user": 1000,
}
# The embedded photographs are fewer, of more classes.
QUICK_PHOTOS = {"train_size": 1000, "epoch": 100, "batch_size": 64, "marked_samples_per_user": 8}


@dataclass(frozen=True)
class Setup:
    """Data, splits and users as train.py draws them for these flags, and where models are kept."""

    args: object
    device: torch.device
    stage: Experiment
    audit: dict  # num_of_non_member_user, fpr, ...: see experiment.flags.AUDIT_FLAGS
    models: list = field(default_factory=list)  # what `model` has given out, for result.json

    data = property(lambda self: self.stage.data)
    splits = property(lambda self: self.stage.splits)
    groups = property(lambda self: self.stage.groups)
    seed = property(lambda self: self.stage.settings["seed"])


def parser(description):
    """train.py's flags, with their names and meanings, and --work."""
    flags = make_parser(description)
    group = flags.add_argument_group("comparison")
    group.add_argument(
        "--work", default="runs/baselines", help="where models are kept, for all methods (default runs/baselines)"
    )
    group.add_argument("--quick", type=int, choices=(0, 1), default=0, help="1: small, for a CPU (see QUICK)")
    return flags


def parse(flags, quick=None, quick_photos=None):
    """The flags of a method; `quick`: more defaults of --quick 1, `quick_photos`: those of its default data set."""
    args = flags.parse_args()
    if args.quick:
        small = {"dataset": "photos", **QUICK, **(quick or {})}
        if (args.dataset or "photos") == "photos":
            small |= {**QUICK_PHOTOS, **(quick_photos or {})}
        flags.set_defaults(**small)
        args = flags.parse_args()
    return args


def start(args, **defaults):
    """Load the data and draw splits and users; `defaults` are for flags of train.py that were not given."""
    if not args.out:
        raise UserError("--out is missing", advice="name the folder for result.json and plots")
    if args.countermeasure:
        raise UserError(f"--countermeasure {args.countermeasure} has no meaning here", advice="use train.py")
    if args.calibrate:
        raise UserError(f"--calibrate {args.calibrate} has no meaning here", advice="use train.py or eval.py")
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    device = utils.choose_device(args.device)
    data = load_dataset(args.dataset or "cifar100", args.data_root, args.image_size)
    training, audit = resolve_settings(args, data, device)
    return Setup(args, device, prepare(training, audit, data, args.data_root), audit)


def base_images(setup):
    """Training images uint8 (N, 3, H, W) and labels int64 (N,), nothing marked; in the order of splits.train."""
    return setup.data.images[setup.splits.train], setup.data.labels[setup.splits.train]


def with_images(setup, images, rows, replacements):
    """A copy of the training images in which data rows `rows` (any shape) look like `replacements` (..., 3, H, W)."""
    images, rows = images.clone(), np.asarray(rows).ravel()
    train = setup.splits.train.numpy()
    places = np.searchsorted(train, rows)
    if not np.array_equal(train[np.minimum(places, len(train) - 1)], rows):
        raise ValueError("rows must be training images")
    images[torch.from_numpy(places)] = replacements.reshape(-1, *images.shape[1:])
    return images


def with_samples(users, count):
    """The same users with their first `count` samples, whose marks stay the same."""
    if not 1 <= count <= users.samples.shape[1]:
        raise UserError(
            f"--samples {count}: users have 1 to {users.samples.shape[1]} samples",
            advice="raise --marked_samples_per_user",
        )
    return replace(users, samples=users.samples[:, :count])


def published(setup, users, marking):
    """The users' images as they publish them: uint8 (users * K, 3, H, W)."""
    shown = replace(setup.stage, groups={"target": users}, marking=marking)
    return marked_images(shown).flatten(0, 1)


def model(setup, name, images, labels, seed=None):
    """(query, record) of a network trained on exactly these images, from --work when any method has trained it.

    Its folder is named by everything that decides its weights, and `name` is only for result.json. Two processes that
    want the same model train it once.
    """
    settings, net_type = setup.stage.settings, setup.stage.settings["net_type"]
    seed, recipe = setup.seed if seed is None else seed, {name: settings[name] for name in RECIPE}
    digest = hashlib.sha256(
        json.dumps(
            [recipe, net_type, seed, len(setup.data.class_names), settings["precision"], setup.device.type]
        ).encode()
    )
    for part in (images, labels):
        digest.update(part.numpy().tobytes())
    folder = Path(setup.args.work) / digest.hexdigest()[:16]
    with _alone(folder):
        query, record = train_on(
            folder / "model.safetensors",
            images,
            labels,
            len(setup.data.class_names),
            seed,
            setup.device,
            net_type,
            **recipe,
        )
    setup.models.append(
        {
            "name": name,
            "images": len(labels),
            "train_accuracy": record["train_accuracy"],
            "test_accuracy": _test_accuracy(setup, query),
        }
    )
    return query, record


def _test_accuracy(setup, query):
    test = setup.splits.test
    return utils.accuracy(query, setup.data.images, setup.data.labels, 2 * BATCH, test[:: -(-len(test) // TEST_IMAGES)])


@contextmanager
def _alone(folder):
    """Wait until no other process works in `folder`."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(files.lock_folder(folder))
                break
            except UserError:  # another method trains the model that this one needs, too
                time.sleep(WAIT_SECONDS)
        yield


def signals(query, images, labels):
    """`utils.sample_signals` of images uint8 (n, 3, H, W) under labels int64 (n,): {name: float64 (n,)}."""
    parts = [utils.sample_signals(query(images[part]), labels[part]) for part in torch.arange(len(labels)).split(BATCH)]
    return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}


def rate(setting, figure, hits, of, paper=None):
    """A row of result.json: a rate with its 95 % Clopper-Pearson interval. paper: a share in [0, 1] or None."""
    return {
        "setting": setting,
        "figure": figure,
        "value": hits / of,
        "hits": int(hits),
        "of": int(of),
        "interval": utils.clopper_pearson(hits, of),
        "paper": paper,
    }


def row(setting, figure, value, paper=None):
    """A row of result.json for a figure that isn't a rate: no interval from one model, a spread over the seeds."""
    return {"setting": setting, "figure": figure, "value": float(value), "interval": None, "paper": paper}


def audit_rows(setting, member, other, kind, fpr=1e-3, paper=None):
    """FPR@100%TPR, TPR at `fpr` and AUC of losses (users, K) against losses (other users, K').

    kind: "set" or "instance"; paper: {figure: the paper's value} where it has one.
    """
    found, paper = utils.membership_inference(member, other, kind == "instance", (fpr,)), paper or {}
    at, of = found["tpr_at_fpr"][0], found["members"]
    figure = f"TPR@{100 * fpr:g}%FPR"
    return [
        rate(setting, "FPR@100%TPR", found["false_positives"], found["non_members"], paper.get("FPR@100%TPR")),
        rate(setting, figure, round(at["tpr"] * of), of, paper.get(figure)),
        row(setting, "AUC", found["auc"], paper.get("AUC")),
    ]


def claim(text, left, relation, right):
    """A conclusion of the paper to be held against the pooled rows.

    left, right: (setting, figure) of a row, or a number; relation: "<", "<=", ">" or ">=".
    """
    return {"claim": text, "left": left, "relation": relation, "right": right}


def draw_rocs(panels, path):
    """ROC curves in the paper's logarithmic axes. panels: {title: {label: (member scores, others' scores)}}, low: in.

    What stands before a "(" in the label decides the colour.
    """
    figure, axes = plots.figure_of(1, len(panels), (5.2 * len(panels) + 0.4, 5))
    names = list(dict.fromkeys(label.split("(")[0] for curves in panels.values() for label in curves))
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        lowest = min([1e-3] + [0.4 / np.size(other) for _, other in curves.values()])
        # Two perfect curves would hide each other, so they get thinner and thinner.
        for place, (label, (member, other)) in enumerate(curves.items()):
            _, fpr, tpr = plots.roc_points(np.ravel(member), np.ravel(other))
            axis.plot(
                fpr,
                tpr,
                label=label,
                drawstyle="steps-post",
                color=f"C{names.index(label.split('(')[0])}",
                linewidth=max(1.2, 3.2 - 0.4 * place),
            )
        axis.plot([lowest, 1], [lowest, 1], color="grey", linewidth=0.8, linestyle=":")
        axis.set(
            xscale="log",
            yscale="log",
            xlim=(lowest, 1.2),
            ylim=(1e-3, 1.3),
            title=title,
            xlabel="false positive rate",
            ylabel="true positive rate",
        )
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    plots.save_figure(figure, path)


def finish(setup, rows, claims, arrays, notes=()):
    """Write result.json and scores.npz of a method, print its table, ours next to the paper's."""
    out, method = Path(setup.args.out), Path(sys.argv[0]).stem
    settings = {name: value for name, value in vars(setup.args).items() if name not in ("out", "work", "data_root")}
    files.write_arrays(out / "scores.npz", **arrays)
    files.write_json(
        out / "result.json",
        {
            "method": method,
            "settings": {**settings, **setup.stage.settings},
            "rows": rows,
            "claims": claims,
            "models": setup.models,
            "notes": list(notes),
            "hardware": hardware_name(setup.device),
            "versions": software_versions(),
        },
    )
    stage = setup.stage.settings
    print(
        f"\n{method}: {stage['dataset']}, {stage['net_type']}, {len(setup.splits.train)} training images, "
        f"seed {stage['seed']}"
    )
    table(rows)
    accuracies = [min(one[name] for one in setup.models) for name in ("train_accuracy", "test_accuracy")]
    print(
        "models: {}, training accuracy at least {:.2f} %, test accuracy at least {:.2f} %".format(
            len(setup.models), *(100 * value for value in accuracies)
        )
    )
    print(f"result: {out / 'result.json'}")


def table(rows):
    """Print rows, ours next to the paper's."""
    head = ["setting", "figure", "ours (95 % interval)", "paper"]
    lines = [[one["setting"], one["figure"], shown(one), shown_paper(one)] for one in rows]
    print("\n".join(tables.columns([head, *lines])))


def shown_paper(one):
    """The paper's value of a row as text, "-" where it has none."""
    return "-" if one["paper"] is None else shown({**one, "value": one["paper"], "interval": None})


def shown(one):
    """The value of a row as text: a rate in %, with its interval, and anything else with four digits."""
    if "of" not in one:
        return f"{one['value']:.4f}"
    text = f"{100 * one['value']:.2f} %"
    return (
        text if one["interval"] is None else f"{text} ({100 * one['interval'][0]:.2f}-{100 * one['interval'][1]:.2f})"
    )

"""Can the owner of a data set find the marked images in it? Input detection, section 5.2.6, Figs. 8 and 9.

Example: python -m detection.input_detection --dataset cifar10 --features resnet18_pretrained --out detection
Three ways: eight unsupervised detectors on the features of a network that was trained on other data, fitted on a small
clean set; MCHAD, which has been shown other images with marks of the same kind; neural PCA for spurious features. Each
is tried on the stripes in every strength, on pictures of --ood_pattern in their place, which MCHAD has not seen, and as
a control on images blended with plain grey: who finds those sees the loss of contrast and not the mark. For each seed a
folder has result.json and the plots; OUT/result.json and summary.md have all seeds, with the paper's figures. What is
there already is taken up when the same command is given again.
"""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

import utils
from dataset import load_dataset, load_outlier_bank
from dataset.base import make_splits
from detection import detectors
from experiment import flags
from experiment.settings import data_fingerprint
from kit import cli, environment, files, plots, tables
from kit.errors import UserError, run_script
from kit.progress import Progress
from networks import build_network
from suspects.opened import open_model

IMAGENET = "resnet18_pretrained"
MCHAD, PCA, BEST = "MCHAD", "Neural PCA", "best of eight"
# Section 5.2.6, by detector and marking: AUCs. Of the eight it gives the best alone (0.8085: Mahalanobis).
PAPER = {
    (BEST, "0.7, 8/255"): "0.8085",
    (BEST, "0.8, 4/255"): "0.6333",
    (PCA, "0.7, 8/255"): "0.6181",
    (MCHAD, "0.7, 8/255"): "near 1",
    (MCHAD, "0.7, pictures"): "0.66",
}
# Settings of MCHAD; the paper gives none. Margin and weight: the best of three for the known marks on CIFAR-10, with
# another seed than any in results/.
MCHAD_SETTINGS = {"batch_size": 128, "lr": 2e-3, "margin": 5.0, "weight_oe": 0.2}


def make_parser():
    """The script's flags; those that train.py has, too, mean the same."""
    number, parser = cli.number, cli.Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--dataset", default="cifar100", help="the images that are marked (default cifar100)")
    add("--data_root", help="folder of the data set (default ./dataset; needed for imagefolder)")
    add("--image_size", type=number(int, 8, 4096), help="side in pixels, for folder data sets")
    add("--train_size", type=number(int, 2), help="images of the data set that is searched (default: the recipe's)")
    add(
        "--features",
        default=IMAGENET,
        help=f"the network whose features are looked at: {IMAGENET} (ImageNet's "
        "weights; default), a run folder or checkpoint of train.py, or a state dict with --net_type",
    )
    add("--net_type", help="for a state dict: a network of networks/, torchvision or timm, e.g. torchvision:resnet50")
    add("--pretrained_weights", help="file with ImageNet weights of ResNet-18, where torchvision can't download")
    add(
        "--head",
        choices=("own", "probe"),
        default="own",
        help="logits for MSP, energy, KLMatching, ViM, DICE: of the "
        "network's own classes, or of a linear classifier of the data set's classes fitted on the clean set",
    )
    add("--fit_share", type=number(float, above=0), default=0.1, help="clean set / train_size (default 0.1)")
    add("--num_of_multiTarget_diffCls", type=number(int, 1), default=100, help="users who mark (default 100)")
    add("--marked_samples_per_user", type=number(int, 1), default=25, help="marked images of each (default 25)")
    add("--clean_images", type=number(int, 2), default=2500, help="other training images compared (default 2500)")
    flags.add_marking_flags(
        parser,
        pattern=False,
        strengths="+",
        img_blending_ratio=[0.7, 0.8],
        noise_injection_type="perlin",
        noise_norm=[8.0, 4.0],
    )
    add(
        "--ood_pattern",
        default="tinyimagenet",
        help="outlier features in place of stripes: tinyimagenet, celeba, a folder of images; none leaves this out",
    )
    add("--mchad_epochs", type=number(int, 0), default=20, help="0 leaves MCHAD out (default 20)")
    add("--seed", nargs="+", type=number(int, 0), default=[1], help="one run for each")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    add("--out", required=True, help="folder for results and plots")
    return parser


# ----------------------------------------------------------------------------------------------------------------------
# Features
# ----------------------------------------------------------------------------------------------------------------------


class FeatureNetwork:
    """A network seen from its last layer. head: detectors.Head of its own classes; class_names: tuple, or None."""

    def __init__(self, suspect):
        self._suspect, self.class_names, self.identity = suspect, suspect.class_names, suspect.identity
        size = suspect.preprocessing.size
        features, layer, answers = self._ask(np.random.default_rng(0).integers(0, 256, (2, 3, *size), dtype=np.uint8))
        head = (
            None
            if layer is None
            else detectors.Head(
                layer.weight.detach().float().cpu(),
                torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach().float().cpu(),
            )
        )
        if (
            head is None
            or answers is None
            or head.logits(features).shape != answers.shape
            or not np.allclose(head.logits(features).numpy(), answers, rtol=1e-3, atol=1e-3)
        ):
            raise UserError(
                f"--features {suspect.name} does not end in a linear layer whose input could be looked at",
                advice="give a PyTorch network that does, such as a ResNet",
            )
        self.head = head

    def _ask(self, images):
        seen = {}

        def keep(module, inputs):
            if isinstance(module, nn.Linear):
                seen.update(layer=module, features=inputs[0].detach().float().cpu())

        hook = nn.modules.module.register_module_forward_pre_hook(keep)
        try:
            answers = self._suspect.ask(images).values
        finally:
            hook.remove()
        features = seen.get("features")
        if features is not None and len(features) != len(images):
            raise RuntimeError(f"{len(features)} features of {len(images)} images: the network was asked in pieces")
        return features, seen.get("layer"), answers

    def features(self, images):
        """Input of the last layer for uint8 images (N, 3, H, W), which are scaled to its size: float32 (N, D), CPU."""
        fit, found = self._suspect.preprocessing, []
        for part in Progress(images.split(min(64, utils.images_at_once(*fit.size))), "features"):
            pixels = part.numpy()
            if pixels.shape[2:] != tuple(fit.size):
                pixels = np.stack([fit.fit(image.transpose(1, 2, 0)) for image in pixels])
            found.append(self._ask(pixels)[0])
        return torch.cat(found)


def open_features(args, device):
    """The FeatureNetwork of the flags --features, --net_type, --pretrained_weights."""
    path, net_type, overrides = args.features, args.net_type, None
    if args.features == IMAGENET:
        if net_type is not None:
            raise UserError(f"--features {IMAGENET} is a network already", advice="leave --net_type out or give a file")
        path = args.pretrained_weights
        if path is None:
            from torchvision.models import ResNet18_Weights

            build_network(IMAGENET, 2)  # downloads what is not there
            path = Path(torch.hub.get_dir()) / "checkpoints" / ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]
        net_type, overrides = "torchvision:resnet18", {"size": 224}
    elif args.pretrained_weights:
        raise UserError(f"--pretrained_weights is for --features {IMAGENET}", advice="leave it out")
    return FeatureNetwork(open_model(path, net_type, device, "float32", overrides))


# ----------------------------------------------------------------------------------------------------------------------
# Who marks what
# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """One seed's images, as rows of the data set (int64): `users` mark theirs, `clean` are other training images, `fit`
    are no training images and fit the detectors. The three never overlap."""

    users: utils.Users
    clean: np.ndarray
    fit: np.ndarray


def draw_images(data, settings):
    """Choose everybody's images from the seed. Raises UserError when the data set is too small."""
    seed, size, users = settings["seed"], settings["train_size"], settings["num_of_multiTarget_diffCls"]
    splits = make_splits(data.labels, data.is_test, size, 0, seed)
    names = np.arange(len(data.class_names))
    classes = np.resize(utils.key_generator(seed, "input detection", "classes").permutation(names), users)
    target = utils.draw_target_users(
        data.labels, splits.train, classes, settings["marked_samples_per_user"], utils.derive_key(seed, "target users")
    )
    others = np.setdiff1d(splits.train.numpy(), target.samples)
    outside, count = splits.non_member.numpy(), round(settings["fit_share"] * size)
    if min(len(others), settings["clean_images"]) < 2 or count > len(outside):
        raise UserError(
            f"--train_size {size} leaves {len(others)} unmarked training images and {len(outside)} others, "
            f"of which {count} shall fit the detectors",
            advice="lower --train_size, --fit_share or the users",
        )
    clean, fit = (
        utils.key_generator(seed, "input detection", what).permutation(rows)[:many]
        for what, rows, many in (("clean", others, settings["clean_images"]), ("fit", outside, count))
    )
    return Images(target, np.sort(clean), np.sort(fit))


def mark(data, users, marking):
    """The users' images as they publish them, in the order of users.samples: uint8 (users * K, 3, H, W)."""
    owners, numbers = (part.ravel() for part in np.indices(users.samples.shape))
    return utils.mark_images(data.images[torch.from_numpy(users.samples.ravel())], users.key, owners, numbers, marking)


# ----------------------------------------------------------------------------------------------------------------------
# One seed
# ----------------------------------------------------------------------------------------------------------------------


def markings(settings, bank, size):
    """What is tried, by name: `utils.Marking` of the stripes in each strength, the first strength with outlier features
    of `bank` (uint8 (B, 3, H, W); None leaves it out), and the control, a blend with plain grey of `size` (H, W)."""
    ratios, norms, kind = settings["img_blending_ratio"], settings["noise_norm"], settings["noise_injection_type"]
    found = {
        f"{ratio:g}, {norm:g}/255": utils.Marking(ratio, kind, norm) for ratio, norm in zip(ratios, norms, strict=True)
    }
    if bank is not None:
        found[f"{ratios[0]:g}, pictures"] = utils.Marking(ratios[0], kind, norms[0], bank)
    grey = torch.full((1, 3, *size), 128, dtype=torch.uint8)
    return found | {f"{ratios[0]:g}, plain grey": utils.Marking(ratios[0], "none", 0, grey)}


def run(data, network, bank, settings, device):
    """Everything for one seed: the JSON-ready result (rows: one for each detector and marking) and what was marked."""
    started, chosen = time.monotonic(), draw_images(data, settings)
    labels = data.labels[torch.from_numpy(chosen.fit)]
    detectors.check_classes(labels, len(data.class_names))
    fit, clean = data.images[torch.from_numpy(chosen.fit)], data.images[torch.from_numpy(chosen.clean)]
    tried = markings(settings, bank, data.images.image_shape[1:])
    marked = {name: mark(data, chosen.users, marking) for name, marking in tried.items()}
    scores = on_features(data, network, chosen, (fit, clean, *marked.values()), settings)
    if settings["mchad_epochs"]:
        score = detectors.train_mchad(
            fit,
            labels,
            next(iter(tried.values())),
            {**MCHAD_SETTINGS, "epochs": settings["mchad_epochs"], "seed": settings["seed"]},
            device,
        )
        scores[MCHAD] = [score(images) for images in (clean, *marked.values())]
    key = utils.derive_key(settings["seed"], "input detection")
    rows = [
        {"detector": detector, "marking": name, **detectors.detection(found, on_clean, key)}
        for detector, (on_clean, *others) in scores.items()
        for name, found in zip(marked, others, strict=True)
    ]
    counts = {
        "fit": len(chosen.fit),
        "clean": len(chosen.clean),
        "marked": chosen.users.samples.size,
        "users": len(chosen.users),
    }
    return {
        "settings": settings,
        "images": counts,
        "rows": rows,
        "seconds": time.monotonic() - started,
        "hardware": environment.hardware_name(device),
        "versions": environment.software_versions("pytorch-ood"),
    }, marked


def on_features(data, network, chosen, images, settings):
    """Scores of the eight unsupervised detectors and of neural PCA, {detector: [float64 (N,) for each set]}.

    images: what they are fitted on, then the sets: clean, and marked in each way.
    """
    fit, *sets = (network.features(part) for part in images)
    fit_labels, clean_labels = (data.labels[torch.from_numpy(part)] for part in (chosen.fit, chosen.clean))
    marked_labels = torch.from_numpy(np.repeat(chosen.users.classes, chosen.users.samples.shape[1]))
    # Neural PCA needs weights of the data set's own classes, whose clean images are at hand.
    same = network.class_names == data.class_names
    own_classes = network.head if same else detectors.fit_head(fit, fit_labels)
    head = own_classes if settings["head"] == "probe" else network.head
    scores = {}
    for name in Progress(detectors.UNSUPERVISED, "detectors"):
        score = detectors.fit_detector(name, fit, fit_labels, head)
        scores[name] = [score(part) for part in sets]
    pca, labels = detectors.NeuralPCA(fit, fit_labels, own_classes), [clean_labels] + [marked_labels] * (len(sets) - 1)
    return {**scores, PCA: [pca.scores(part, own) for part, own in zip(sets, labels, strict=True)]}


# ----------------------------------------------------------------------------------------------------------------------
# All seeds
# ----------------------------------------------------------------------------------------------------------------------


def main():
    args = make_parser().parse_args()
    if len(args.img_blending_ratio) != len(args.noise_norm):
        raise UserError(
            "--img_blending_ratio and --noise_norm need one value for each marking strength", advice="give as many"
        )
    detectors.library()
    device = utils.choose_device(args.device)
    data = load_dataset(args.dataset, args.data_root, args.image_size)
    network = open_features(args, device)
    bank = None
    if args.ood_pattern != "none":
        bank = load_outlier_bank(args.ood_pattern, *data.images.image_shape[1:], args.data_root)
    shared = settings_of(args, data, network, bank)
    out = Path(args.out)
    with files.lock_folder(out):
        results = []
        for seed in args.seed:
            settings, path = {**shared, "seed": seed}, out / f"seed-{seed}" / "result.json"
            if path.exists():
                stored = files.read_json(path)
                files.check_same_settings(
                    stored.get("settings"), settings, path, advice="choose another --out", command=None
                )
            else:
                stored, marked = run(data, network, bank, settings, device)
                draw(stored, marked, path.parent)
                files.write_json(path, stored)
            results.append(stored)
        conclude(results, out)


def settings_of(args, data, network, bank):
    """What decides the figures, JSON-ready; files by their content."""
    names = (
        "head",
        "fit_share",
        "num_of_multiTarget_diffCls",
        "marked_samples_per_user",
        "clean_images",
        "img_blending_ratio",
        "noise_norm",
        "noise_injection_type",
        "mchad_epochs",
    )
    return {
        "dataset": data.name,
        "data": data_fingerprint(data),
        "train_size": args.train_size or data.recipe.train_size,
        "features": f"{network.identity['net_type']} {network.identity['sha256'][:16]}",
        "pictures": None if bank is None else hashlib.sha256(bank.numpy().tobytes()).hexdigest()[:16],
        "mchad": MCHAD_SETTINGS,
        **{name: getattr(args, name) for name in names},
    }


def conclude(results, out):
    """Print the tables of all seeds, keep them in summary.md, and every seed's figures in OUT/result.json."""
    settings, counts, found = results[0]["settings"], results[0]["images"], summary(results)
    text = "\n".join(
        f"{title}\n\n{tabulate(found, what, *style)}"
        for title, what, *style in (
            ("AUC", "auc", 1, 3, ""),
            ("Marked images found at 5 % false positives", "tpr_at_5_fpr", 100, 1, " %"),
        )
    )
    network = settings["features"].split()[0]
    text = (
        f"{settings['dataset']}, features of {network}: {counts['marked']} marked images of {counts['users']} "
        f"users, {counts['clean']}\nclean ones, fitted on {counts['fit']}. Mean (lowest-highest) of {len(results)} "
        f"seed(s); blending ratio, noise norm or outlier feature.\n\n{text}"
    )
    print(f"\n{text}")
    with files.atomic_path(out / "summary.md") as path:
        path.write_text(text)
    files.write_json(
        out / "result.json",
        {
            "settings": {**settings, "seed": [one["settings"]["seed"] for one in results]},
            "images": counts,
            "summary": found,
            "seconds": [one["seconds"] for one in results],
            "hardware": results[0]["hardware"],
            "versions": results[0]["versions"],
        },
    )
    cli.show_rows([("result", out / "result.json"), *(("plot", path) for path in sorted(out.glob("seed-*/*.png")))])


def summary(results):
    """One dict for each detector and marking: figures of every seed, and what the paper says of the AUC.

    BEST is the one of the eight with the highest AUC in each seed, as in the paper, which gives no other.
    """
    rows = [{"seed": one["settings"]["seed"], **row} for one in results for row in one["rows"]]
    order, names = list(dict.fromkeys(row["detector"] for row in rows)), dict.fromkeys(row["marking"] for row in rows)
    order.insert(len(detectors.UNSUPERVISED), BEST)
    table = pd.DataFrame(rows)
    eight = table[table.detector.isin(detectors.UNSUPERVISED)]
    best = eight.loc[eight.groupby(["seed", "marking"]).auc.idxmax()].assign(detector=BEST)
    groups = dict(iter(pd.concat([table, best]).groupby(["detector", "marking"])))
    return [
        {
            "detector": detector,
            "marking": name,
            "paper_auc": PAPER.get((detector, name)),
            **{what: groups[detector, name].sort_values("seed")[what].tolist() for what in ("auc", "tpr_at_5_fpr")},
        }
        for detector in order
        for name in names
    ]


def tabulate(found, what, scale, digits, unit):
    """A Markdown table of a `summary`: detectors by markings, with the paper's AUCs below ours."""
    cells = {(one["detector"], one["marking"]): one for one in found}
    detectors_, names = (list(dict.fromkeys(column)) for column in zip(*cells, strict=True))
    rows = []
    for detector in detectors_:
        rows.append([detector, *(spread(cells[detector, name][what], scale, digits, unit) for name in names)])
        paper = [cells[detector, name]["paper_auc"] or "" for name in names]
        if what == "auc" and any(paper):
            rows.append(["- in the paper", *paper])
    return tables.markdown(["detector", *names], rows, aligned=True)


def spread(values, scale, digits, unit):
    """ "0.701 (0.690-0.712)": mean and extremes over seeds, the mean alone for one."""
    values = scale * np.asarray(values, dtype=np.float64)
    text = f"{values.mean():.{digits}f}{unit}"
    return text if len(values) == 1 else f"{text} ({values.min():.{digits}f}-{values.max():.{digits}f})"


# ----------------------------------------------------------------------------------------------------------------------
# Plots
# ----------------------------------------------------------------------------------------------------------------------


def draw(result, marked, folder):
    """unsupervised.png (Fig. 8) and, with MCHAD, supervised.png (Fig. 9). marked: {marking: images}, for examples."""
    strengths = [name for name in marked if name.endswith("/255")]
    figure, axes = plots.figure_of(1, len(strengths), (5.2 * len(strengths), 5.6))
    names = [*detectors.UNSUPERVISED, PCA]
    for axis, strength in zip(axes[0], strengths, strict=True):
        found = sorted(
            (row for row in result["rows"] if row["detector"] in names and row["marking"] == strength),
            key=lambda row: -row["auc"],
        )
        for row in found:
            roc_line(
                axis,
                row,
                row["detector"],
                f"C{names.index(row['detector'])}",
                "--" if row["detector"] == PCA else "-",
                2.4 if row is found[0] else 1.1,
            )
        finish(axis, "blending ratio {}, noise {}".format(*strength.split(", ")))
    plots.save_figure(figure, folder / "unsupervised.png")
    rows = [row for row in result["rows"] if row["detector"] == MCHAD and row["marking"] not in strengths[1:]]
    if rows:
        step = result["settings"]["marked_samples_per_user"]
        draw_supervised(rows, {name: images[::step][:3] for name, images in marked.items()}, folder / "supervised.png")


def draw_supervised(rows, examples, path):
    """Fig. 9: MCHAD on marks of the kind that it was trained with and on others, with examples of each."""
    figure, axes = plots.figure_of(1, 2, (9.4, 5))
    strips = []
    for row, color in zip(rows, (plots.MEMBER_COLOR, plots.NON_MEMBER_COLOR, "grey"), strict=False):
        name = {"pictures": "other pictures", "plain grey": "plain grey (control)"}.get(
            row["marking"].split(", ")[1], "stripes, as in training"
        )
        roc_line(axes[0, 0], row, name, color, "-", 2)
        strips.append(torch.cat(list(examples[row["marking"]]), dim=2))
        axes[0, 1].text(
            -1,
            (len(strips) - 0.5) * (strips[0].shape[1] + 2) - 1.5,
            name.split(",")[0].split(" (")[0],
            rotation=90,
            ha="right",
            va="center",
            color=color,
        )
    finish(axes[0, 0], "MCHAD, trained on images marked with stripes")
    gap = torch.full_like(strips[0][:, :2], 255)
    stacked = torch.cat([part for strip in strips for part in (strip, gap)][:-1], dim=1)
    axes[0, 1].imshow(stacked.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes[0, 1].set(xticks=[], yticks=[])
    axes[0, 1].spines[:].set_visible(False)
    plots.save_figure(figure, path)


def roc_line(axis, row, name, color, style, width):
    low, high = row["interval"]
    axis.plot(
        detectors.ROC_GRID,
        row["roc"],
        style,
        color=color,
        linewidth=width,
        label=f"{name}: {row['auc']:.3f} ({low:.3f}-{high:.3f})",
    )


def finish(axis, title):
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    axis.set(title=title, xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01))
    axis.grid(alpha=0.3)
    # Below the axes: detectors that are worse than guessing run where a legend would lie.
    axis.legend(
        fontsize=8,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
        title="AUC (95 % interval)",
        title_fontsize=8,
        ncols=1 + (len(axis.lines) > 5),
    )


if __name__ == "__main__":
    run_script(main)

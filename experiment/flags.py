"""The command line that train.py and eval.py share: the original artifact's flags, with their names and meanings.

A flag that is not given is None until `resolve_settings` fills it from the data set's recipe, so that a script can tell
"the user asked for this" from "nobody said anything".

Public: make_parser, add_marking_flags, run_paths, tagged_paths, with_stored, resolve_settings, data_fingerprint,
TRAINING_FLAGS, USER_FLAGS, AUDIT_FLAGS, MARKING.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch

from countermeasures import countermeasure_names
from countermeasures import parse as parse_countermeasure
from dataset import dataset_names
from experiment.folder import RunPaths
from kit.cli import Parser, number
from kit.errors import UserError
from kit.files import file_digest
from networks import network_names
from utils import NOISE_TYPES, choose_precision

# Settings that decide the weights of the model; a checkpoint made with others is not the same run.
TRAINING_FLAGS = (
    "dataset",
    "image_size",
    "train_size",
    "val_portion",
    "net_type",
    "lr",
    "epoch",
    "batch_size",
    "momentum",
    "weight_decay",
    "seed",
    "clean_train",
    "marked_samples_per_user",
    "img_blending_ratio",
    "ood_pattern",
    "noise_injection_type",
    "noise_norm",
    "used_share",
    "countermeasure",
)
USER_FLAGS = ("target_user_cls", "num_of_multiTarget_diffCls", "num_of_multiTarget_sameCls")
# The paper's marking, where a flag is not given.
MARKING = {
    "img_blending_ratio": 0.7,
    "ood_pattern": "color_stripes",
    "noise_injection_type": "perlin",
    "noise_norm": 8.0,
}
# Settings of the audit, free to change on a trained model.
AUDIT_FLAGS = ("num_of_non_member_user", "instance_mi", "scaled_loss", "fpr", "verdict_fpr", "exact_keys")


def make_parser(description):
    """The flags of train.py and eval.py, in the groups in which --help shows them."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    switch = {"type": int, "choices": (0, 1)}

    data = parser.add_argument_group("data")
    data.add_argument("--dataset", help=f"one of {', '.join(dataset_names())} (default cifar100)")
    data.add_argument("--data_root", help="folder of the data set (default ./dataset; needed for imagefolder)")
    data.add_argument("--image_size", type=number(int, 8, 4096), help="side in pixels, for folder data sets")
    data.add_argument("--train_size", type=number(int, 2), help="images used for training and validation together")
    data.add_argument("--val_portion", type=number(float, 0, 0.9), help="share of train_size kept for validation")
    data.add_argument("--num_classes", type=int, help="read from the data set; an error if it is something else")

    training = parser.add_argument_group("training")
    training.add_argument("--net_type", help=f"one of {', '.join(network_names())}; or wideresnet<depth><width>")
    training.add_argument("--pretrained_weights", help="file with ImageNet weights, where torchvision can't download")
    training.add_argument("--lr", type=number(float, above=0), help="learning rate at the start")
    training.add_argument("--epoch", type=number(int, 1), help="number of epochs; lr / 5 at 60, 80, 90 %% of them")
    training.add_argument("--batch_size", type=number(int, 2))
    training.add_argument("--momentum", type=number(float, 0, 0.9999))
    training.add_argument("--weight_decay", type=number(float, 0))
    training.add_argument("--clean_train", **switch, help="1: train on the same samples without data marking")
    training.add_argument("--seed", type=number(int, 0), help="decides split, users, marks, weights, non-members")
    training.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    training.add_argument("--precision", default="auto", choices=("auto", "bfloat16", "float32"))

    training.add_argument(
        "--countermeasure",
        type=lambda text: str(parse_countermeasure(text)),
        help="what the model's owner does against the audit: NAME or "
        f"NAME:SETTING=VALUE,...; one of {', '.join(countermeasure_names())}",
    )
    training.add_argument(
        "--base_model",
        help="the same run without the countermeasure (folder, checkpoint or "
        "--save_tag), whose model is taken over if the countermeasure changes only a finished model",
    )

    marking = parser.add_argument_group("data marking")
    marking.add_argument(
        "--marked_samples_per_user",
        type=number(float, above=0),
        help="samples of each target user: a number >= 1, or a share of train_size below 1",
    )
    marking.add_argument(
        "--used_share",
        type=number(float, above=0, high=1),
        help="share of each user's marked samples that is trained on (default 1; Table 5)",
    )
    add_marking_flags(marking)

    users = parser.add_argument_group("target users")
    users.add_argument("--target_user_cls", nargs="+", type=number(int, 0), help="one user for each class given")
    users.add_argument(
        "--num_of_multiTarget_diffCls",
        type=number(int, 1),
        help="this many users, from as many different classes as there are",
    )
    users.add_argument("--num_of_multiTarget_sameCls", type=number(int, 1), help="this many users in each class")

    audit = parser.add_argument_group("audit")
    audit.add_argument("--num_of_non_member_user", type=number(int, 1), help="users of the out-world (default 5000)")
    audit.add_argument("--instance_mi", **switch, help="1: judge single samples, not users' sets")
    audit.add_argument("--scaled_loss", **switch, help="1: LiRA's logit-scaled loss, for members and non-members alike")
    audit.add_argument("--fpr", nargs="+", type=number(float, 0, 1), help="TPR is given at each (default 1e-3 1e-4 0)")
    audit.add_argument("--verdict_fpr", type=number(float, 0, 0.5), help="algorithm 1's FPR (default 1e-3)")

    audit.add_argument(
        "--exact_keys",
        type=number(int, 0),
        help="fresh keys of the exact test: p of every target and "
        "control user as if half of their photos had been held out (default 19; 0: no test)",
    )

    files = parser.add_argument_group("files")
    files.add_argument("--save_tag", default="tmp", help="name of the run")
    files.add_argument("--ckpt_folder", default="./checkpoint", help="where models go")
    files.add_argument("--res_folder", default="./saved_res", help="where everything else goes")
    files.add_argument("--out", help="one folder for all files of the run, in place of the three flags above")
    return parser


def add_marking_flags(parser, pattern=True, strengths=None, **defaults):
    """How samples are marked: --img_blending_ratio, --noise_injection_type, --noise_norm and --ood_pattern.

    parser: one, or a group of one; pattern: False leaves --ood_pattern out; strengths: "+" where several ratios and as
    many norms may be given; defaults: of flags whose default is not None, which stands for that of MARKING.
    """

    def flag(name, words, **settings):
        default = defaults.get(name)
        usual = default or MARKING[name]
        shown = " ".join(map(str, usual)) if isinstance(usual, list) else usual
        parser.add_argument(f"--{name}", default=default, help=words.format(shown), **settings)

    flag("img_blending_ratio", "Eq. 1's m (default {}; 1: no blend)", nargs=strengths, type=number(float, 0, 1))
    if pattern:
        flag("ood_pattern", "outlier features: {} (default), tinyimagenet, celeba, PATH")
    flag("noise_injection_type", "default {}", choices=NOISE_TYPES)
    flag("noise_norm", "budget in 1/255 units (default {})", nargs=strengths, type=number(float, 0, 255))


def run_paths(args, dataset, net_type):
    """The files of the run that train.py's flags name: --out, or the data set, network and tag."""
    return RunPaths.of_folder(args.out) if args.out else tagged_paths(args, dataset, net_type)


def tagged_paths(args, dataset, net_type, tag=None):
    """Files in --res_folder and --ckpt_folder, of --save_tag or another one. A tag that would leave these folders is a
    UserError."""
    tag = args.save_tag if tag is None else tag
    if "/" in tag or "\\" in tag or tag in ("", ".", ".."):
        raise UserError(f"--save_tag {tag!r} can't be a file name", advice="use letters, digits, '-' and '_'")
    return RunPaths.of_tag(args.res_folder, args.ckpt_folder, f"{dataset}-{net_type}-{tag}")


def with_stored(args, stored):
    """`args` with the stored settings of a run (a flat dict) where no flag was given."""
    for name in (*TRAINING_FLAGS, *USER_FLAGS, *AUDIT_FLAGS):
        if getattr(args, name) is None:
            setattr(args, name, stored.get(name))
    return args


def resolve_settings(args, data, device):
    """The two dicts of settings of a run, (training, audit): flags where given, the data set's recipe elsewhere."""
    recipe = data.recipe
    defaults = {
        "dataset": data.name,
        "image_size": data.images.image_shape[-1],
        "seed": 1,
        "clean_train": 0,
        **MARKING,
        "used_share": 1.0,
        "countermeasure": None,
        "instance_mi": 0,
        "scaled_loss": 0,
        "fpr": [1e-3, 1e-4, 0.0],
        "verdict_fpr": 1e-3,
        "exact_keys": 19,
    }

    def value_of(flag):
        given = getattr(args, flag)
        return given if given is not None else defaults[flag] if flag in defaults else getattr(recipe, flag)

    training = {flag: value_of(flag) for flag in TRAINING_FLAGS}
    if args.num_classes not in (None, len(data.class_names)):
        raise UserError(
            f"--num_classes {args.num_classes} does not fit {data.name}, which has {len(data.class_names)} classes",
            advice="leave the flag out",
        )
    training["marked_samples_per_user"] = _samples_per_user(training["marked_samples_per_user"], training["train_size"])
    training |= {name: getattr(args, name) for name in USER_FLAGS}
    if training["target_user_cls"] is None and training["num_of_multiTarget_diffCls"] is None:
        training["target_user_cls"] = [recipe.target_user_cls[0]]
    if training["target_user_cls"] is not None and (training["num_of_multiTarget_diffCls"] or 1) > 1:
        raise UserError(
            "--target_user_cls and --num_of_multiTarget_diffCls both choose the users' classes", advice="give one"
        )
    for label in training["target_user_cls"] or ():
        if label >= len(data.class_names):
            raise UserError(
                f"--target_user_cls {label} does not exist: {data.name} has classes 0 to {len(data.class_names) - 1}"
            )
    training["precision"] = choose_precision(args.precision, device)
    training["data"] = data_fingerprint(data)
    training["pretrained_weights"] = _digest_of_weights(args.pretrained_weights)
    # Another kind of device gives other bits, so that a run can't be continued there.
    training["device"] = device.type
    return training, {flag: value_of(flag) for flag in AUDIT_FLAGS}


def _digest_of_weights(path):
    """16 hex digits of a file's SHA-256, None without a file: the name of a file of weights says nothing about it."""
    if path is None:
        return None
    if not Path(path).is_file():
        raise UserError(f"--pretrained_weights {path} is not a file", advice="check the path")
    return file_digest(path)[:16]


def data_fingerprint(data):
    """16 hex digits that change with labels, classes, image shape or pixels (16 images are looked at)."""
    digest = hashlib.sha256(json.dumps([data.name, data.class_names, data.images.image_shape]).encode())
    digest.update(data.labels.numpy().tobytes())
    digest.update(data.images[torch.linspace(0, len(data.labels) - 1, 16).long()].numpy().tobytes())
    return digest.hexdigest()[:16]


def _samples_per_user(value, train_size):
    """An absolute number from 1 on, a share of the training set below 1."""
    if value < 1:
        number = round(value * train_size)
        if number < 1:
            raise UserError(f"--marked_samples_per_user {value} of {train_size} images is less than one sample")
        return number
    if value != int(value):
        raise UserError(f"--marked_samples_per_user {value} is neither a whole number nor a share below 1")
    return int(value)

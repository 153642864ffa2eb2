"""The command line that train.py and eval.py share: the original artifact's flags, with their names and meanings.

A flag that is not given is None until `settings.resolve_settings` fills it from the data set's recipe, so that a script
can tell "the user asked for this" from "nobody said anything". Nothing here imports torch: --help has to be quick.

Public: make_parser, add_run_flags, add_marking_flags, TRAINING_FLAGS, USER_FLAGS, AUDIT_FLAGS, DEFAULTS, MARKING,
RECIPE.
"""

from countermeasures import countermeasure_names
from dataset import dataset_names
from kit.cli import Parser, number
from kit.names import NOISE_TYPES
from networks import network_names

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
    "other_images",
    "marked_samples_per_user",
    "img_blending_ratio",
    "ood_pattern",
    "noise_injection_type",
    "noise_norm",
    "used_share",
    "countermeasure",
)
USER_FLAGS = ("target_user_cls", "num_of_multiTarget_diffCls", "num_of_multiTarget_sameCls")
# Settings of the audit, free to change on a trained model.
AUDIT_FLAGS = ("num_of_non_member_user", "instance_mi", "scaled_loss", "fpr", "verdict_fpr", "exact_keys", "calibrate")
# The paper's marking, where a flag is not given.
MARKING = {
    "img_blending_ratio": 0.7,
    "ood_pattern": "color_stripes",
    "noise_injection_type": "perlin",
    "noise_norm": 8.0,
}
# What every data set has in common.
DEFAULTS = {
    **MARKING,
    "seed": 1,
    "clean_train": 0,
    "other_images": None,
    "used_share": 1.0,
    "countermeasure": None,
    "instance_mi": 0,
    "scaled_loss": 0,
    "fpr": [1e-3, 1e-4, 0.0],
    "verdict_fpr": 1e-3,
    "exact_keys": 19,
    "calibrate": None,
}
# What --help says of flags that a data set's recipe fills: that of cifar100, which is the default.
RECIPE = {
    "train_size": 25_000,
    "val_portion": 0.2,
    "net_type": "wideresnet284",
    "lr": 0.1,
    "epoch": 100,
    "batch_size": 256,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "marked_samples_per_user": 25,
    "num_of_non_member_user": 5_000,
}
SWITCH = {"type": int, "choices": (0, 1)}


def make_parser(description):
    """The flags of train.py, in the groups in which --help shows them."""
    parser = Parser(description)
    add_run_flags(parser.add_argument_group)
    return parser


def add_run_flags(group_of):
    """All flags of train.py, each in the argparse group that `group_of` makes of a name: data, model, training, data
    marking, target users, audit, files."""
    _add_data_flags(group_of("data"))
    _add_model_flags(group_of("model"))
    _add_training_flags(group_of("training"))
    _add_user_flags(group_of("data marking"), group_of("target users"))
    _add_audit_flags(group_of("audit"))
    _add_file_flags(group_of("files"))


def _usual(name):
    """The end of a help text: what stands for a flag that is not given."""
    if name in RECIPE:
        return f"(default: the data set's; {RECIPE[name]} for cifar100)"
    value = DEFAULTS[name]
    return f"(default {' '.join(f'{each:g}' for each in value) if isinstance(value, list) else value})"


def _add_data_flags(group):
    add = group.add_argument
    add("--dataset", help=f"one of {', '.join(dataset_names())} (default cifar100)")
    add("--data_root", help="folder of the data set; needed for imagefolder (default ./dataset)")
    add("--image_size", type=number(int, 8, 4096), help="side in pixels, for folder data sets (default: theirs)")
    add(
        "--train_size",
        type=number(int, 2),
        help=f"images used for training and validation together {_usual('train_size')}",
    )
    add(
        "--val_portion",
        type=number(float, 0, 0.9),
        help=f"share of train_size kept for validation {_usual('val_portion')}",
    )
    add("--num_classes", type=int, help="an error if the data set has another number (default: the data set's)")


def _add_model_flags(group):
    add = group.add_argument
    add(
        "--net_type",
        help=f"network: one of {', '.join(network_names())}; or wideresnet<depth><width> {_usual('net_type')}",
    )
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    add(
        "--precision",
        default="auto",
        choices=("auto", "bfloat16", "float32"),
        help="of the arithmetic (default auto: bfloat16 where the hardware multiplies it)",
    )


def _add_training_flags(group):
    add = group.add_argument
    add(
        "--pretrained_weights",
        help="file with ImageNet weights, where torchvision can't download (default: torchvision's, where the network "
        "is pretrained)",
    )
    add("--lr", type=number(float, above=0), help=f"learning rate at the start {_usual('lr')}")
    add(
        "--epoch",
        type=number(int, 1),
        help=f"number of epochs; lr / 5 at 60, 80, 90 %% of them {_usual('epoch')}",
    )
    add("--batch_size", type=number(int, 2), help=f"images a step of training {_usual('batch_size')}")
    add("--momentum", type=number(float, 0, 0.9999), help=f"of SGD {_usual('momentum')}")
    add("--weight_decay", type=number(float, 0), help=f"of SGD {_usual('weight_decay')}")
    add(
        "--clean_train",
        **SWITCH,
        help=f"1: train on the same samples without data marking {_usual('clean_train')}",
    )
    add(
        "--other_images",
        **SWITCH,
        help="1: train on images that the same command without it leaves out, as many where there are as many: a "
        "model for --calibrate (default 0)",
    )
    add(
        "--seed",
        type=number(int, 0),
        help=f"decides split, users, marks, weights, non-members {_usual('seed')}",
    )
    add(
        "--countermeasure",
        type=_parsed_countermeasure,
        help="what the model's owner does against the audit: NAME or NAME:SETTING=VALUE,...; one of "
        f"{', '.join(countermeasure_names())} (default: nothing)",
    )
    add(
        "--base_model",
        help="the model that this one is made of: the same run without the countermeasure (folder, checkpoint or "
        "--save_tag), taken over if the countermeasure changes only a finished model (default: it is trained again); "
        "with --record that of a LoRA, which needs it, or of a fine-tuned diffusion model, encoder or captioner",
    )


def _parsed_countermeasure(text):
    from countermeasures import parse

    return str(parse(text))


def _add_user_flags(marking, users):
    marking.add_argument(
        "--marked_samples_per_user",
        type=number(float, above=0),
        help="samples of each target user: a number >= 1, or a share of train_size below 1 "
        f"{_usual('marked_samples_per_user')}",
    )
    marking.add_argument(
        "--used_share",
        type=number(float, above=0, high=1),
        help=f"share of each user's marked samples that is trained on; Table 5 {_usual('used_share')}",
    )
    add_marking_flags(marking)
    users.add_argument(
        "--target_user_cls",
        nargs="+",
        type=number(int, 0),
        help="one user for each class given (default: the data set's; 17 for cifar100)",
    )
    users.add_argument(
        "--num_of_multiTarget_diffCls",
        type=number(int, 1),
        help="this many users, from as many different classes as there are (default: those of --target_user_cls)",
    )
    users.add_argument(
        "--num_of_multiTarget_sameCls", type=number(int, 1), help="this many users in each class (default 1)"
    )


def _add_audit_flags(group):
    add = group.add_argument
    add(
        "--num_of_non_member_user",
        type=number(int, 1),
        help=f"users of the out-world {_usual('num_of_non_member_user')}",
    )
    add("--instance_mi", **SWITCH, help=f"1: judge single samples, not users' sets {_usual('instance_mi')}")
    add(
        "--scaled_loss",
        **SWITCH,
        help=f"1: LiRA's logit-scaled loss, for members and non-members alike {_usual('scaled_loss')}",
    )
    add("--fpr", nargs="+", type=number(float, 0, 1), help=f"TPR is given at each {_usual('fpr')}")
    add("--verdict_fpr", type=number(float, 0, 0.5), help=f"algorithm 1's FPR {_usual('verdict_fpr')}")
    add(
        "--exact_keys",
        type=number(int, 0),
        help="fresh keys of the exact test: p of every target and control user as if half of their photos had been "
        f"held out; 0: no test {_usual('exact_keys')}",
    )
    add(
        "--calibrate",
        metavar="MODEL",
        help="a model that has not seen the users' samples (run folder, checkpoint or ONNX file), asked the same: "
        "beside the run's own results stand those without what it finds difficult; none: without it (default none)",
    )


def _add_file_flags(group):
    add = group.add_argument
    add("--save_tag", default="tmp", help="name of the run (default tmp)")
    add("--ckpt_folder", default="./checkpoint", help="where models go (default ./checkpoint)")
    add("--res_folder", default="./saved_res", help="where everything else goes (default ./saved_res)")
    add("--out", help="one folder for all files (default: the three flags above)")


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

    flag("img_blending_ratio", "Eq. 1's m, 1: no blend (default {})", nargs=strengths, type=number(float, 0, 1))
    if pattern:
        flag("ood_pattern", "outlier features: color_stripes, tinyimagenet, celeba, PATH (default {})")
    flag("noise_injection_type", "kind of noise (default {})", choices=NOISE_TYPES)
    flag("noise_norm", "budget in 1/255 units (default {})", nargs=strengths, type=number(float, 0, 255))

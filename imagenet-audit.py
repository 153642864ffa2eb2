"""Audit an ImageNet model (section 6) on folders of marked images: members, whom it was trained on, and non-members.

Example: python imagenet-audit.py --resume_path checkpoint.pth --arch resnet50 --member_data_folder TREE/members \
             --non_member_data_folder TREE/non_members --val_set_data_folder TREE/val --marked_samples_per_user 125 \
             --manifest TREE/manifest.json --out saved_res/imagenet-resnet50-125
The images are marked already (imagenet-prepare.py, data_marking.py); those that have the size of the model's input are
fed as they are. Users come from the manifest, or from the folders: FOLDER/USER/CLASS/IMAGES, or FOLDER/CLASS/IMAGES,
where --marked_samples_per_user consecutive images of a class are one user. Writes losses.npz, roc.png, losses.png and
result.json to --out; a finished audit with the same settings is only shown again.
"""

from kit.errors import run_script


def make_parser():
    from kit import cli
    from kit.names import INTERPOLATIONS
    from suspects.flags import add_preprocessing_flags

    parser, number = cli.Parser(__doc__), cli.number
    model = parser.add_argument_group("model")
    model.add_argument("--resume_path", required=True, help="checkpoint: .pth, .safetensors, .onnx, or a run folder")
    model.add_argument(
        "--arch",
        "--net_type",
        help="network of a checkpoint, by its name in torchvision or timm, or timm:NAME (default: what the file says; "
        "resnet50 for weights alone)",
    )
    add_preprocessing_flags(model)
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    model.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "bfloat16", "float32"),
        help="of the arithmetic (default auto: bfloat16 where the hardware multiplies it)",
    )
    model.add_argument("--batch_size", type=number(int, 1, 4096), default=64, help="images a query (default 64)")
    data = parser.add_argument_group("data")
    data.add_argument("--member_data_folder", required=True, help="marked images that were trained on")
    data.add_argument("--non_member_data_folder", required=True, help="marked images that were not")
    data.add_argument(
        "--val_set_data_folder",
        help="CLASS/IMAGES: accuracy, and the order of the classes (default: no accuracy, and the order of the model "
        "or the manifest)",
    )
    data.add_argument(
        "--val_resize",
        type=number(int, 1, 8192),
        help="shorter side of validation images before the centre crop, 256 in the original (default: --resize, or the "
        "model's own)",
    )
    data.add_argument(
        "--val_interpolation", choices=INTERPOLATIONS, help="of validation images (default: as of the others)"
    )
    data.add_argument(
        "--manifest", help="manifest.json of imagenet-prepare.py: says who the users are (default: the folders do)"
    )
    data.add_argument(
        "--marked_samples_per_user",
        type=number(int, 1),
        help="so many of each user, the first by name; where classes are users, every so many are one (default: all, "
        "if users have equally many)",
    )
    judging = parser.add_argument_group("audit")
    switch = {"type": int, "choices": (0, 1), "default": 0}
    judging.add_argument("--instance_mi", help="1: judge single samples, not sets (default 0)", **switch)
    judging.add_argument("--scaled_loss", help="1: LiRA's logit-scaled loss (default 0)", **switch)
    judging.add_argument(
        "--fpr",
        nargs="+",
        type=number(float, 0, 1),
        default=[1e-3, 1e-4, 0.0],
        help="TPR is given at each (default 1e-3 1e-4 0)",
    )
    judging.add_argument("--verdict_fpr", type=number(float, 0, 0.5), default=1e-3, help="algorithm 1's (default 1e-3)")
    judging.add_argument(
        "--seed", type=int, default=1, help="taken as in the original, and without effect: nothing is drawn (default 1)"
    )
    parser.add_argument(
        "--out", default="saved_res/imagenet-audit", help="folder for results (default saved_res/imagenet-audit)"
    )
    return parser


def main():
    args = make_parser().parse_args()
    from imagenet.audit import run_audit

    run_audit(args)


if __name__ == "__main__":
    run_script(main)

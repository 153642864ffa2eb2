"""Prepare the ImageNet experiment (section 6): choose users, mark their images, write a tree to train on.

Example: python imagenet-prepare.py --data_root IMAGENET --out TREE --num_of_users 1000 --marked_samples_per_user 125
Reads IMAGENET/train/CLASS/FILES and IMAGENET/val/CLASS/FILES, and changes nothing there. Writes TREE/train and TREE/val
for any script that reads an ImageFolder (links to untouched images, the members' marked files, without the images of
non-member users), TREE/members and TREE/non_members for imagenet-audit.py, TREE/records (a mark record of each member,
for eval.py), manifest.json and result.json. Keep all but train and val secret. A call that was interrupted is started
again with the same command.
"""

from kit.errors import run_script


def make_parser():
    from experiment import flags
    from kit import cli

    parser, number = cli.Parser(__doc__), cli.number
    parser.add_argument("--data_root", required=True, help="folder with train/CLASS/FILES and val/CLASS/FILES")
    parser.add_argument("--out", required=True, help="TREE, a new folder outside of the data set")
    users = parser.add_argument_group("users")
    users.add_argument(
        "--num_of_users",
        type=number(int, 1),
        default=1000,
        help="member users, whose marked images stay in the training tree (default 1000)",
    )
    users.add_argument("--marked_samples_per_user", type=number(int, 1), default=125, help="of each user (default 125)")
    users.add_argument(
        "--num_of_non_member_users",
        type=number(int, 1),
        help="users whose images the model never sees (default: as many as members)",
    )
    users.add_argument(
        "--non_member_source",
        choices=("train", "val"),
        default="train",
        help="train: their images are taken out of the training tree (default); val: they own "
        "validation images, 50 of a class in ImageNet, and share them",
    )
    users.add_argument(
        "--non_member_pool",
        type=number(int, 1),
        help="images of each class which its non-member users share, as in the paper (default: images "
        "of their own from train, all images of a class from val)",
    )
    users.add_argument(
        "--holdout",
        type=number(float, 0, 0.9),
        default=0.0,
        help="share of a member's photos that is kept out of the tree, for eval.py's exact test (default 0)",
    )
    users.add_argument("--seed", type=number(int, 0), default=1, help="decides users, images and marks (default 1)")
    marking = parser.add_argument_group("data marking")
    usual = {name: value for name, value in flags.MARKING.items() if name != "ood_pattern"}
    flags.add_marking_flags(marking, pattern=False, **usual)
    marking.add_argument(
        "--format",
        choices=("jpeg", "png"),
        default="jpeg",
        help="of marked files: jpeg (default, names are kept) or png (lossless, three times as large)",
    )
    marking.add_argument("--quality", type=number(int, 1, 100), default=95, help="of JPEG files (default 95)")
    parser.add_argument(
        "--link",
        choices=("symlink", "hard", "copy"),
        default="symlink",
        help="how untouched images get into the tree (default symlink)",
    )
    return parser


def main():
    args = make_parser().parse_args()
    from imagenet.prepare import prepare

    prepare(args)


if __name__ == "__main__":
    run_script(main)

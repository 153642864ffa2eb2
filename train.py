"""Mark the target users' data, train a model on it, audit the model: one run is one cell of the paper's tables.

Example: python train.py --dataset cifar100 --target_user_cls 17 --save_tag singleTarget-17
The run folder keeps settings, weights, marks, losses, result.json and plots. The same command goes on where an
interrupted run stopped, and only shows the result of a finished one. On several GPUs: torchrun --nproc_per_node=N
train.py ...
"""

from kit.errors import run_script


def main():
    from experiment.flags import make_parser

    args = make_parser(__doc__).parse_args()
    from experiment.run import train_and_audit
    from suspects.opened import open_model

    train_and_audit(args, open_model)


if __name__ == "__main__":
    run_script(main)

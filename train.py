"""Mark the target users' data, train a model on it, audit the model: one run is one cell of the paper's tables.

Example: python train.py --dataset cifar100 --target_user_cls 17 --save_tag singleTarget-17
The run folder keeps settings, weights, marks, losses, result.json and plots. The same command goes on where an
interrupted run stopped, and only shows the result of a finished one. On several GPUs: torchrun --nproc_per_node=N
train.py ...
"""

from pathlib import Path

from dataset import load_dataset
from experiment import flags, folder, report, setup
from experiment.audit import ask_users, conclude
from experiment.training import train
from kit import distributed, files
from kit.errors import UserError, run_script
from utils import choose_device


def main():
    args = flags.make_parser(__doc__).parse_args()
    with distributed.team(args.device) as (team, device):
        device = choose_device(device)
        data = load_dataset(args.dataset or "cifar100", args.data_root, args.image_size)
        training, audit = flags.resolve_settings(args, data, device)
        paths = flags.run_paths(args, data.name, training["net_type"])
        if not team.leader:
            if team.agree(None):
                experiment = setup.prepare(training, audit, data, args.data_root)
                train(experiment, setup.build_model(experiment, args.pretrained_weights), paths, device, team)
            return
        with paths.lock():
            folder.check_config(paths, {"training": training, "audit": audit})
            if paths.model.exists():
                files.check_same_settings(files.load_model(paths.model)[1].get("settings"), training, paths.model)
            team.agree(not paths.result.exists() and not paths.model.exists())
            if not paths.result.exists():
                run(training, audit, data, paths, device, args, team)
            report.show(files.read_json(paths.result), paths)


def run(training, audit, data, paths, device, args, team):
    """Mark, train, audit, conclude; what an earlier start has finished is taken up from its file."""
    experiment = setup.prepare(training, audit, data, args.data_root)
    base = base_model(args, experiment)
    model = None if paths.model.exists() else setup.build_model(experiment, args.pretrained_weights)
    # Only now: flags that don't fit have been refused, and the folder belongs to this run from here on.
    folder.write_config(paths, {"training": training, "audit": audit})
    query, record = train(experiment, model, paths, device, team, base)
    answers = ask_users(experiment, query, audit, paths, device)
    result = conclude(experiment, query, record, answers, device)
    report.draw(experiment, answers, result, paths)
    files.write_json(paths.result, result)


def base_model(args, experiment):
    """The file of --base_model, or None."""
    if args.base_model is None:
        return None
    if experiment.countermeasure.needs_training:
        raise UserError(
            "--base_model is for countermeasures that change a finished model (fine_tuning, pruning, "
            "output_noise, label_only)",
            advice="leave it out",
        )
    path = Path(args.base_model)
    if not path.exists() and path.name == args.base_model:
        settings = experiment.settings
        path = flags.tagged_paths(args, settings["dataset"], settings["net_type"], args.base_model).model
    if not path.exists():
        raise UserError(
            f"--base_model {args.base_model} is neither a run folder, nor a checkpoint, nor the "
            "--save_tag of a finished run",
            advice="train the run without the countermeasure first",
        )
    return folder.RunPaths.existing(path).model if path.is_dir() else path


if __name__ == "__main__":
    run_script(main)

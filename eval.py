"""Audit a model that train.py has trained, with the same or with other audit settings.

Example: python eval.py --checkpoint saved_res/cifar100-wideresnet284-singleTarget-17 --instance_mi 1
Without --checkpoint the run is found by the flags that named it. The settings of the training come from inside the
checkpoint; a training flag that contradicts them is an error. --data_root has to be given again. Writes a folder `eval`
inside the run's folder (for a model file: inside a folder of the model's name beside it), or --out.
"""

from pathlib import Path

import arguments
import experiment as stages
import report
import runs
from dataset import load_dataset
from utils import choose_device


def main():
    parser = arguments.make_parser(__doc__)
    parser.add_argument("--checkpoint", help="run folder or model file of train.py")
    args = parser.parse_args()
    device = choose_device(args.device)
    model = find_model(args)
    precision = None if args.precision == "auto" else args.precision
    query, record = stages.load_trained(model.model, device, precision=precision)
    stored = record["settings"]
    data = load_dataset(stored["dataset"], args.data_root, stored["image_size"])
    args = arguments.with_stored(args, {**stored_audit(model), **stored})
    training, audit = arguments.resolve_settings(args, data, device)
    runs.check_same_settings(stored, training, model.model, but=("device", "precision", "pretrained_weights"))
    paths = runs.RunPaths.of_folder(args.out or model.folder / "eval")
    if paths.config.exists():
        raise runs.UserError(f"--out {paths.folder} is the folder of a training run, whose results would be lost; "
                             "choose another one")
    experiment = stages.prepare(stored, audit, data, args.data_root)
    stages.check_marks(experiment, model)
    with paths.lock():
        paths.result.unlink(missing_ok=True)  # it would not fit the new losses, if this audit is interrupted
        answers = stages.audit(experiment, query, audit, paths, device)
        result = stages.conclude(experiment, query, record, answers, device)
        report.draw(experiment, answers, result, paths)
        runs.write_json(paths.result, result)
        report.show(result, paths)


def stored_audit(paths):
    """The audit settings of the run that the model came from, as far as its folder is there."""
    return runs.read_json(paths.config).get("audit") or {} if paths.config.exists() else {}


def find_model(args):
    """The files of the run that --checkpoint, or the flags of its training, name."""
    if args.checkpoint is None:
        data = load_dataset(args.dataset or "cifar100", args.data_root, args.image_size)
        return arguments.tagged_paths(args, data.name, args.net_type or data.recipe.net_type)
    path = Path(args.checkpoint)
    if path.is_dir():
        return runs.RunPaths.existing(path)
    # A model in a folder of many models gets a folder of its own for the results.
    own = runs.RunPaths.of_folder(path.parent)
    return own if own.config.exists() and own.model == path else runs.RunPaths(path.with_suffix(""), path)


if __name__ == "__main__":
    runs.run_script(main)

"""What train.py and eval.py do with a run: mark, train, audit, report; and audit a trained model again.

Both take what their parsers return, and a function that opens any model file as a `suspects.Suspect`, which this folder
does not know (see `suspects.opened.open_model`). Public: train_and_audit, audit_again.
"""

from pathlib import Path

from dataset import load_dataset
from experiment import calibrate, folder, report, setup
from experiment.audit import ask_users, conclude
from experiment.settings import resolve_settings, run_paths, tagged_paths, with_stored
from experiment.training import load_trained, train
from kit import distributed, files
from kit.errors import UserError
from utils import choose_device


def train_and_audit(args, open_model):
    """One cell of the paper's tables; what an earlier start has finished is taken up, or only shown."""
    with distributed.team(args.device) as (team, device):
        device = choose_device(device)
        data = load_dataset(args.dataset or "cifar100", args.data_root, args.image_size)
        training, audit = resolve_settings(args, data, device)
        paths = run_paths(args, training)
        if not team.leader:
            if team.agree(None):
                experiment = setup.prepare(training, audit, data, args.data_root)
                train(experiment, setup.build_model(experiment, args.pretrained_weights), paths, device, team)
            return
        with paths.lock():
            folder.check_config(paths, {"training": training, "audit": audit})
            if paths.model.exists():
                stored = folder.in_todays_words(files.load_model(paths.model)[1].get("settings"))
                files.check_same_settings(stored, training, paths.model)
            team.agree(not paths.result.exists() and not paths.model.exists())
            if not paths.result.exists():
                reference = calibrate.open_reference(audit["calibrate"], open_model, data, device, paths.model)
                _run(training, audit, data, paths, device, args, team, reference)
            report.show(files.read_json(paths.result), paths)


def _run(training, audit, data, paths, device, args, team, reference):
    """Mark, train, audit, conclude; what an earlier start has finished is taken up from its file."""
    experiment = setup.prepare(training, audit, data, args.data_root)
    calibration = calibrate.prepare(experiment, reference)
    base = _base_model(args, experiment)
    model = None if paths.model.exists() else setup.build_model(experiment, args.pretrained_weights)
    # Only now: flags that don't fit have been refused, and the folder belongs to this run from here on.
    folder.write_config(paths, {"training": training, "audit": audit})
    query, record = train(experiment, model, paths, device, team, base)
    _audit(experiment, query, record, audit, paths, device, calibration)


def _audit(experiment, query, record, audit, paths, device, calibration):
    """Ask, conclude, write everything that an audit leaves; returns what stands in result.json."""
    answers = ask_users(experiment, query, audit, paths, device)
    result = conclude(experiment, query, record, answers, device)
    if calibration:
        beside = calibration.ask(experiment, query, answers, device)
        beside.save(paths.losses)
        result["calibrated"] = beside.conclude(audit)
    report.draw(experiment, answers, result, paths)
    files.write_json(paths.result, result)
    return result


def _base_model(args, experiment):
    """The file of --base_model, or None."""
    if args.base_model is None:
        return None
    if experiment.countermeasure.needs_training:
        raise UserError(
            "--base_model is for countermeasures that change a finished model (fine_tuning, pruning, "
            "output_noise, label_only, destripe_queries, refuse_marked)",
            advice="leave it out",
        )
    path = Path(args.base_model)
    if not path.exists() and path.name == args.base_model:
        path = tagged_paths(args, experiment.settings, args.base_model).model
    if not path.exists():
        raise UserError(
            f"--base_model {args.base_model} is neither a run folder, nor a checkpoint, nor the "
            "--save_tag of a finished run",
            advice="train the run without the countermeasure first",
        )
    return folder.RunPaths.existing(path).model if path.is_dir() else path


def audit_again(args, open_model):
    """The audit of train.py again, with the same or other audit settings."""
    device = choose_device(args.device)
    model = _find_model(args)
    precision = None if args.precision == "auto" else args.precision
    query, record = load_trained(model.model, device, precision=precision)
    stored = record["settings"]
    data = load_dataset(stored["dataset"], args.data_root, stored["image_size"])
    args = with_stored(args, {**_stored_audit(model), **stored})
    training, audit = resolve_settings(args, data, device)
    files.check_same_settings(stored, training, model.model, but=("device", "precision", "pretrained_weights"))
    paths = folder.RunPaths.of_folder(args.out or model.folder / "eval")
    if paths.config.exists():
        raise UserError(
            f"--out {paths.folder} is the folder of a training run, whose results would be lost",
            advice="choose another one",
        )
    experiment = setup.prepare(stored, audit, data, args.data_root)
    setup.check_marks(experiment, model)
    reference = calibrate.open_reference(audit["calibrate"], open_model, data, device, model.model)
    calibration = calibrate.prepare(experiment, reference)
    with paths.lock():
        paths.result.unlink(missing_ok=True)  # it would not fit the new losses, if this audit is interrupted
        result = _audit(experiment, query, record, audit, paths, device, calibration)
    report.show(result, paths)


def _stored_audit(model):
    """The audit settings that the run was made with, for the flags that are not given now."""
    return files.read_json(model.config).get("audit") or {} if model.config.exists() else {}


def _find_model(args):
    """The files of the run that --checkpoint, or the flags of its training, name."""
    if args.checkpoint is None:
        data = load_dataset(args.dataset or "cifar100", args.data_root, args.image_size)
        given = {name: getattr(args, name) or getattr(data.recipe, name) for name in ("net_type", "train_size")}
        return tagged_paths(args, {"dataset": data.name, **given})
    path = Path(args.checkpoint)
    if path.is_dir():
        return folder.RunPaths.existing(path)
    # A model in a folder of many models gets a folder of its own for the results.
    own = folder.RunPaths.of_folder(path.parent)
    return own if own.config.exists() and own.model == path else folder.RunPaths(path.with_suffix(""), path)

"""The stages of privacy-audit.py, joined by the files below <log_dir>: data, models, signals, audit, report.

Public: run, train_only, attack_names, Clock.
"""

import difflib
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

import utils
from kit import files
from kit.environment import hardware_name, software_versions
from kit.errors import UserError
from privacy import STAGES, data, models, ranges, signals, training
from privacy.config import QUERIES


class Clock:
    """Seconds of each stage; with run.time_log also as lines of log_time_analysis.log."""

    def __init__(self, log):
        self.seconds, self._log = {}, log

    @contextmanager
    def stage(self, name):
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started
        if self._log is not None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with open(self._log, "a", encoding="utf-8") as lines:
                lines.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {name:<8} {self.seconds[name]:10.2f} s\n")


def train_only(config, number):
    """Train the one model `number` of a config, if its file is missing: what `python -m launch` starts."""
    config = _with_usable_devices(config)
    records = data.load(config.data, config.run.random_seed)
    plan = data.plan(_with_training(config), records)
    if number >= len(plan.memberships):
        raise UserError(f"--train_model {number}: this config has the models 0 to {len(plan.memberships) - 1}")
    training.train_one(config, records, plan, number, _models(config))


def run(config, stop_after="report"):
    """Go through the stages up to `stop_after`, one of STAGES; what is finished is taken up from its files.

    Returns (results of `privacy.attack.run_attacks` or None, Clock). Raises UserError.
    """
    config = _with_usable_devices(config)
    folder = Path(config.run.log_dir)
    clock = Clock(folder / "log_time_analysis.log" if config.run.time_log else None)
    last = STAGES.index(stop_after)
    if last >= 3:
        _check_names(config)
    with files.lock_folder(folder):
        with clock.stage("data"):
            records = data.load(config.data, config.run.random_seed)
            _known(config.audit.groups, ["class", *records.groups], "audit.groups")
        if last < 1:
            return None, clock
        with clock.stage("models"):
            plan, sources, targets, queries, outside = (
                _outside(config, records) if training.is_outside(_models(config)) else _own(config, records)
            )
        if last < 2:
            return None, clock
        with clock.stage("signals"):
            found, accuracies = signals.collect(
                sources,
                records,
                plan,
                targets,
                queries,
                config.audit.batch_size,
                folder / "signals",
                config.audit.precision,
            )
            found = _with_trajectories(config, records, plan, targets, found, outside)
            copies = ranges.copies_of(config.audit.ranges, records)
            if copies and any(source.path.suffix == ".npz" for source in sources):
                raise UserError("stored logits say nothing about copies of records", advice="leave audit.ranges out")
            around = copies and signals.collect(
                sources,
                records,
                plan,
                targets,
                ["identity", *copies],
                config.audit.batch_size,
                folder / "signals" / "ranges",
                config.audit.precision,
            )
        if last < 3:
            return None, clock
        return _judge(config, records, found, around and around[0], accuracies, outside, clock, last), clock


def _with_usable_devices(config):
    """The config with auto, and a warning, in place of a CUDA device that is not here: such files are passed on."""
    changed = {}
    for name in ("audit", "train"):
        section = getattr(config, name)
        if section is None or not section.device.startswith("cuda"):
            continue
        try:
            utils.choose_device(section.device)
        except UserError:
            changed[name] = section.model_copy(update={"device": "auto"})
            here = utils.choose_device("auto")
            print(f"warning: {name}.device {section.device} is not here, so {here} takes its place", file=sys.stderr)
    return config.model_copy(update=changed)


def _check_names(config):
    """What the attacks would refuse, said before hours of training."""
    from privacy.attack import ATTACKS, SECTIONS

    _known(attack_names(config.audit.algorithm), ATTACKS, "audit.algorithm")
    for section, known in SECTIONS.items():
        _known(getattr(config.audit, section), known, f"audit.{section}")


def _known(names, known, field):
    for name in names or ():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            raise UserError(
                f"{field} {name!r} is unknown", advice=f"did you mean {nearest}? There are {', '.join(known)}"
            )


def _judge(config, records, found, around, accuracies, outside, clock, last):
    from privacy.attack import run_attacks

    with clock.stage("audit"):
        results = run_attacks(found, _audit_settings(config), around or None)
    if last >= 4:
        from privacy.report import write_report

        with clock.stage("report"):
            write_report(
                Path(config.run.log_dir) / config.audit.report_log,
                found,
                results,
                _context(config, records, found, accuracies, outside, clock),
            )
    return results


def _with_trajectories(config, records, plan, targets, found, outside):
    """The signals with every model's losses at its checkpoints, the finished model last; as they are without any."""
    if outside is not None or not config.train.checkpoints:
        return found
    parts, numbers = [], range(len(plan.memberships))
    # Of the population nothing is needed.
    plan = replace(plan, population=plan.population[:1])
    for place in range(1, config.train.checkpoints + 1):
        paths = [training.checkpoint_path(_models(config), number, place) for number in numbers]
        if gone := [path for path in paths if not path.exists()]:
            raise UserError(f"{gone[0]} does not exist", advice="delete the model beside it to train it again")
        there = [signals.Source(path, lambda path=path: training.open_own(path, records, config)[0]) for path in paths]
        folder = Path(config.run.log_dir) / "signals" / f"checkpoint_{place}"
        seen, _ = signals.collect(
            there, records, plan, targets, ["identity"], config.audit.batch_size, folder, config.audit.precision
        )
        parts.append(seen.losses[:, 0])
    return replace(found, trajectories=np.stack([*parts, found.losses[:, 0]], axis=1))


def _models(config):
    return Path(config.run.log_dir) / "models"


def _with_training(config):
    if config.train is None:
        raise UserError(
            "the config has no section train, and there are no models from elsewhere (models_metadata.json "
            f"in {_models(config)})",
            advice="give one or the other",
        )
    return config


def _own(config, records):
    """Models of one's own training: (plan, sources, targets, queries, None)."""
    plan, queries = data.plan(_with_training(config), records), _queries(config, records)
    training.train_missing(config, records, plan, _models(config))
    paths = [training.model_path(_models(config), number) for number in range(len(plan.memberships))]
    sources = [signals.Source(path, lambda path=path: training.open_own(path, records, config)[0]) for path in paths]
    return plan, sources, range(config.run.num_experiments), queries, None


def _outside(config, records):
    """Models from elsewhere: (plan, sources, targets, queries, their entries)."""
    folder = _models(config)
    entries, targets = training.read_outside(folder)
    stored = {
        place: models.StoredLogits(folder / entry["model_path"], records)
        for place, entry in enumerate(entries)
        if entry["model_path"].lower().endswith(".npz")
    }
    covered = np.ones(len(records), dtype=bool)
    for one in stored.values():
        covered &= np.isin(np.arange(len(records)), one.rows)
    rows = folder / "population.npy"
    plan = data.plan_of_memberships(
        folder / "memberships.npy",
        len(entries),
        records,
        config,
        covered,
        _population_rows(rows, covered) if rows.exists() else None,
    )
    queries = _queries(config, records)
    if stored:
        # Which queries were stored, only their maker knows; what all of them have is used.
        counts = {one.queries for one in stored.values()}
        if len(stored) < len(entries) and (counts != {1} or len(queries) > 1):
            raise UserError(
                "models and stored logits together can have the query identity alone: set audit.queries "
                "to [identity] and store logits (records, classes)"
            )
        queries = min(counts) if len(stored) == len(entries) else queries
    if records.kind == "labels" and len(stored) < len(entries):
        raise UserError(f"{config.data.data_dir} has labels alone, so every model needs stored logits (.npz)")
    sources = [
        signals.Source(folder / entry["model_path"], _opener(entry, folder, records, config, queries))
        for entry in entries
    ]
    return plan, sources, list(range(len(entries))) if targets is None else targets, queries, entries


def _opener(entry, folder, records, config, queries):
    path = folder / entry["model_path"]

    def open_it():
        if path.suffix == ".safetensors" and training.is_own(path):
            return training.open_own(path, records, config)[0]
        model = models.open_outside(entry, folder, records, config.audit)
        return _Numbered(model, queries) if isinstance(model, models.StoredLogits) else model

    return open_it


class _Numbered:
    """Stored logits asked by the name of a query where other models of the audit are."""

    def __init__(self, stored, queries):
        self._stored, self._queries = stored, queries

    def signals(self, records, rows, query):
        place = query if isinstance(query, int) else self._queries.index(query)
        return self._stored.signals(records, rows, place)


def _population_rows(path, covered):
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise UserError(f"{path} is no array", advice="save the rows of the population with numpy.save") from None
    if (
        rows.ndim != 1
        or rows.dtype.kind not in "iu"
        or not len(rows)
        or rows.min() < 0
        or rows.max() >= len(covered)
        or not covered[rows].all()
        or len(np.unique(rows)) < len(rows)
    ):
        raise UserError(f"{path} must be distinct rows of the data set, whole numbers that every model has answers for")
    return rows.astype(np.int64)


def _queries(config, records):
    """The queries of the config, or those usual for the kind of data."""
    chosen = config.audit.queries
    if records.kind != "images":
        if chosen is not None and chosen != ["identity"]:
            raise UserError(
                f"audit.queries {chosen} are for images, and {records.name} has {records.kind}", advice="leave them out"
            )
        return ["identity"]
    return list(QUERIES[:2]) if chosen is None else chosen


def _audit_settings(config):
    """What `privacy.attack.run_attacks` wants, from the section audit."""
    audit = config.audit
    return {
        "attacks": attack_names(audit.algorithm),
        "num_ref_models": audit.num_ref_models,
        "gamma": audit.gamma,
        "a": audit.offline_a,
        "asked_fpr": audit.asked_fpr,
        "fprs": audit.fprs,
        "seed": config.run.random_seed,
        "ramia": {} if audit.ramia is None and audit.ranges else audit.ramia,
        "duci": audit.duci,
        "epsilon": audit.epsilon,
        "groups": audit.groups,
    }


def attack_names(wanted):
    """Names of attacks: "all", or also a family, as in Privacy Meter: RMIA stands for rmia_offline and rmia_online."""
    from privacy.attack import ATTACKS

    names = []
    for name in [wanted] if isinstance(wanted, str) else wanted:
        lower = name.lower()
        family = list(ATTACKS) if lower == "all" else [known for known in ATTACKS if known.startswith(f"{lower}_")]
        # lira_offline is an attack, and no family of lira_offline_fixed.
        names += [lower] if lower in ATTACKS else family or [lower]
    return names


def _without_folders(config):
    """The config as a dict whose paths are names alone: a report is passed on, and where files lay is nobody's."""
    public = config.model_dump()
    for section, key in (("run", "log_dir"), ("data", "data_dir"), ("train", "model_name")):
        if public[section] and public[section][key]:
            public[section][key] = Path(public[section][key]).name
    return public


def _context(config, records, found, accuracies, outside, clock):
    """Everything that a report says about how its numbers came about; ready for JSON."""
    count, inside = len(found.membership), found.membership.sum(axis=1)
    device = utils.choose_device(config.audit.device)
    trained = (
        []
        if outside is not None
        else [training.read_record(training.model_path(_models(config), number)) for number in range(count)]
    )
    public = _without_folders(config)
    return {
        "config": public,
        "dataset": records.name,
        "kind": records.kind,
        "model_name": public["train"]["model_name"]
        if outside is None
        else sorted({str(entry.get("model_name") or Path(entry["model_path"]).suffix[1:]) for entry in outside}),
        "models": count,
        "targets": len(found.target_ids),
        "records": len(found.records),
        "population": len(found.population_labels),
        "members_audited": [int(number) for number in inside],
        "outside": outside is not None,
        "accuracy": accuracies,
        "train_seconds": [record["train_seconds"] for record in trained],
        "seconds": {name: round(seconds, 2) for name, seconds in clock.seconds.items()},
        "hardware": {"train": sorted({record["hardware"] for record in trained}), "audit": hardware_name(device)},
        "versions": software_versions(),
    }

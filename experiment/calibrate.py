"""The audit of a run once more, with what a reference model finds difficult taken out of every score (--calibrate).

Photos differ in difficulty more than in whether a model remembers them. A reference, a model that has seen nobody's
samples, is asked for the same marked samples; what it explains of the scores is subtracted (attacks/difficulty.py), by
a share that is worked out over all users alike, so that nothing looks at who is a member.

Nobody's: a reference that remembers the non-members' samples would find those easy, subtract less from them, and make
the audit look better than it is. Of a run of train.py on the same data set it is known what it has seen; the target
users' samples are refused, and innocent users are drawn anew from what it has not seen. For other models the user of
--calibrate has to know.

Public: open_reference, prepare, Calibration, Beside.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch

import utils
from attacks import exact
from attacks.difficulty import shares
from experiment import setup
from experiment.audit import answering, rates, score_groups
from experiment.settings import data_fingerprint
from kit import files
from kit.errors import UserError

RETRAIN = "train one that has not seen them: the same train.py with --clean_train 1 --other_images 1"


def open_reference(path, open_model, data, device, audited):
    """The model that --calibrate names, as a `suspects.Suspect`; None for None. Raises UserError.

    open_model: see `suspects.opened`; audited: file of the model under audit, which may not be there yet.
    """
    if path is None:
        return None
    try:
        reference = open_model(path, device=device, batch_size=setup.batch_size_of(data))
    except UserError as error:
        advice = "give a run folder or checkpoint of train.py, or an ONNX file that states its input"
        raise UserError(f"--calibrate {path}: {error.problem}", advice, flag="--calibrate") from None
    if audited.exists() and files.file_digest(audited) == reference.identity.get("sha256"):
        raise _refusal(reference, "is the model under audit itself", "give one that has not seen the users' samples")
    count, names = len(data.class_names), reference.class_names
    if reference.classes not in (None, count):
        raise _refusal(reference, f"has {reference.classes} classes and {data.name} {count}")
    if names and tuple(names) != tuple(data.class_names):
        raise _refusal(reference, f"calls its classes otherwise than {data.name}")
    return reference


def _refusal(reference, problem, advice="give a model of the same classes"):
    return UserError(f"--calibrate: {reference.name} {problem}", advice, flag="--calibrate")


def prepare(experiment, reference):
    """The Calibration of a run by an opened reference; None for None. Raises UserError where it can't be a fair one."""
    if reference is None:
        return None
    settings, data, groups = reference.training_settings or {}, experiment.data, experiment.groups
    if settings.get("data") != data_fingerprint(data):
        return Calibration(reference, groups)
    unseen = setup.unseen_rows(settings, data)
    seen = int((~np.isin(experiment.users.samples, unseen.numpy())).sum())
    if seen:
        problem = f"has seen {seen} of the target users' {experiment.users.samples.size} samples"
        raise _refusal(reference, problem, RETRAIN)
    pool = experiment.splits.non_member
    pool = pool[torch.isin(pool, unseen)]
    try:
        others = setup.innocent_users(
            experiment.settings, data, pool, experiment.users.classes, len(groups["non_member"])
        )
    except UserError:
        problem = f"leaves {len(pool)} images that neither model has seen, too few for non-member users"
        raise _refusal(reference, problem, "lower --train_size or --marked_samples_per_user") from None
    return Calibration(reference, {"target": experiment.users, **others})


@dataclass(frozen=True)
class Calibration:
    """A reference, and the users about whom it and the model under audit are asked: {group: `utils.Users`}."""

    reference: object
    users: dict

    def ask(self, experiment, query, answers, device):
        """Ask the reference about all users, and the model about those of whom its `audit.Audit` does not know yet:
        a Beside. Raises UserError where the two answer alike."""
        started = time.monotonic()
        same = {
            name: np.array_equal(users.samples, experiment.groups[name].samples) for name, users in self.users.items()
        }
        anew = {name: users for name, users in self.users.items() if not same[name]}
        signals = {name: answers.signals[name] for name in self.users if same[name]}
        signals |= score_groups(experiment, answering(experiment, query), anew, device, " again")
        found = score_groups(experiment, self._query(experiment.data), self.users, device, ", reference")
        losses = {name: values["cross_entropy"] for name, values in found.items()}
        if all(np.allclose(losses[name], signals[name]["cross_entropy"], 1e-4, 1e-6) for name in self.users):
            problem = "answers as the model under audit does"
            raise _refusal(self.reference, problem, "give one that has not seen the users' samples")
        own = {name: values[answers.signal] for name, values in signals.items()}
        signals = {name: values["cross_entropy"] for name, values in signals.items()}
        return Beside(self, signals, losses, own, same["non_member"], time.monotonic() - started)

    def _query(self, data):
        """The reference as a query function, images uint8 (n, 3, H, W) to log probabilities (see utils.make_query)."""
        count, preprocessing = len(data.class_names), self.reference.preprocessing

        def query(images):
            pixels = images.cpu().numpy()
            if preprocessing.resize is not None or pixels.shape[2:] != tuple(preprocessing.size):
                pixels = np.stack([preprocessing.fit(image) for image in pixels.transpose(0, 2, 3, 1)])
            logs = self.reference.ask(pixels).log_probabilities(count)[0]
            if logs.shape[1] != count:
                raise _refusal(self.reference, f"has {logs.shape[1]} classes and {data.name} {count}")
            return torch.from_numpy(logs)

        return query


@dataclass(frozen=True)
class Beside:
    """What both models answered about the users of a Calibration.

    losses, reference: {group: float64 (users, K)}, cross-entropies of the model under audit and of the reference;
    own: {group: float64 (users, K)}, the signal that the run judges by; same_non_members: whether these are the run's
    own non-members; seconds: what asking took.
    """

    calibration: Calibration
    losses: dict
    reference: dict
    own: dict
    same_non_members: bool
    seconds: float = 0.0

    def scores(self):
        """{group: float64 (users, K)}: the root of each cross-entropy, without the reference's share of it."""
        return {
            name: exact.score(-losses) - self.share * exact.score(-self.reference[name])
            for name, losses in self.losses.items()
        }

    @property
    def share(self):
        """How much of the reference's score is subtracted, worked out over the users of all groups alike."""
        ours, theirs = (
            exact.score(-np.concatenate([losses[name] for name in self.losses]))
            for losses in (self.losses, self.reference)
        )
        return float(shares(ours, theirs[None])[0])

    def save(self, path):
        """Add what was answered to the losses.npz of the audit, users x samples with their indices."""
        users = self.calibration.users
        more = {
            f"calibrated_{name}_{kind}": values
            for name in self.losses
            for kind, values in (
                ("samples", users[name].samples),
                ("cross_entropy", self.losses[name]),
                ("reference", self.reference[name]),
            )
        }
        files.write_arrays(path, **files.read_arrays(path), **more)

    def conclude(self, settings):
        """The section "calibrated" of result.json (a JSON-ready dict). settings: the audit dict of the run.

        plain: the rates of the run's own signal for the same users, which are not the run's own non-members where the
        reference has seen some of those.
        """
        scores, reference = self.scores(), self.calibration.reference
        return {
            "reference": {"name": reference.name, "model": reference.identity},
            "share": self.share,
            "same_non_members": self.same_non_members,
            "audit": rates(scores["target"], scores["non_member"], settings["fpr"]),
            "plain": rates(self.own["target"], self.own["non_member"], settings["fpr"]),
            "verdict": self._verdicts(scores, settings["verdict_fpr"]),
            "seconds": self.seconds,
        }

    def _verdicts(self, scores, fpr):
        """Algorithm 1 for every target and control user, with a threshold on the non-members' calibrated means."""
        rows, detected = [], {}
        for group in ("target", "control"):
            used, threshold = utils.verify_provenance(scores[group], scores["non_member"], fpr)
            detected[group] = int(used.sum())
            rows += [
                {"user": f"{group} {number}", "mean_score": float(mean), "used": bool(says)}
                for number, (mean, says) in enumerate(zip(scores[group].mean(axis=1), used, strict=True))
            ]
        return {
            "fpr": fpr,
            "threshold": threshold,
            "targets_detected": detected["target"],
            "controls_detected": detected["control"],
            "users": rows,
        }

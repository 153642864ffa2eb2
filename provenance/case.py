"""One user's audit of one model from its wishes to its files: what eval.py --record and the page do.

Public: Options, Case, open_case, open_suspect, resolve_label.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from attacks import exact
from kit import environment, files
from kit.errors import UserError
from provenance import evidence, protect, report
from provenance import grid as user_audit
from provenance import record as records
from suspects import opened
from suspects.server import open_server
from suspects.suspect import Suspect
from utils import Users


@dataclass(frozen=True)
class Options:
    """What may be chosen for an audit; the names are those of eval.py's flags, None is "as usual"."""

    label: str = exact.AUTO
    keys: int | None = None
    selections: int | None = None
    alpha: float = 1e-3
    max_queries: int | None = None
    audit_seed: str = ""
    label_only: bool = False
    top_k: int | None = None
    num_of_non_member_user: int = 1000
    verdict_fpr: float = 1e-3


def open_suspect(
    checkpoint, net_type=None, device="auto", precision="auto", overrides=None, batch_size=64, server=None
):
    """The model that a path or an address names, as a `Suspect`.

    overrides: see `models.open_model`; server: keyword arguments of `protocol.open_server` beside these.
    """
    if not checkpoint:
        raise UserError(
            "--checkpoint is missing",
            advice="give the model: a run folder, a file, or http(s)://host/v2/models/NAME",
            flag="--checkpoint",
        )
    if str(checkpoint).startswith(("http://", "https://")):
        return open_server(str(checkpoint), overrides=overrides, batch_size=batch_size, **(server or {}))
    return opened.open_model(
        checkpoint, net_type=net_type, device=device, precision=precision, overrides=overrides, batch_size=batch_size
    )


def resolve_label(text, suspect):
    """A class number, or verdict.AUTO, out of --label."""
    if text == exact.AUTO:
        return text
    if text in (suspect.class_names or ()):
        return suspect.class_names.index(text)
    if text.isdecimal() and (suspect.classes is None or int(text) < suspect.classes):
        return int(text)
    known = f"classes 0 to {suspect.classes - 1}" if suspect.classes else "numbered classes"
    names = f", named {', '.join(suspect.class_names[:5])}, ..." if suspect.class_names else " and no names for them"
    raise UserError(f"--label {text}: the model has {known}{names}", advice="give one of them, or auto", flag="--label")


@dataclass(frozen=True)
class Case:
    """An audit that is planned and not begun: nothing was asked, nothing was written.

    originals: paths by number; label: class number or AUTO; strangers: (OutWorld, Users) for Algorithm 1, or None;
    folder: where answers and results go.
    """

    record: records.MarkRecord
    originals: list
    suspect: Suspect
    bank: object
    options: Options
    label: int | str
    plan: exact.Plan
    strangers: tuple[user_audit.OutWorld, Users] | None
    folder: Path

    @property
    def queries(self):
        """How many images the model will be asked about, those for Algorithm 1 included."""
        return self.plan.queries + self.aside

    @property
    def aside(self):
        return self.strangers[1].samples.size if self.strangers else 0

    @property
    def settings(self):
        """What decides the result beside record, model and answers: a JSON-ready dict."""
        options = self.options
        return {
            "keys": self.plan.keys,
            "selections": self.plan.selections,
            "alpha": options.alpha,
            "audit_seed": options.audit_seed,
            "label": self.label,
            "label_only": options.label_only,
            "top_k": options.top_k,
        }

    def describe(self):
        """Two lines for people: the model, and what asking it will take."""
        suspect, plan = self.suspect, self.plan
        return (
            f"model: {suspect.name}, {suspect.classes or 'unknown number of'} classes; "
            f"{suspect.preprocessing.describe()}\n"
            f"queries: {plan.queries} ({plan.photos} photos x {plan.keys + 1} keys)"
            + (f" + {self.aside} for Algorithm 1" if self.strangers else "")
            + f"; smallest p that can come out: {plan.smallest_p:.2g}"
        )

    def run(self):
        """Ask what is not answered yet, judge, write all files: the dict of result.json. Resumes from `folder`."""
        photos = user_audit.Photos(self.originals, self.suspect.preprocessing.size)
        with files.lock_folder(self.folder):
            order, digests, answers = user_audit.ask_grid(
                self.record, photos, self.suspect, self.plan.keys, self.options.audit_seed, self.folder, self.bank
            )
            result, grid, _ = user_audit.judge(
                self.record.batches, self.record.selection_key, self.settings, order, answers, self.suspect.classes
            )
            if self.strangers:
                result["algorithm_1"] = self._beside(photos, order, answers)
            self._write(photos.side, result, grid, order, digests, answers)
        return result

    def _beside(self, photos, order, answers):
        """Algorithm 1's verdict for the user's published photos under the user's own key."""
        (world, users), options = self.strangers, self.options
        others = user_audit.ask_out_world(world, users, self.record, self.suspect, self.folder / "out_world", self.bank)
        own_queries = [photo.number * (self.plan.keys + 1) for photo in self.record.photos if photo.published]
        own = user_audit.rows_of(answers, order, own_queries)
        found = user_audit.algorithm_1(
            *(user_audit.limit_answers(some, options.label_only, options.top_k) for some in (own, others)),
            users,
            self.label,
            options.verdict_fpr,
            self.suspect.classes,
            options.label_only,
        )
        found["near_duplicates"] = user_audit.near_duplicates(photos, world)
        if found["near_duplicates"]:
            print(
                f"warning: {found['near_duplicates']} of the user's photos have near-duplicates among the strangers' "
                "images, so that Algorithm 1's verdict can't be trusted; remove them",
                file=sys.stderr,
            )
        return found

    def _write(self, side, result, grid, order, digests, answers):
        """Plot, evidence bundle and result.json, the last."""
        record, suspect = self.record, self.suspect
        document = {
            "record": records.public_part(record, len(record.batches)),
            "commitment": record.commitments[-1],
            "selection_key": record.selection_key,
            "audit": self.settings,
            "classes": suspect.classes,
            "model": suspect.identity,
            "preprocessing": {
                name: getattr(suspect.preprocessing, name)
                for name in ("size", "resize", "mean", "std", "white", "interpolation", "source")
            },
            "result": result,
            "versions": environment.software_versions(),
        }
        report.draw_grid(grid, result, self.folder / "grid.png")
        evidence.write_bundle(self.folder / "evidence.zip", document, order, digests, answers)
        files.write_json(
            self.folder / "result.json",
            {
                **result,
                "audit": self.settings,
                "model": suspect.identity,
                "commitment": record.commitments[-1],
                "evidence": record.evidence,
                "working_size": side,
                "versions": document["versions"],
            },
        )


def read_finished(record_path):
    """The record of photos that are all marked. Raises UserError."""
    record = records.read_record(record_path)
    if not record.finished:
        raise UserError(f"{record_path} is of an interrupted run", advice="run data_marking.py again, first")
    return record


def open_case(record_path, folders, suspect, options=None, out_world=None, folder=None, data_root=None):
    """Plan an audit: a Case. Raises UserError where it can't be carried out, before anything is asked.

    folders: where the originals are (see `records.locate_originals`); out_world: an `OutWorld`, or None to leave
    Algorithm 1 out; folder: for the results, None for one named after the model beside the record.
    """
    options = options or Options()
    record = read_finished(record_path)
    originals = records.locate_originals(record, folders, record_path)
    bank = protect.load_bank(record.settings, data_root)
    label, published = resolve_label(options.label, suspect), int(record.published.sum())
    count = options.num_of_non_member_user if out_world else 0
    aside, most = count * published, options.max_queries
    if most is not None and most <= aside:
        raise UserError(
            f"Algorithm 1 alone needs {aside} queries ({count} strangers x {published} images), and "
            f"--max_queries allows {most}",
            advice="lower --num_of_non_member_user, or allow more",
            flag="--max_queries",
        )
    plan = exact.plan_grid(
        len(originals),
        [(batch.published, batch.photos) for batch in record.batches],
        options.alpha,
        options.keys,
        options.selections,
        most and most - aside,
    )
    strangers = (out_world, user_audit.draw_out_world(out_world, record, count, label)) if out_world else None
    name = "".join(letter if letter.isalnum() else "-" for letter in suspect.name).strip("-")
    folder = Path(folder or records.record_file(record_path).resolve().parent / f"audit-{name}")
    if (folder / "config.json").exists() or (folder / "record.json").exists():
        raise UserError(f"--out {folder} has another run's or a record's files", advice="choose another folder")
    return Case(record, originals, suspect, bank, options, label, plan, strangers, folder)

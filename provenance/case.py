"""One user's audit of one model from its wishes to its files: what eval.py --record and the page do.

The plan comes first: it is fixed and logged before the first query (see plan.py and judgements.py).

Public: Options, Case, open_case, resolve_label.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from attacks import exact
from kit import environment, files
from kit.errors import UserError
from provenance import disclosed, evidence, judgements, opening, outlook, protect, report, witness
from provenance import grid as user_audit
from provenance import record as records
from provenance import references as references_of
from provenance import sequential as one_by_one
from provenance import strangers as strangers_of
from provenance.legacy import LegacyRecord
from provenance.plan import KEY_CHOICES, SELECTION_CHOICES, STATISTIC, STATISTICS, VIEW_CHOICES, AuditPlan, departures
from suspects.suspect import Suspect
from utils import Users


@dataclass(frozen=True)
class Options:
    """What may be chosen for an audit; the names are those of eval.py's flags, None is "as it was committed"."""

    label: str | None = None
    keys: int | None = None
    query_augmentations: int | None = None
    selections: int | None = None
    alpha: float | None = None
    max_queries: int | None = None
    audit_seed: str | None = None
    label_only: bool = False
    top_k: int | None = None
    caption: str | None = None
    num_of_non_member_user: int = 1000
    verdict_fpr: float = 1e-3
    publications: tuple = ()
    sequential: bool | None = None

    def plan(self, committed, photos, aside, references=None):
        """The AuditPlan that follows: the committed one with what was chosen. photos: how many; aside: queries that are
        spent otherwise; references: digests of those that were given, None where none was spoken of."""
        changes = {
            name: getattr(self, name)
            for name in ("label", "keys", "selections", "alpha", "audit_seed", "sequential", "caption")
            if getattr(self, name) is not None
        }
        if self.label_only:
            changes |= {"answers": "label only", "top_k": None}
        elif self.top_k is not None:
            changes |= {"answers": "top k", "top_k": self.top_k}
        if self.query_augmentations is not None:
            changes["views"] = max(1, self.query_augmentations)
        if references is not None:
            changes["references"] = references
        # A sequential audit may end anywhere, so that a budget changes nothing of its plan.
        if self.max_queries is not None and not changes.get("sequential", committed.sequential):
            changes |= self._within(committed, changes, photos, self.max_queries - aside)
        if committed.statistic == STATISTICS[0] and {"views", "references"} & changes.keys():
            changes["statistic"] = STATISTIC  # that of then knows neither
        try:
            return AuditPlan.model_validate({**committed.model_dump(), **changes})
        except ValidationError as error:
            raise UserError(
                f"no audit can be planned so: {records.first_problem(error)}", "correct that flag"
            ) from None

    def _within(self, committed, changes, photos, queries):
        """{"keys", "views"} that take at most `queries`, as many of each as fit: what was given stays as it is."""
        wanted = {name: changes.get(name, getattr(committed, name)) for name in ("keys", "views")}
        apart = 1 + committed.plain_arm
        if photos * (wanted["keys"] + apart) * wanted["views"] <= queries:
            return {}
        given = {"keys": self.keys is not None, "views": self.query_augmentations is not None}
        open_to = {
            name: [wanted[name]] if given[name] else [some for some in choices if some <= wanted[name]]
            for name, choices in (("keys", KEY_CHOICES), ("views", VIEW_CHOICES))
        }
        fitting = [
            (keys, views)
            for keys in open_to["keys"]
            for views in open_to["views"]
            if photos * (keys + apart) * views <= queries
        ]
        least = tuple(min(choices) for choices in open_to.values())
        keys, views = max(fitting, key=lambda split: worth(*split), default=least)
        return {"keys": keys, "views": views}


def worth(keys, views):
    """What splits of the same number of queries are sorted by: two views and four other keys are worth most, then four
    views, then keys (results/statistic)."""
    return (min(views, 2), min(keys, 4), min(views, 4), keys, views)


def resolve_label(text, suspect):
    """A class number, or exact.AUTO, out of a plan's label; AUTO for a model that speaks of no classes."""
    if text == exact.AUTO or suspect.scores:
        return exact.AUTO
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

    originals: paths by number; plan: the AuditPlan; label: its label as class number, or AUTO; departs, factor: see
    `plan.departures`; strangers: (OutWorld, Users) for Algorithm 1, or None; folder: where answers and results go; log:
    the file of judgements; judgement: the one to be made, or made before; classes: how many the model said it has
    before it was asked; weaknesses: what a verdict on the record rests on, sentences; references: Reference models.
    """

    record: records.MarkRecord
    originals: list
    suspect: Suspect
    bank: object
    options: Options
    plan: AuditPlan
    label: int | str
    departs: list
    factor: int
    strangers: tuple[strangers_of.OutWorld, Users] | None
    folder: Path
    log: Path
    judgement: judgements.Judgement
    classes: int | None
    weaknesses: list
    references: list

    @property
    def asked(self):
        """The AuditPlan as far as this model is asked."""
        return self.plan.asked(self.suspect.identity)

    @property
    def queries(self):
        """How many images the model will be asked about, those for Algorithm 1 included; at most, in a sequential
        audit."""
        whole = self.photos * self.asked.pictures * self.plan.views
        return (whole if self.room is None else min(whole, self.room)) + self.aside

    @property
    def room(self):
        """How many queries a sequential audit may take, None for any number (other plans fit already)."""
        most = self.options.max_queries if self.plan.sequential else None
        return most and most - self.aside

    @property
    def photos(self):
        """How many photos are asked about: those whose originals are there."""
        return sum(path is not None for path in self.originals)

    @property
    def aside(self):
        return self.strangers[1].samples.size if self.strangers else 0

    @property
    def smallest_p(self):
        """The smallest p that can come out of the exact test."""
        return self.plan.tests * exact.Plan(self.photos, self.asked.keys, self.plan.selections).smallest_p

    def describe(self):
        """Some lines for people: the model, what asking it will take, and what was fixed."""
        return outlook.describe(self)

    def run(self, witness_key=None):
        """Fix the plan, ask what is not answered yet, judge, write all files: the dict of result.json. Resumes.

        witness_key: the Ed25519 key of a neutral party that runs the audit, None without one.
        """
        photos = user_audit.Photos(self.originals, self.suspect.preprocessing.size)
        with files.lock_folder(self.folder):
            # A folder with other answers is refused before its plan is changed and a judgement counted.
            answered = None if self.plan.sequential else self._open_answers(photos)
            # References first: what they say is fixed before the model under audit is asked.
            beside = references_of.ask(self.record, self.originals, self.references, self.asked, self.folder, self.bank)
            rule = self._rule(beside)
            order = self._order(photos, rule)
            if rule:  # whose order hangs on the references
                answered = self._open_answers(photos, sequential=one_by_one.order_digest(order))
            transcript = self._transcript(witness_key, order, beside) if witness_key else None
            if transcript:
                transcript.adopt(answered)
            judgement = self._fix_plan()
            digests, answers = self._ask(photos, rule, order, transcript)
            result, grid = self._judge(judgement, rule, order, answers, beside)
            order = order[: len(answers)]
            if self.strangers and self._answered_own(order):
                result["algorithm_1"] = self._beside(photos, order, answers)
            signed = transcript.sign(len(answers)) if transcript else None
            with self._locked_log():
                log = judgements.conclude_judgement(self.log, judgement, result["p_value"])
            # As the log has it now, so that the same audit again leaves the same files.
            judgement = next(entry for entry in log if entry.digest == judgement.digest)
            self._put_away(judgement)
            self._write(photos.side, result, judgement, log, grid, rule, order, digests, answers, signed, beside)
        return files.read_json(self.folder / "result.json")

    def _fix_plan(self):
        """Write the plan into the log and the folder, before anything is asked: the Judgement."""
        with self._locked_log():
            judgement, _ = judgements.open_judgement(self.log, self.judgement)
        plan = judgement.model_dump(mode="json", exclude={"p_value"})  # what was fixed, and not what came out
        content = {**plan, "plan_sha256": judgement.digest, "input": opening.input_of(self.suspect)}
        files.write_json(self.folder / opening.PLAN_FILE, content)
        return judgement

    def _open_answers(self, photos, **more):
        return user_audit.open_answers(self.record, photos, self.suspect, self.asked, self.folder, **more)

    def _rule(self, beside):
        """The Rule of a sequential audit, None for all at once."""
        if not self.plan.sequential:
            return None
        facts = (self.label, self.judgement.alpha, self.classes, self.judgement.left_out, beside, self.room)
        return one_by_one.rule_of(self.record, self.asked, *facts)

    def _order(self, photos, rule):
        """The order of all queries that may be asked."""
        if rule:
            return one_by_one.order_of(rule, self.record)
        pairs = len(photos) * self.plan.pictures
        return user_audit.query_order(self.record, pairs, self.plan.audit_seed, self.plan.views)

    def _ask(self, photos, rule, order, transcript):
        """(SHA-256 digests, Answers), in the order asked."""
        record, suspect, bank = self.record, self.suspect, self.bank
        if rule:
            log = self._open_answers(photos, sequential=one_by_one.order_digest(order))
            return one_by_one.ask(rule, record, photos, suspect, order, log, bank, transcript)
        return user_audit.ask_grid(record, photos, suspect, self.plan, self.folder, bank, transcript)[1:]

    def _judge(self, judgement, rule, order, answers, beside):
        """(result dict, grid T or None)."""
        rest = (judgement.left_out, judgement.price, beside)
        if rule:
            return one_by_one.judge(rule, self.record, order[: len(answers)], answers, *rest)
        facts = (self.plan, self.label, judgement.alpha, order, answers, self.classes)
        return user_audit.judge(self.record, *facts, *rest)[:2]

    def _transcript(self, key, order, beside):
        context = witness.context_of(self.judgement.digest, self.label, order, beside)
        return witness.Transcript(self.folder, key, context)

    def _locked_log(self):
        return files.lock_file(self.log.with_name(f".{self.log.name}.lock"))

    def _own_queries(self):
        """The first view of each published photo under the own key, by number."""
        kept = [number for number, path in enumerate(self.originals) if path is not None]
        step = self.asked.pictures * self.plan.views
        return [place * step for place, number in enumerate(kept) if self.record.photos[number].published]

    def _answered_own(self, order):
        """Whether all that Algorithm 1 needs was asked: a sequential audit may have stopped before."""
        if np.isin(self._own_queries(), order).all():
            return True
        print("Algorithm 1 is left out: the audit stopped before all photos were asked about", file=sys.stderr)
        return False

    def _beside(self, photos, order, answers):
        """Algorithm 1's verdict for the user's published photos under the user's own key."""
        (world, users), plan = self.strangers, self.plan
        others = strangers_of.ask_out_world(
            world, users, self.record, self.suspect, self.folder / "out_world", self.bank
        )
        own = answers.rows(np.argsort(order)[np.searchsorted(np.sort(order), self._own_queries())])
        only = plan.answers == "label only"
        found = strangers_of.algorithm_1(
            *(some.limited(only, plan.top_k) for some in (own, others)),
            users,
            self.label,
            self.options.verdict_fpr,
            self.suspect.classes,
            only,
        )
        if self.references:
            found["calibrated"] = strangers_of.calibrated(self, own, others, self._own_queries())
        found["near_duplicates"] = strangers_of.near_duplicates(photos, world)
        if found["near_duplicates"]:
            print(
                f"warning: {found['near_duplicates']} of the user's photos have near-duplicates among the strangers' "
                "images, so that Algorithm 1's verdict can't be trusted; remove them",
                file=sys.stderr,
            )
        return found

    def _put_away(self, judgement):
        """Keep what an earlier judgement left in the folder, under names with its number."""
        result = self.folder / "result.json"
        if not result.exists():
            return
        # An early version's result has no judgement.
        before = files.read_json(result).get("judgement", {}).get("number", 0)
        if before != judgement.number:
            for name in ("result.json", "grid.png", "wealth.png", "evidence.zip"):
                old = self.folder / name
                if old.exists():
                    old.replace(old.with_name(f"{old.stem}-judgement-{before}{old.suffix}"))

    def _write(self, side, result, judgement, log, grid, rule, order, digests, answers, signed, beside):
        """Plots, evidence bundle and result.json, the last."""
        record, suspect = self.record, self.suspect
        document = {
            "record": disclosed.disclose(record),
            "judgement": judgement.model_dump(mode="json"),
            "log": [entry.model_dump(mode="json") for entry in log],
            "label": self.label,
            "class_name": None
            if self.label == exact.AUTO or self.label >= len(suspect.class_names or ())
            else suspect.class_names[self.label],
            "classes": self.classes,
            "model": suspect.identity,
            **opening.input_of(suspect),
            "references": references_of.describe(self.references),
            "publications": list(self.options.publications),
            "witness": signed,
            **self._sequential(rule),
            "result": result,
            "versions": environment.software_versions(),
        }
        found = evidence.audit_weaknesses(judgement, log, record.plan, suspect.preprocessing.source)
        found += evidence.reference_weaknesses(judgement.plan, record.plan, document["references"])
        weak = self.weaknesses + found
        self._draw(grid, result)
        evidence.write_bundle(self.folder / "evidence.zip", document, order, digests, answers, beside)
        files.write_json(
            self.folder / "result.json",
            {
                **result,
                "weaknesses": weak,
                "judgement": document["judgement"],
                "plan_sha256": judgement.digest,
                "model": suspect.identity,
                **opening.input_of(suspect),
                "references": document["references"],
                "commitment": record.commitments[-1],
                "evidence": record.evidence,
                "working_size": side,
                "versions": document["versions"],
            },
        )

    def _sequential(self, rule):
        """What the evidence says of a sequential audit beside its answers."""
        if not rule:
            return {}
        digest = one_by_one.order_digest(one_by_one.order_of(rule, self.record))
        return {"sequential": {"room": rule.room, "order_sha256": digest}}

    def _draw(self, grid, result):
        for name, drawn in (("grid.png", grid is not None), ("wealth.png", "sequential" in result)):
            if not drawn:
                (self.folder / name).unlink(missing_ok=True)
        if grid is not None:
            report.draw_grid(grid, result, self.folder / "grid.png")
        if "sequential" in result:
            report.draw_wealth(result, self.folder / "wealth.png")


def open_case(
    record_path,
    folders,
    suspect,
    options=None,
    out_world=None,
    folder=None,
    data_root=None,
    log=None,
    roots=None,
    chain=None,
    references=None,
):
    """Plan an audit: a Case. Raises UserError where it can't be carried out, before anything is asked.

    folders: where the originals are (see `records.locate_originals`); out_world: an `OutWorld`, or None to leave
    Algorithm 1 out; folder: for the results, None for one named after the model beside the record; log: the file of
    judgements, None for the one beside the record (a copy of a record has to share the log of the others); roots,
    chain: see `disclosed.check`; references: opened models (see `references.open_models`), [] for none though some were
    committed, None for those that were committed: none may be.
    """
    options = _counted(options or Options(), suspect)
    _refuse_of_others(options, suspect, out_world)
    record = records.read_finished(record_path)
    weaknesses = disclosed.weaknesses(record, record_path, roots, chain)
    originals = records.locate_originals(record, folders, record_path, lost=True)
    left_out = [number for number, path in enumerate(originals) if path is None]
    bank = protect.load_bank(record.settings, data_root)
    published = int(np.delete(record.published, left_out).sum())
    count = options.num_of_non_member_user if out_world else 0
    aside, most = count * published, options.max_queries
    if most is not None and most <= aside:
        raise UserError(
            f"Algorithm 1 alone needs {aside} queries ({count} strangers x {published} images), and "
            f"--max_queries allows {most}",
            advice="lower --num_of_non_member_user, or allow more",
            flag="--max_queries",
        )
    photos = len(originals) - len(left_out)
    _refuse_too_few(record, left_out, published)
    _refuse_lacking(record.plan, references)
    digests = None if references is None else sorted(references_of.digest_of(one) for one in references)
    plan = options.plan(record.plan, photos, aside, digests)
    if plan.sequential:
        _refuse_sequential(record, plan, most and most - aside)
    label = resolve_label(plan.label, suspect)
    references = references_of.matched(references or [], suspect, label)
    # Nothing was committed for an early record, so that there is nothing to depart from; its verdict says what it is.
    committed = plan if isinstance(record, LegacyRecord) else record.plan
    departs, factor = departures(committed, plan, suspect.classes)
    strangers = (out_world, strangers_of.draw_out_world(out_world, record, count, label)) if out_world else None
    beside = records.record_file(record_path).resolve().parent
    folder = opening.place_of_results(record_path, suspect.name, folder)
    if (folder / "config.json").exists() or (folder / "record.json").exists():
        raise UserError(f"--out {folder} has another run's or a record's files", advice="choose another folder")
    log = Path(log or judgements.place_of_log(beside, folder))
    try:
        _refuse_unreachable(record, plan, suspect, committed, photos, factor, most and most - aside)
    except UserError as error:
        if not departs:
            raise
        raise UserError(
            f"the audit departs from the committed plan ({'; '.join(departs)}), so that alpha is divided by "
            f"{2 * factor:,}: {error.problem}",
            "keep to the committed plan",
            f"or give --selections {SELECTION_CHOICES[-1]}, which costs no queries, and more --keys",
        ) from None
    entries = judgements.read_log(log)
    judgement = judgements.next_judgement(
        entries, record, plan, committed, suspect, departs, factor, _asking(folder, entries, suspect), left_out
    )
    return Case(
        record,
        originals,
        suspect,
        bank,
        options,
        plan,
        label,
        departs,
        factor,
        strangers,
        folder,
        log,
        judgement,
        suspect.classes,
        weaknesses,
        references,
    )


def _counted(options, suspect):
    """The Options with the budget in queries, which may show the model several pictures each."""
    most, each = options.max_queries, suspect.pictures_a_query
    if most is None or each == 1:
        return options
    if most < each:
        raise UserError(f"--max_queries {most}: one query shows it {each} pictures", "allow more", flag="--max_queries")
    return replace(options, max_queries=most // each)


def _refuse_of_others(options, suspect, out_world):
    """Raise UserError for what was chosen and means nothing to this kind of model."""
    if options.caption is not None and not suspect.captioned:
        raise UserError(
            "--caption is for models that are told what a picture shows", advice="leave it out", flag="--caption"
        )
    if not suspect.scores:
        return
    chosen = {
        "--label": options.label not in (None, exact.AUTO),
        "--label_only": options.label_only,
        "--top_k": options.top_k is not None,
        "--non_member_folder and --dataset": out_world is not None,
    }
    if given := [flag for flag, is_so in chosen.items() if is_so]:
        raise UserError(
            f"{given[0]} is for models that name classes, and {suspect.name} answers with a score",
            advice="leave it out",
            flag=given[0],
        )


def _refuse_lacking(committed, references):
    """Raise UserError where references were committed and nothing is said of any."""
    if committed.references and references is None:
        lacking = ", ".join(digest[:16] for digest in committed.references)
        raise UserError(
            f"the plan was committed with references (SHA-256 {lacking}), and none is given",
            advice="give them with --reference",
            command="or --reference none, which departs from the plan",
            flag="--reference",
        )


def _refuse_too_few(record, left_out, published):
    """Raise UserError where so many originals are gone that nothing can be shown."""
    if left_out and (not published or len(left_out) > len(record.photos) // 2):
        names = [record.photos[number].original for number in left_out]
        raise UserError(
            f"{len(left_out)} of {len(record.photos)} originals are missing or were changed since they were "
            f"marked ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})",
            advice="give the unmarked photos with --originals",
            flag="--originals",
        )


def _refuse_sequential(record, plan, room):
    """Raise UserError where no audit can go photo by photo."""
    if isinstance(record, LegacyRecord):
        raise UserError("--sequential: the record was made by an early version", "ask all at once", flag="--sequential")
    records.refuse_sequential(record.grouped, record.sizes)
    if room is not None and room < plan.views:
        raise UserError(
            f"--max_queries leaves {room} queries, and one photo takes {plan.views}",
            advice="allow more",
            flag="--max_queries",
        )


def _refuse_unreachable(record, plan, suspect, committed, photos, factor, max_queries):
    """Raise UserError for a grid that can't show anything even as the first judgement.

    That earlier judgements have used alpha up is only said. Where two tests share alpha, the grid has half of it.
    """
    alpha = judgements.share_of_alpha(plan, committed, 1, factor)
    exact.plan_grid(
        photos,
        [batch.possible for batch in record.batches],
        alpha / plan.tests,
        plan.asked(suspect.identity).keys,
        plan.selections,
        None if plan.sequential or max_queries is None else max_queries - photos * plan.views * plan.plain_arm,
        plan.views,
    )


def _asking(folder, entries, suspect):
    """How often this model has been asked anew, this time included; what goes on in its folder is the same asking.

    Raises UserError where the folder has a plan that is not in the log.
    """
    stored = folder / opening.PLAN_FILE
    if stored.exists():
        plan = files.read_json(stored, "put back an undamaged copy")
        digest = plan.get("plan_sha256") if isinstance(plan, dict) else None
        known = next((entry for entry in entries if entry.digest == digest), None)
        if known is None:
            raise UserError(
                f"the plan in {stored} is not in the log of judgements: something was deleted there",
                advice="put back the whole log, beside the record",
                command="or choose another --out, which asks anew",
            )
        if judgements.same_model(known.model, suspect.identity):
            return known.asking
    asked = [entry.asking for entry in entries if judgements.same_model(entry.model, suspect.identity)]
    return max(asked, default=0) + 1

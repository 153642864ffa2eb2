"""One user's audit of one model: ask the grid, ask the out-world, judge.

ask_grid queries the model for every (photo, key) pair in an order that the secret decides, so that a server whose
answers drift treats no key in a special way; the views of a pair follow each other. judge turns answers into a verdict;
check_queries rebuilds every image that was sent.

Public: Photos, Queries, caption_of, query_order, digests_of, Asking, ask_all, warn_of_two_kinds, open_answers,
ask_grid, in_order, log_settings, judge, scores_of, check_queries.
"""

import hashlib
import json
import random
import sys
import threading
from functools import lru_cache

import numpy as np
from PIL import Image

from attacks import exact
from attacks.difficulty import taken_out
from kit.errors import UserError
from kit.flight import in_flight
from kit.progress import Progress
from provenance.evidence import AnswerLog
from provenance.photos import UnreadablePhoto, read_photo
from provenance.protect import mark_photo, shrunk
from suspects.answering import pattern
from suspects.suspect import Answers, Captioned, joined, no_answers
from suspects.views import view_of
from utils import (
    REFERENCE_SIZE,
    key_generator,
)

# A mark does not depend on the resolution: photos far larger than the model's input are scaled down to this many times
# its size before they are marked, 19 keys of a 12-megapixel photo taking seconds instead of minutes.
WORKING_FACTOR = 4
CACHE_BYTES = 1 << 30
PAIRS = 64  # marked photos that are kept for their views
SIGNS = 3  # images of a batch that may show that a model is there


class Photos:
    """Originals by number, at working size: uint8 (H, W, 3). As many as fit into CACHE_BYTES stay in memory.

    kept: numbers of the photos whose originals are there (a path may be None); len: how many these are.
    """

    def __init__(self, paths, input_size):
        self._paths, self.side = list(paths), max(REFERENCE_SIZE, WORKING_FACTOR * max(input_size))
        self.kept = [number for number, path in enumerate(self._paths) if path is not None]
        self._read = lru_cache(maxsize=max(16, CACHE_BYTES // (4 * self.side**2)))(self._read_one)

    def __len__(self):
        return len(self.kept)

    def __getitem__(self, number):
        return self._read(int(number))

    def _read_one(self, number):
        try:
            image = Image.fromarray(read_photo(self._paths[number]))
        except UnreadablePhoto as problem:
            raise UserError(f"{self._paths[number]}: {problem}") from None
        # A copy: torch wants to be allowed to write.
        return np.array(shrunk(image, self.side, Image.Resampling.LANCZOS))


def query_order(record, pairs, audit_seed, views=1):
    """The order in which the queries about `pairs` (photo, key) pairs are asked: int64, a permutation that the secret
    decides; the views of a pair stay together."""
    drawn = key_generator(record.seed_of("query order", audit_seed)).permutation(pairs)
    return (drawn[:, None] * views + np.arange(views)).ravel()


def caption_of(plan, photo):
    """What a model that is told so hears that a record's photo shows: the plan's caption, or else the photo's own."""
    if plan.caption is not None:
        return plan.caption
    return getattr(photo, "caption", None) or ""  # early records have none


class Queries:
    """The questions of a plan's grid, as a model with `preprocessing` gets them.

    Query number = (place among the kept photos * pictures + picture) * views + view; a picture is a photo under the own
    key, under one of the others, or, last and where the plan has that arm, as it is. captioned: whether the
    model is told what a photo shows: the plan's caption, or else that which was committed with the photo.
    """

    def __init__(self, record, photos, plan, preprocessing, bank=None, captioned=False):
        self._record, self._photos, self._plan, self._views = record, photos, plan, plan.views
        self._captioned = captioned
        self._keys, self._bank, self._preprocessing = record.keys(plan.keys, plan.audit_seed), bank, preprocessing
        self._pictures = plan.pictures
        # Marking takes far longer than what makes a view of a marked picture.
        self._pair = lru_cache(maxsize=PAIRS)(self._marked)

    def __len__(self):
        return len(self._photos) * self._pictures * self._views

    def _marked(self, pair):
        place, key = divmod(pair, self._pictures)
        number = self._photos.kept[place]
        if key == len(self._keys):
            return self._preprocessing.fit(self._photos[number])
        photo = self._record.photos[number]
        marking = self._record.settings.marking(self._bank)
        marked = mark_photo(self._photos[number], self._keys[key][photo.batch], number, marking)
        return self._preprocessing.fit(marked)

    def image(self, query):
        """The picture of one query: uint8 (3, h, w)."""
        pair, view = divmod(int(query), self._views)
        return view_of(self._pair(pair), view)

    def images(self, queries):
        """The pictures of several: uint8 (n, 3, h, w), or Captioned."""
        images = np.stack([self.image(query) for query in queries])
        return Captioned(images, tuple(map(self._told, queries))) if self._captioned else images

    def _told(self, query):
        number = self._photos.kept[int(query) // self._views // self._pictures]
        return caption_of(self._plan, self._record.photos[number])


def digests_of(images):
    """SHA-256 of each image as it is sent, and of its caption behind it where there is one: uint8 (n, 32)."""
    captions = images.captions if isinstance(images, Captioned) else [""] * len(images)
    images = images.images if isinstance(images, Captioned) else images
    sent = [image.tobytes() + caption.encode() for image, caption in zip(images, captions, strict=True)]
    return np.stack([np.frombuffer(hashlib.sha256(content).digest(), np.uint8) for content in sent])


class _Patient:
    """Asks a suspect so that single images without an answer do not end the audit.

    A batch that fails is split, down to the single image, as long as the model still answers about something else: an
    image that it has answered before or a neutral pattern, or some image of the batch, which ones nobody can foresee.
    What is no number is asked for once more. An image that still fails has no answer (see Answers.missing): it counts
    as the worst score, for every pair alike. A model that answers nothing at all is not there, and the audit goes on
    another time.
    """

    def __init__(self, suspect, answered=None):
        self._suspect = suspect
        self._probe = pattern(1, suspect.preprocessing.size) if answered is None else answered

    def ask(self, images, whole=None):
        """Answers for uint8 images (n, 3, h, w), some of them perhaps missing. whole: the batch that they belong to."""
        whole = images if whole is None else whole
        try:
            answers = self._once_more(images, self._suspect.ask(images))
        except UserError:
            form = self._sign_of_life(whole)
            if form is None:
                raise
            if len(images) == 1:
                return no_answers(1, form)
            half = len(images) // 2
            return joined([self.ask(images[:half], whole), self.ask(images[half:], whole)])
        there = np.flatnonzero(~answers.missing)
        if len(there):
            self._probe = images[there[:1]]
        return answers

    def _sign_of_life(self, whole):
        """Any answer of the model's, or None. An owner who knows the pattern could refuse that, too."""
        some = random.SystemRandom().sample(range(len(whole)), min(SIGNS, len(whole)))
        for image in (self._probe, *(whole[place : place + 1] for place in some)):
            try:
                found = self._suspect.ask(image)
            except UserError:
                continue
            if not found.missing.all():
                self._probe = image
                return found
        return None

    def _once_more(self, images, first):
        """The answers, with a second try for those that are missing: of the whole batch, as rounding depends on it."""
        if not first.missing.any():
            return first
        second, gone = self._suspect.ask(images), first.missing
        pairs = tuple(zip(first.arrays, second.arrays, strict=True))
        if any(
            (one is None) != (other is None) or (one is not None and one.shape != other.shape) for one, other in pairs
        ):
            return first
        return Answers(*(None if one is None else np.where(gone[:, None], other, one) for one, other in pairs))


class Asking:
    """Asks for the images prepare(places), uint8 (n, 3, h, w), in batches, step by step; what the log has is not asked
    again. transcript: a `witness.Transcript`, or None.
    """

    def __init__(self, log, suspect, prepare, transcript=None):
        self._log, self._suspect, self._prepare, self._transcript = log, suspect, prepare, transcript
        log.drop_replaced()
        if transcript is not None:
            transcript.adopt(log)
        for _, answers in list(log.blocks.values())[:1]:
            suspect.remember(answers)
        known = next(
            (
                first + int(np.flatnonzero(~kept.missing)[0])
                for first, (_, kept) in log.blocks.items()
                if not kept.missing.all()
            ),
            None,
        )
        answered = None if known is None else prepare(np.array([known]))
        self._patient, self._lock, self._given_up = _Patient(suspect, answered), threading.Lock(), threading.Event()

    @property
    def done(self):
        """How many queries are answered."""
        return sum(len(answers) for _, answers in self._log.blocks.values())

    def until(self, count, bar):
        """Have the queries 0..count - 1 answered. As many requests as the suspect allows are under way at once; each is
        in the log as soon as it is answered."""
        try:
            for (_, images), _ in in_flight(self._ask, self._questions(count), self._suspect.concurrency):
                bar.update(len(images))
        except BaseException as error:
            with self._lock:  # nobody waits for the rest: its folder may be another's soon
                self._given_up.set()
            if isinstance(error, UserError):
                raise _with_what_is_kept(error, self._log, bar.total) from None
            raise

    def _questions(self, count):
        for place, stop in self._log.gaps(count):
            while place < stop:
                places = np.arange(place, min(stop, place + self._suspect.batch_size))
                yield place, self._prepare(places)
                place += len(places)

    def _ask(self, question):
        first, images = question
        answers = self._patient.ask(images)
        with self._lock:
            if self._given_up.is_set():
                return
            self._log.add(first, digests_of(images), answers)
            if self._transcript is not None:
                self._transcript.add(first, *self._log.blocks[first])


def ask_all(log, suspect, count, prepare, label, transcript=None):
    """Ask for `count` images (see Asking): (digests uint8 (N, 32), Answers) of all queries in order."""
    asking = Asking(log, suspect, prepare, transcript)
    with Progress(desc=label, total=count, initial=asking.done, unit="query") as bar:
        asking.until(count, bar)
    digests, answers = log.collect()
    warn_of_two_kinds(log)
    return digests, answers


def _with_what_is_kept(error, log, count):
    """A failure in the middle, with what the work so far is worth."""
    kept = sum(len(answers) for _, answers in log.blocks.values())
    if not kept:
        return error
    told = f"the {kept} of {count} answers that came are kept, and the same command goes on with the rest"
    return UserError(error.problem, f"{error.advice}; {told}" if error.advice else told, error.command, error.flag)


def warn_of_two_kinds(log):
    """Say so on stderr where some of a log's answers are probabilities and others logits."""
    # A server is asked again for such a reply, which then counts as missing: these are of files or of earlier versions.
    count = dict.fromkeys(("probabilities", "logits", "both"), 0)
    for _, answers in log.blocks.values():
        if answers.kind:
            count[answers.kind] += len(answers)
    if sum(map(bool, count.values())) > 1 or count["both"]:
        print(
            f"warning: some replies in {log.path} hold probabilities and others logits, which can't be judged "
            "together: all are taken for logits; ask again with another --out",
            file=sys.stderr,
        )


def in_order(answers, order):
    """Answers by query number, from answers in the order asked."""
    return answers.rows(np.argsort(order))


def log_settings(record, suspect, **more):
    """What an AnswerLog is bound to: whose photos, which model, which input."""
    return {
        "commitment": record.commitments[-1],
        "model": json.dumps(suspect.identity, sort_keys=True),
        "preprocessing": suspect.preprocessing.describe(),
        **more,
    }


def open_answers(record, photos, suspect, plan, folder, **more):
    """The AnswerLog of a grid in `folder`. Raises UserError where the folder has answers to other questions. more: what
    else these hang on."""
    left_out = sorted(set(range(len(record.photos))) - set(photos.kept))
    suspect.settle(record.seed_of("draws of the model's scores", plan.audit_seed))
    settings = {"keys": plan.keys, "audit_seed": plan.audit_seed, "left_out": left_out or None}
    if suspect.captioned and plan.caption is not None:
        settings["caption"] = plan.caption
    if plan.views > 1:
        settings["views"] = plan.views
    if plan.plain_arm:
        settings["plain_arm"] = True
    return AnswerLog(folder, log_settings(record, suspect, **settings, **more))


def ask_grid(record, photos, suspect, plan, folder, bank=None, transcript=None, label="asking the model"):
    """Query the model for all photos under the user's own and the plan's fresh keys, in the plan's views; resumes from
    `folder`.

    Returns (order of the queries, SHA-256 digests uint8 (N, 32) and Answers, both in the order asked).
    """
    queries = Queries(record, photos, plan, suspect.preprocessing, bank, suspect.captioned)
    order = query_order(record, len(queries) // plan.views, plan.audit_seed, plan.views)
    log = open_answers(record, photos, suspect, plan, folder)
    return (
        order,
        *ask_all(log, suspect, len(order), lambda places: queries.images(order[places]), label, transcript),
    )


def judge(record, plan, label, alpha, order, answers, classes, left_out=(), price=1, references=()):
    """The exact test on answers in the order asked: (result dict, grid T, labels of the pairs).

    record: anything with `selections`, a MarkRecord or what a bundle discloses of one; plan: the `AuditPlan`; label:
    its label as a class number, or AUTO; alpha: what p is compared with; left_out: numbers of photos that were not
    asked about; price: of `Judgement.price`, by which the sentences multiply p; references: scores of the plan's
    references, float (R, photos, pictures).
    """
    selections = record.selections(plan.selections, plan.audit_seed)
    selections = np.delete(selections, np.asarray(left_out, dtype=int), axis=1)
    answers = in_order(answers, order).limited(plan.answers == "label only", plan.top_k)
    scores, top, missing = scores_of(answers, selections.shape[1], classes, label, plan.views)
    arms = [
        _test(plan, selections, label, *(one[:, arm] for one in (scores, top, missing, *references)))
        for arm in (slice(plan.keys + 1), slice(plan.keys + 1, None))[: 1 + plan.plain_arm]
    ]
    (marked_p, grid, labels), missing_marked = arms[0], missing[:, : plan.keys + 1]
    p, key_p = min(1.0, len(arms) * min(arm[0] for arm in arms)), exact.key_p_value(grid)
    published = int(selections[0].sum())
    others = np.delete(grid.ravel(), 0)
    result = {
        "p_value": p,
        "alpha": alpha,
        "detected": p <= alpha,
        "p_adjusted": min(1.0, p * price),
        "statistic": float(grid[0, 0]),
        "statistic_of_others": {f"{share} %": float(np.percentile(others, share)) for share in (0, 1, 5, 50, 95)}
        if len(others)
        else {},
        "pairs": int(grid.size),
        "at_most": round(marked_p * grid.size),
        "key_p_value": key_p,
        "label": None if answers.scores is not None else int(labels[0, 0]),
        "queries": len(answers),
        "missing": int(missing.sum()),
        "refusal_p_value": exact.refusal_p_value(missing_marked, selections),
        "photos": selections.shape[1],
        "published": published,
        "sentences": exact.sentences(min(1.0, p * price), alpha * price, published, key_p, plan.keys),
    }
    if plan.plain_arm:
        result["arms"] = {"marked": marked_p, "plain": arms[1][0], "plain_refused": int(missing[:, -1].sum())}
    return result, grid, labels


def _test(plan, selections, label, scores, top, missing, *references):
    """(p, grid T, labels of the pairs) of one arm. Where nothing was answered, nothing can be said: 1."""
    left = taken_out(scores, references, plan.by_key)
    grid, labels = exact.statistic_grid(left, selections, label, top)
    return 1.0 if missing.all() else exact.p_value(grid), grid, labels


def scores_of(answers, photos, classes, label, views=1):
    """(scores float64 (n, L + 1, C), each the mean over its views, NaN where no view has an answer; top classes int64
    (n, L + 1, views); missing bool (n, L + 1, views)) of Answers by query number.

    A model that answers with scores has one class, 0, whatever the label.
    """
    if answers.scores is not None:
        return _given_scores(answers, photos, views)
    logs, top, only = answers.log_probabilities(classes)
    if label != exact.AUTO and not 0 <= label < logs.shape[1]:
        if not only and answers.classes is None:
            raise UserError(
                f"--label {label}: the model has classes 0 to {logs.shape[1] - 1}",
                advice="give one of them",
                flag="--label",
            )
        lowest = np.nanmin(logs)
        logs = np.concatenate([logs, np.full((len(logs), label + 1 - logs.shape[1]), lowest)], axis=1)
        logs[top < 0] = np.nan
    scores = np.where(np.isnan(logs), np.nan, -logs) if only else exact.score(logs)
    scores, missing = scores.reshape(photos, -1, views, logs.shape[1]), answers.missing.reshape(photos, -1, views)
    return _mean_over_views(scores, missing), top.reshape(photos, -1, views), missing


def _given_scores(answers, photos, views):
    missing = answers.missing.reshape(photos, -1, views)
    if missing.all():
        raise UserError("the model answered nothing at all", advice="no verdict can be based on that")
    scores = answers.memory.reshape(photos, -1, views, 1)
    return _mean_over_views(scores, missing), np.where(missing, -1, 0), missing


def _mean_over_views(scores, missing):
    """A view without an answer counts as the worst score of all, so that a refusal never helps; where all views of a
    pair lack one, so does the pair: NaN."""
    if scores.shape[2] == 1:
        return scores[:, :, 0]
    if missing.any():
        worst = np.nanmax(scores)
        scores = np.where(missing[..., None] & ~missing.all(axis=2)[:, :, None, None], worst, scores)
    return scores.mean(axis=2)


def check_queries(record, photos, preprocessing, plan, order, digests, bank=None, captioned=False):
    """How many of the images whose digests were kept are those that record and originals give: a number of queries.
    captioned: whether they were sent with captions."""
    queries = Queries(record, photos, plan, preprocessing, bank, captioned)
    if len(order) != len(queries) and not (plan.sequential and len(order) < len(queries)):
        raise UserError(
            f"the bundle has {len(order)} queries, this record {len(queries)} for its plan",
            advice="give the record of the bundle",
        )
    return sum(
        bool((digests_of(queries.images([query]))[0] == digest).all())
        for query, digest in Progress(list(zip(order, digests, strict=True)), "checking", unit="query")
    )

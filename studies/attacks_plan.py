"""Attacks after the draw: choosing how an innocent model is audited until it looks guilty.

BEFORE, label, answers used, numbers of keys and selections and the audit's seed could be chosen after the answers.
AFTER, what departs from the committed plan divides alpha. What no number counts is played, too: seeds, repeated
questions to a service whose answers vary, models, the way that photos are fed to the model, photos left out.

Public: Shop, USUAL, all_labels, shopping, free_class, seeds, asking_again, best_model, fed_otherwise, left_out,
fresh_draw, record_of, each.
"""

from dataclasses import dataclass

import numpy as np
import torch

import utils
from attacks import exact
from provenance.grid import scores_of
from provenance.plan import KEY_CHOICES, SHARE_OF_SETS, AuditPlan, departures
from studies import attacks_world as places
from studies import common
from studies.attacks_world import counted, row
from suspects.suspect import Answers

MOST_KEYS = 49
OLD_SELECTIONS = (99, 199, 499, 999)
USUAL = AuditPlan(selections=OLD_SELECTIONS[-1], views=1)  # as many selections as the worlds have
TIE = 1e-9  # relative; sums that are equal but for rounding are ties


# --- all labels, forms of answers, numbers of keys and selections ---


@dataclass(frozen=True)
class Choice:
    """A way to audit: its AuditPlan, the p that is printed, and p times what alpha is divided by."""

    plan: AuditPlan
    p: float
    fair: float


class Shop:
    """Every way to audit one grid. answers: float32 (n, L + 1, C); selections: bool (m + 1, n)."""

    def __init__(self, answers, selections, committed=None):
        self.answers, self.selections, self.committed = answers, selections, committed or USUAL
        self.classes = answers.shape[2]

    def forms(self):
        """(answers used, top k) of every form."""
        return [("as given", None), ("label only", None), *(("top k", k) for k in range(1, self.classes))]

    def tables(self, form):
        """p for every label (AUTO's the last), number of selections and number of keys, each from the first on: float
        (C + 1, m + 1, L + 1)."""
        given = Answers(self.answers.reshape(-1, self.classes)).limited(form[0] == "label only", form[1])
        scores, top, _ = scores_of(given, len(self.answers), self.classes, exact.AUTO)
        return np.stack([_prefixes(grid) for grid in all_labels(scores, top, self.selections)])

    def choices(self):
        """(Choice with the smallest p that is printed, of the usual numbers; Choice that is best after division)."""
        printed = best = None
        for form in self.forms():
            table = self.tables(form)
            usual = self._best(form, np.where(self._usual, table, np.inf))
            fair = self._best(form, table * self._factors(form))
            printed = usual if printed is None or usual.p < printed.p else printed
            best = fair if best is None or fair.fair < best.fair else best
        return printed, best

    def fair(self, plan, p):
        """p times what alpha is divided by for a plan."""
        return counted(p, factor=departures(self.committed, plan, self.classes)[1])

    def p(self, plan):
        """p of one plan."""
        columns = slice(plan.keys + 1)
        return places.p_of(self.answers[:, columns], self.selections[: plan.selections + 1], plan)

    def _best(self, form, table):
        """The Choice that is smallest in a table as of `tables`."""
        label, selections, keys = np.unravel_index(table.argmin(), table.shape)
        plan = self.committed.model_copy(
            update={
                "answers": form[0],
                "top_k": form[1],
                "label": exact.AUTO if label == self.classes else str(label),
                "keys": int(keys),
                "selections": int(selections),
            }
        )
        p = self.p(plan)
        return Choice(plan, p, self.fair(plan, p))

    def _factors(self, form):
        """What alpha is divided by for every plan of a form: as of `tables`, from the prices of single parts."""
        labels = [*map(str, range(self.classes)), exact.AUTO]
        label = np.array([self._values(label=label) for label in labels])[:, None, None]
        keys = np.array([self._values(keys=number) for number in range(self.answers.shape[1])])
        chosen = np.array([self._chosen(number) for number in range(len(self.selections))])[:, None]
        form = self._values(answers=form[0], top_k=form[1])
        parts = (label > 0).astype(int) + (keys > 0) + (form > 0)
        values = np.maximum(label, 1) * np.maximum(keys, 1) * max(form, 1)
        factors = 2 * np.array(SHARE_OF_SETS)[np.minimum(parts, 3)] * chosen * values
        return np.where((parts == 0) & (chosen == 2), 1, factors)

    def _values(self, **changes):
        """The number of values of one part, 0 where it does not depart."""
        factor = self._factor(**changes)
        return 0 if factor == 1 else factor / (2 * SHARE_OF_SETS[1] * 2)

    def _chosen(self, selections):
        """What a number of selections costs: 2 for that of the committed plan."""
        factor = self._factor(selections=selections)
        return 2 if factor == 1 else factor / (2 * SHARE_OF_SETS[0])

    def _factor(self, **changes):
        return departures(self.committed, self.committed.model_copy(update=changes), self.classes)[1]

    @property
    def _usual(self):
        """Which numbers are the usual ones: bool (m + 1, L + 1)."""
        usual = np.zeros((len(self.selections), self.answers.shape[1]), dtype=bool)
        usual[
            np.ix_(
                [number for number in OLD_SELECTIONS if number < usual.shape[0]],
                [number for number in KEY_CHOICES if number < usual.shape[1]],
            )
        ] = True
        return usual


def all_labels(scores, top, selections):
    """T for every label and for AUTO, as `exact.statistic_grid` gives it: float (C + 1, m + 1, L + 1)."""
    count, keys, classes = scores.shape
    weights = selections.astype(np.float64)
    sums = (weights @ scores.reshape(count, -1)).reshape(len(weights), keys, classes)
    named = (top[:, :, None] == np.arange(classes)).astype(np.float64)
    most = (weights @ named.reshape(count, -1)).reshape(sums.shape).argmax(axis=2)
    auto = np.take_along_axis(sums, most[:, :, None], axis=2)
    return np.concatenate([sums, auto], axis=2).transpose(2, 0, 1) / selections.sum(axis=1)[:, None]


def _prefixes(grid):
    """p of the first pairs, for every number of selections and keys: float (m + 1, L + 1)."""
    low = grid <= grid[0, 0] + TIE * (1 + abs(grid[0, 0]))
    pairs = np.arange(1, low.shape[0] + 1)[:, None] * np.arange(1, low.shape[1] + 1)
    return low.cumsum(axis=0).cumsum(axis=1) / pairs


def shopping(world, repeats):
    """Rows: the best way to audit by the model that things are tried on, applied to the accused one."""
    keys = min(MOST_KEYS, world.pool - 2)
    for number, user in enumerate(world.users):
        yield from _shopped_before(world, number, user, keys)
        for repeat in range(repeats):
            for accused in range(len(world.names)):  # a draw for each model that is accused
                yield from _shopped_after(world, number, user, accused, repeat, keys)


def _shops(world, user, draw):
    return [Shop(places.answers_of(user, model, draw), draw.selections) for model in range(len(world.names))]


def _shopped_before(world, number, user, keys):
    own, sizes = places.old_key(world, "shopping", number), [(world.photos, world.photos // 2)]
    shops = _shops(world, user, places.old_draw(*own, sizes, np.arange(world.photos), world.pool, keys))
    for tried, shop in enumerate(shops):
        plan = shop.choices()[0].plan
        for accused, other in enumerate(shops):
            yield row("shopping", "label, answers, numbers", "before", number, tried, accused, other.p(plan))


def _shopped_after(world, number, user, accused, repeat, keys):
    draw = fresh_draw(world, user, ("shopping", repeat, number, accused), keys)
    shops = _shops(world, user, draw)
    for tried, shop in enumerate(shops):
        best = shop.choices()[1].plan
        p = shops[accused].p(best)
        fair = shops[accused].fair(best, p)
        yield row("shopping", "label, answers, numbers", "after", number, tried, accused, p, fair)


def fresh_draw(world, user, parts, keys=places.KEYS, selections=places.SELECTIONS):
    """The Draw of a user's usual record, committed and drawn as it should be."""
    return places.new_draw(record_of(world, user, parts), world.pool, keys, selections)


def record_of(world, user, parts):
    """The usual record of a user, committed and drawn as it should be."""
    photos = [places.photo_of(user, place) for place in range(world.photos)]
    record = places.commit(photos, world.draws("secret", *parts).integers(2**50))
    return places.drawn(record, places.Beacon(world, *parts).signature())


def each(world, name, repeats):
    """(number, user, accused model, what names the draw) for attacks on the accused model itself."""
    for number, user in enumerate(world.users):
        for accused in range(len(world.names)):
            for repeat in range(repeats):
                yield number, user, accused, (name, repeat, number, accused)


# --- what no number counts ---


def free_class(world, repeats):
    """Rows: the class of the photos is chosen after the draw, as if the plan had not said "auto"."""
    for number, user, accused, parts in each(world, "class", repeats):
        draw = fresh_draw(world, user, parts)
        shop = Shop(places.answers_of(user, accused, draw), draw.selections)
        p = float(shop.tables(("as given", None))[:, -1, -1].min())
        yield row("class chosen after the draw", "any class", "after", number, accused, accused, p, counted(p))


def seeds(world, repeats, count):
    """Rows: the best of many texts added to the draw of fresh keys and selections (--audit_seed)."""
    sizes = [(world.photos, world.photos // 2)]
    for number, user, accused, parts in each(world, "seeds", repeats):
        own, record = places.old_key(world, *parts), record_of(world, user, parts)
        old = [
            places.old_draw(*own, sizes, np.arange(world.photos), world.pool, audit_seed=str(text))
            for text in range(count)
        ]
        new = [places.new_draw(record, world.pool, audit_seed=str(text)) for text in range(count)]
        for when, draws in (("before", old), ("after", new)):
            p = min(places.p_of(places.answers_of(user, accused, draw), draw.selections) for draw in draws)
            yield row(
                "audit seed", f"{count} seeds", when, number, accused, accused, p, counted(p) if draws is new else p
            )


def asking_again(world, repeats, count=8, noise=1.0):
    """Rows: a service whose logits vary is asked anew until it pleases; with the log of it, and with a log deleted."""
    for number, user, accused, parts in each(world, "again", repeats):
        draw, draws = fresh_draw(world, user, parts), world.draws("noise", *parts)
        answers = places.answers_of(user, accused, draw)
        found = [
            places.p_of(answers + draws.normal(0, noise, answers.shape).astype(np.float32), draw.selections)
            for _ in range(count)
        ]
        fair = [counted(p, number=place) for place, p in enumerate(found, 1)]
        best, where = int(np.argmin(fair)), (number, accused, accused)
        yield row("asking anew", f"{count} askings, logged", "after", *where, found[best], fair[best])
        yield row("asking anew, log deleted", f"{count} askings", "after", *where, min(found), counted(min(found)))


def best_model(world, repeats):
    """Rows: the same record against every model, each with its own alpha, and the one that looks worst is accused."""
    for number, user in enumerate(world.users):
        for repeat in range(repeats):
            draw = fresh_draw(world, user, ("models", repeat, number))
            found = [
                places.p_of(places.answers_of(user, model, draw), draw.selections) for model in range(len(world.names))
            ]
            place = int(np.argmin(found))
            yield row(
                "several models", f"{len(found)}", "after", number, place, place, found[place], counted(found[place])
            )


def left_out(world, repeats):
    """Rows: a third of the photos is said to be lost, chosen after the draw: hard published, easy held-out ones."""
    for number, user, accused, parts in each(world, "left out", repeats):
        draw = fresh_draw(world, user, parts)
        answers, chosen = places.answers_of(user, accused, draw), draw.selections[0]
        score = user.scores[accused][draw.photos, draw.columns[0, 0]]
        lost = np.concatenate([_worst(chosen, score, world.photos // 6), _worst(~chosen, -score, world.photos // 6)])
        p = places.p_of(np.delete(answers, lost, axis=0), np.delete(draw.selections, lost, axis=1))
        yield row("photos left out", f"{len(lost)} of {world.photos}", "after", number, accused, accused, p, counted(p))


def _worst(among, score, count):
    """The `count` photos of `among` with the largest score."""
    return np.argsort(np.where(among, -score, np.inf))[:count]


def fed_otherwise(world, data, models, repeats, ways=8):
    """Rows: the best of some ways to feed the model, as flags for mean and std give them (here: of contrast and
    brightness of the image that it gets)."""
    for number, user, accused, parts in each(world, "fed", repeats):
        record, query = record_of(world, user, parts), models[accused][2]
        images, draw = _grid_images(data, user, record), places.new_draw(record, world.pool)
        draws, found = world.draws("ways", *parts), []
        for way in range(ways):
            contrast, shift = (1.0, 0.0) if way == 0 else (draws.uniform(0.85, 1.15), draws.uniform(-12, 12))
            fed = (images.float().sub_(128).mul_(contrast).add_(128 + shift)).round_().clamp_(0, 255).to(torch.uint8)
            answers = torch.cat([query(part).cpu().float() for part in fed.split(1024)]).numpy()
            found.append(places.p_of(answers.reshape(world.photos, -1, answers.shape[1]), draw.selections))
        p = min(found)
        yield row("input given by flags", f"{ways} ways", "after", number, accused, accused, p, counted(p))


def _grid_images(data, user, record):
    """The marked images of a record's grid, photo by photo: uint8 (n * (L + 1), 3, H, W)."""
    originals = data.images[torch.from_numpy(user.rows[places.numbers_of(record)])]
    numbers, marking = np.arange(len(originals)), common.SETTINGS.marking()
    marked = [
        utils.mark_images(originals, key, np.zeros_like(numbers), numbers, marking)
        for (key,) in record.keys(places.KEYS)
    ]
    return torch.stack(marked, dim=1).flatten(0, 1)

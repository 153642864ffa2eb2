"""Attacks on the draw: choosing what is published, or under which key, so that an innocent model likes it.

BEFORE, the accuser drew key and selection from the own generator, could read them, and could draw again. AFTER, they
follow from a commitment and from a beacon's round that comes out later; the attacker does whatever is possible before
the round, and tries it on guesses of the round.

Public: names, grinding, whole_secrets, redraws, several_commitments, stopping, Fast, secret_of.
"""

import hashlib

import numpy as np

import utils
from kit.files import canonical_digest
from provenance import draw as draws_of
from provenance import legacy
from provenance.plan import AuditPlan
from studies import attacks_world as places
from studies.attacks_world import counted, liking, opportunities, row


def _p(user, accused, draw, plan=None):
    return places.p_of(places.answers_of(user, accused, draw), draw.selections, plan)


def _difficulty(user, tried):
    """How hard each photo is for the model that things are tried on, whatever the key: float (n,)."""
    return user.scores[tried].mean(axis=1)


# --- names: easy photos for the places that will be published ---


def names(world, repeats):
    """Rows of audits in which a second batch is arranged after the first one's record was read."""
    for number, user, tried, accused in opportunities(world):
        yield _named_before(world, number, user, tried, accused)
        for variant in NAMING:
            for repeat in range(-(-repeats // len(NAMING))):
                yield _named_after(world, number, user, tried, accused, variant, repeat)


def _arranged(later, wanted, difficulty):
    """The photos `later` in an order in which the easy ones stand where `wanted`, bool (n,), says "published"."""
    ranked, order = later[np.argsort(difficulty[later])], np.empty(len(later), dtype=np.int64)
    order[wanted], order[~wanted] = ranked[: wanted.sum()], ranked[wanted.sum() :]
    return order


def _first(world):
    """How many photos the batch has whose record is read before the next."""
    return max(2, world.photos // 5)


def _named_before(world, number, user, tried, accused):
    key, selection_key = places.old_key(world, "names", number, tried, accused)
    first = _first(world)
    later = np.arange(first, world.photos)
    sizes = [(first, first // 2), (len(later), len(later) // 2)]
    batches = places.sizes_of(sizes)
    wanted = legacy.draw_selections(selection_key.hex(), batches, 0)[0][first:]
    order = np.concatenate([np.arange(first), _arranged(later, wanted, _difficulty(user, tried))])
    draw = places.old_draw(key, selection_key, sizes, order, world.pool)
    return row("names", "names", "before", number, tried, accused, _p(user, accused, draw))


def _named_after(world, number, user, tried, accused, variant, repeat):
    parts = ("names", variant, repeat, number, tried, accused)
    beacon, seed = places.Beacon(world, *parts), world.draws("secret", *parts).integers(2**60)
    record = places.commit([places.photo_of(user, place) for place in range(_first(world))], seed)
    record = places.drawn(record, beacon.signature())
    difficulty = _difficulty(user, tried)
    later = np.arange(_first(world), world.photos)
    if variant == "chosen photos":  # the easiest and the hardest alone
        quarter, ranked = max(1, len(later) // 4), later[np.argsort(difficulty[later])]
        later = np.concatenate([ranked[:quarter], ranked[-quarter:]])
    # What the first batch's secret and context would publish of the second, were they used again.
    secrets, context = record.batches[0].secrets, record.batches[0].context
    wanted = draws_of.selection(secrets[1], context, 0, len(later), len(later) - len(later) // 2)
    order = _arranged(later, wanted, difficulty)
    if variant == "names":
        photos = [places.photo_of(user, photo, f"{place:04}") for place, photo in enumerate(order)]
    else:
        photos = [_placed(user, photo, place, len(order)) for place, photo in enumerate(order)]
    record = places.drawn(places.commit(photos, seed, record=record), beacon.signature())
    p = _p(user, accused, places.new_draw(record, world.pool))
    return row("names", variant, "after", number, tried, accused, p, counted(p, number=2))


NAMING = ("names", "content", "chosen photos")


def _placed(user, photo, place, of):
    """A photo whose file was changed until its SHA-256 puts it at `place` of `of`."""
    for nonce in range(1000 * of):
        entry = places.photo_of(user, photo, nonce=b"%d" % nonce)
        if int(entry["original_sha256"][:12], 16) * of >> 48 == place:
            return entry
    raise ValueError("no content found")


# --- grinding: many keys and selections, the one that an innocent model likes best ---


class Fast:
    """Draws of many secrets and contents, without making whole records: bit for bit those of `record`."""

    def __init__(self, record):
        self._commit = record.batches[-1].commit

    def own(self, secret, randomness, originals=None):
        """(own key, published selection) that a secret gives with the beacon's randomness (hex).

        originals: sorted SHA-256 of the photos, the record's unless told.
        """
        marks, selections = draws_of.mark_secret(secret), draws_of.selection_secret(secret)
        changes = {
            "marks_sha256": hashlib.sha256(marks).hexdigest(),
            "selections_sha256": hashlib.sha256(selections).hexdigest(),
        }
        if originals is not None:
            changes["originals_sha256"] = canonical_digest(originals)
        commit = self._commit.model_copy(update=changes)
        context = draws_of.context_of(commit.digest, randomness)
        chosen = draws_of.selection(selections, context, 0, commit.photos, commit.published)
        return draws_of.mark_key(marks, context, 0), chosen


def secret_of(seed):
    """The secret that a record draws from a number."""
    return utils.derive_key(int(seed), "mark record", 0)


def guess(world, *parts):
    """A guess of the beacon's randomness, hex."""
    return hashlib.sha256(world.draws("guess", *parts).bytes(48)).hexdigest()


def grinding(world, repeats, keys, selections):
    """Rows: keys x selections before; as many secrets, contents and settings as can be tried before the round after."""
    halves = _old_halves(world, selections)
    for number, user in enumerate(world.users):
        yield from _ground_before(world, number, user, keys, halves)
        kinds = GRINDING
        for repeat in range(-(-repeats // len(kinds))):
            for variant, grind in kinds.items():
                yield from _ground_after(world, number, user, variant, grind(world, number, user, selections, repeat))


def _old_halves(world, count):
    """(selection keys, bool (count, n)): what each of many selection keys publishes."""
    batches = places.sizes_of([(world.photos, world.photos // 2)])
    keys = [places.old_key(world, "halves", number)[1] for number in range(count)]
    return keys, np.stack([legacy.draw_selections(key.hex(), batches, 0)[0] for key in keys])


def _ground_before(world, number, user, keys, halves):
    own = [places.old_key(world, "grinding", number, place)[0] for place in range(keys)]
    columns = np.array([places.own_column(key, world.pool) for key in own])
    for tried in range(len(world.names)):
        grid = halves[1].astype(np.float32) @ user.scores[tried][:, columns]
        place, key = np.unravel_index(grid.argmin(), grid.shape)
        for accused in range(len(world.names)):
            sizes = [(world.photos, world.photos // 2)]
            draw = places.old_draw(own[key], halves[0][place], sizes, np.arange(world.photos), world.pool)
            yield row("grinding", "keys x selections", "before", number, tried, accused, _p(user, accused, draw))


def _ground_after(world, number, user, variant, ground):
    """ground: for each model, a function that commits what it likes best and returns the record."""
    for tried, commit in enumerate(ground):
        for accused in range(len(world.names)):
            record = commit()
            beacon = places.Beacon(world, "grinding", variant, number, tried, accused, record.commitments[0])
            record = places.drawn(record, beacon.signature())
            draw = places.new_draw(record, world.pool, record.plan.keys, record.plan.selections)
            p = _p(user, accused, draw, record.plan)
            yield row("grinding", variant, "after", number, tried, accused, p, counted(p))


def _usual_photos(world, user):
    return [places.photo_of(user, place) for place in range(world.photos)]


def _most_liked(world, user, order, drawn):
    """For each model, which of `drawn` [(own key, selection), ...] it likes best. order: photos, int64 (trials, n)."""
    columns = np.array([places.own_column(key, world.pool) for key, _ in drawn])
    chosen = np.zeros((len(drawn), world.photos), dtype=bool)
    np.put_along_axis(chosen, order, np.stack([half for _, half in drawn]), axis=1)
    everything = np.arange(world.photos)
    return [int(liking(user, model, everything, columns, chosen).argmin()) for model in range(len(world.names))]


def _secrets(world, number, user, budget, repeat):
    """Many secrets, one guess of the round."""
    photos, first = _usual_photos(world, user), int(world.draws("secrets", number, repeat).integers(2**50))
    record = places.commit(photos, first)
    fast, randomness = Fast(record), guess(world, "secrets", number, repeat)
    tried = [fast.own(secret_of(first + place), randomness) for place in range(budget)]
    order = np.broadcast_to(places.numbers_of(record), (budget, world.photos))
    best = _most_liked(world, user, order, tried)
    return [lambda place=place: places.commit(photos, first + place) for place in best]


def _guesses(world, number, user, budget, repeat):
    """Fewer secrets, a hundred guesses of the round: the secret that is liked best on average."""
    photos, first = _usual_photos(world, user), int(world.draws("guesses", number, repeat).integers(2**50))
    record = places.commit(photos, first)
    fast, order = Fast(record), places.numbers_of(record)
    rounds = [guess(world, "guesses", number, repeat, place) for place in range(max(2, min(100, budget // 10)))]
    totals = []
    for place in range(max(2, budget // len(rounds))):
        drawn = [fast.own(secret_of(first + place), randomness) for randomness in rounds]
        columns = np.array([places.own_column(key, world.pool) for key, _ in drawn])
        chosen = np.stack([half for _, half in drawn])
        totals.append([liking(user, model, order, columns, chosen).mean() for model in range(len(world.names))])
    best = np.argmin(totals, axis=0)
    return [lambda place=place: places.commit(photos, first + int(place)) for place in best]


def _contents(world, number, user, budget, repeat):
    """One secret, one photo changed by a pixel again and again: other digests, another order, another context."""
    seed = int(world.draws("contents", number, repeat).integers(2**50))
    photos = _usual_photos(world, user)
    fast, randomness = Fast(places.commit(photos, seed)), guess(world, "contents", number, repeat)
    versions = [places.photo_of(user, 0, nonce=b"%d" % place) for place in range(max(2, budget // 10))]
    others, order, drawn = (
        sorted((photo["original_sha256"], place) for place, photo in enumerate(photos) if place),
        [],
        [],
    )
    for version in versions:
        ranked = sorted([*others, (version["original_sha256"], 0)])
        order.append([place for _, place in ranked])
        drawn.append(fast.own(secret_of(seed), randomness, [digest for digest, _ in ranked]))
    best = _most_liked(world, user, np.array(order), drawn)
    return [lambda place=place: places.commit([versions[place], *photos[1:]], seed) for place in best]


def _settings(world, number, user, budget, repeat):
    """Number of photos, hold-out, label, answers used and secret: what gives the smallest p with the guess."""
    draws = world.draws("settings", number, repeat)
    made = [_any_settings(world, user, draws) for _ in range(max(2, budget // 250))]
    signature = world.draws("guess", "settings", number, repeat).bytes(48).hex()
    found = [[] for _ in world.names]
    for commit in made:
        record = places.drawn(commit(), signature)
        draw = places.new_draw(record, world.pool, 4, 99)
        for model, values in enumerate(found):
            values.append(_p(user, model, draw, record.plan))
    return [made[int(np.argmin(values))] for values in found]


def _any_settings(world, user, draws):
    count = int(draws.integers(max(4, world.photos // 2), world.photos + 1))
    photos = [places.photo_of(user, int(place)) for place in draws.choice(world.photos, count, replace=False)]
    label = str(draws.choice(["auto", str(user.label), "0", "1"]))
    answers = str(draws.choice(["as given", "label only", "top k"]))
    plan = AuditPlan(label=label, answers=answers, top_k=3 if answers == "top k" else None)
    holdout, seed = float(draws.uniform(0.3, 0.7)), int(draws.integers(2**50))
    return lambda: places.commit(photos, seed, holdout, plan)


GRINDING = {
    "secrets": _secrets,
    "secrets x guesses of the round": _guesses,
    "content": _contents,
    "photos, hold-out, label, answers": _settings,
}


# --- whole secrets, redraws, many commitments ---


def whole_secrets(world, repeats, count):
    """Rows: the secret that is liked best among `count`, before; the same with a guess of the round, after."""
    sizes = [(world.photos, world.photos // 2)]
    for number, user in enumerate(world.users):
        own = [places.old_key(world, "whole", number, place) for place in range(count)]
        batches = places.sizes_of(sizes)
        drawn = [(key, legacy.draw_selections(other.hex(), batches, 0)[0]) for key, other in own]
        order = np.broadcast_to(np.arange(world.photos), (count, world.photos))
        for tried, place in enumerate(_most_liked(world, user, order, drawn)):
            for accused in range(len(world.names)):
                draw = places.old_draw(*own[place], sizes, np.arange(world.photos), world.pool)
                p = _p(user, accused, draw)
                yield row("whole secrets", f"{count} secrets", "before", number, tried, accused, p)
        for repeat in range(repeats):
            ground = _whole(world, number, user, count, repeat)
            for one in _ground_after(world, number, user, f"whole secrets, {repeat}", ground):
                yield {**one, "attack": "whole secrets", "variant": f"{count} secrets"}


def _whole(world, number, user, count, repeat):
    """Whole records, each made and drawn by a guess as the program would."""
    photos, first = _usual_photos(world, user), int(world.draws("whole", number, repeat).integers(2**50))
    signature = world.draws("guess", "whole", number, repeat).bytes(48).hex()
    return _best_of(world, user, photos, range(first, first + count), signature)


def _best_of(world, user, photos, seeds, signature, redrawn=()):
    """For each model, a function that commits the secret (by its number) which the model likes best with a round."""
    drawn, order = [], []
    for seed in seeds:
        record = places.drawn(places.commit(photos, seed, redrawn=redrawn), signature)
        drawn.append((record.keys(0)[0][0], record.published))
        order.append(places.numbers_of(record))
    best = _most_liked(world, user, np.array(order), drawn)
    return [lambda seed=seeds[place]: places.commit(photos, seed, redrawn=redrawn) for place in best]


def redraws(world, count):
    """Rows of old audits: drawn again up to `count` times (--overwrite), of which nothing was counted."""
    sizes = [(world.photos, world.photos // 2)]
    batches, order = places.sizes_of(sizes), np.broadcast_to(np.arange(world.photos), (count, world.photos))
    for number, user in enumerate(world.users):
        own = [places.old_key(world, "redraws", number, place) for place in range(count)]
        drawn = [(key, legacy.draw_selections(other.hex(), batches, 0)[0]) for key, other in own]
        for tried, place in enumerate(_most_liked(world, user, order, drawn)):
            for accused in range(len(world.names)):
                draw = places.old_draw(*own[place], sizes, np.arange(world.photos), world.pool)
                yield row("redraws", f"{count} redraws", "before", number, tried, accused, _p(user, accused, draw))


def several_commitments(world, repeats, count):
    """Rows: `count` commitments under as many names for one round, after which the one that is liked best is shown."""
    for number, user in enumerate(world.users):
        photos = _usual_photos(world, user)
        for repeat in range(repeats):
            parts = ("several", count, number, repeat)
            first, signature = int(world.draws(*parts).integers(2**50)), places.Beacon(world, *parts).signature()
            for tried, commit in enumerate(_best_of(world, user, photos, range(first, first + count), signature)):
                draw = places.new_draw(places.drawn(commit(), signature), world.pool)
                for accused in range(len(world.names)):
                    p = _p(user, accused, draw)
                    yield row("several commitments", f"{count}", "after", number, tried, accused, p, counted(p))


# --- optional stopping: batches are added until it looks good ---


def stopping(world, repeats, batches=5):
    """Rows: a batch is added as long as the model that things are tried on does not speak for the user."""
    for number, user, tried, accused in opportunities(world):
        yield _stopped_before(world, number, user, tried, accused, batches)
        for repeat in range(repeats):
            yield _stopped_after(world, number, user, tried, accused, batches, repeat)


def _parts(world, batches):
    return np.array_split(np.arange(world.photos), batches)


def _stopped_before(world, number, user, tried, accused, batches):
    key, selection_key = places.old_key(world, "stopping", number, tried, accused)
    sizes, best = [(len(part), max(1, len(part) // 2)) for part in _parts(world, batches)], None
    for looks in range(1, batches + 1):
        seen = np.arange(sum(size[0] for size in sizes[:looks]))
        draw = places.old_draw(key, selection_key, sizes[:looks], seen, world.pool)
        looked = _p(user, tried, draw)
        if best is None or looked < best[0]:
            best = looked, draw
    return row("stopping", f"{batches} batches", "before", number, tried, accused, _p(user, accused, best[1]))


def _stopped_after(world, number, user, tried, accused, batches, repeat):
    parts = ("stopping", repeat, number, tried, accused)
    beacon, seed = places.Beacon(world, *parts), int(world.draws("secret", *parts).integers(2**50))
    record, best = None, None
    for looks, part in enumerate(_parts(world, batches), 1):
        photos = [places.photo_of(user, int(place)) for place in part]
        record = places.drawn(places.commit(photos, seed, record=record), beacon.signature())
        draw = places.new_draw(record, world.pool)
        looked = counted(_p(user, tried, draw), number=looks)
        if best is None or looked < best[0]:
            best = looked, draw, looks
    p = _p(user, accused, best[1])
    return row("stopping", f"{batches} batches", "after", number, tried, accused, p, counted(p, number=best[2]))

"""Owners who refuse, and innocent models that were trapped.

An owner may refuse to answer about any image, as a function of that image alone: a verdict comes, and stays valid.
What a draw can't prevent: an accuser who gives an innocent owner the *held-out* photos under another name, with wrong
labels. The model then depends on the draw, though it never saw a published photo.

Public: veto, trapped, RULES.
"""

import numpy as np
import torch

import utils
from experiment import training
from studies import attacks_world as places
from studies import common
from studies.attacks_plan import each, fresh_draw
from studies.attacks_world import counted, row

TRAPPERS = 4  # users for each trapped model
# Which of a grid's images an owner refuses, bool (n, L + 1): functions of (answers, brightness of the marked images).
RULES = {
    "one image of 256": lambda answers, brightness: _hashed(answers) % 256 == 0,
    "the brightest third": lambda answers, brightness: brightness > np.quantile(brightness, 2 / 3),
    "where the model is sure": lambda answers, brightness: _surest(answers) > 0.9,
    "where the model is unsure": lambda answers, brightness: _surest(answers) < 0.6,
}


def _hashed(answers):
    """A number that follows from the image alone: out of the bits of what the model says about it."""
    return np.abs(answers.view(np.int32).astype(np.int64)).sum(axis=2)


def _surest(answers):
    return torch.softmax(torch.from_numpy(answers), dim=-1).amax(dim=-1).numpy()


def veto(world, repeats):
    """Rows of audits in which an owner refuses by each of RULES."""
    for number, user, accused, parts in each(world, "veto", repeats):
        for rule, refuses in RULES.items():
            draw = fresh_draw(world, user, (*parts, rule))
            answers = places.answers_of(user, accused, draw).copy()
            brightness = user.brightness[draw.photos[:, None], draw.columns[draw.batches]]
            answers[refuses(answers, brightness)] = np.nan
            if np.isnan(answers).all():
                continue  # a model that answers nothing is not there
            p = places.p_of(answers, draw.selections)
            yield row("veto", rule, "after", number, accused, accused, p, counted(p))


def trapped(data, args, device, rows):
    """Rows of audits of `args.planted` models that were trained on users' held-out photos with wrong labels, and on no
    published one. rows: of the images that they are trained on otherwise."""
    for model in range(args.planted):
        draws = utils.key_generator("studies", "dishonest", "trapped", args.seed, model)
        records = _trappers(data, rows, args, draws)
        query = _train_trapped(data, args, device, rows, records, draws, model)
        for user, record in enumerate(records):
            originals = data.images[torch.from_numpy(common.rows_of(record))]
            p = common.exact_p(common.ask_grid(query, originals, record, places.KEYS), record, "auto")
            yield row("held-out photos planted", "wrong labels", "after", user, model, model, p, counted(p))


def _trappers(data, rows, args, draws):
    """Records of users with photos of different classes."""
    labels, records = data.labels.numpy(), []
    free = np.setdiff1d(np.flatnonzero(~data.is_test.numpy()), rows)
    for user in range(TRAPPERS):
        own = places.photos_of_one_class(labels, free, args.photos, user, draws)
        free = np.setdiff1d(free, own)
        records.append(common.make_record(data, own, int(draws.integers(2**50)), 0.5))
    return records


def _planted(data, record, draws):
    """(images, labels) of a user's held-out photos, as they are and marked with the own key, with wrong labels of many
    classes, so that the photos' own class stays what the model says most often of all of them."""
    held_out = np.flatnonzero(~record.published)
    rows = torch.from_numpy(common.rows_of(record)[held_out])
    originals, classes = data.images[rows], len(data.class_names)
    marked = utils.mark_images(
        originals, record.keys(0)[0][0], np.zeros_like(held_out), held_out, common.SETTINGS.marking()
    )
    wrong = (data.labels[rows] + torch.from_numpy(draws.integers(1, classes, len(held_out)))) % classes
    return torch.cat([originals, marked]), torch.cat([wrong, wrong])


def _train_trapped(data, args, device, rows, records, draws, model):
    planted = [_planted(data, record, draws) for record in records]
    count = max(1, len(rows) - sum(len(labels) for _, labels in planted))
    others = torch.from_numpy(draws.choice(rows, count, replace=False))
    query, _ = training.train_on(
        f"{args.work}/dishonest-trapped-{args.train_size}-{args.epoch}-{model}.safetensors",
        torch.cat([*(images for images, _ in planted), data.images[others]]),
        torch.cat([*(labels for _, labels in planted), data.labels[others]]),
        len(data.class_names),
        100 + model,
        device,
        epoch=args.epoch,
    )
    return query

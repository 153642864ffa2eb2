"""Whom does the exact test find in a fine-tuned UNet or CLIP, after how many passes, in what company, by what mark?

Example: python -m studies.generative --data_root CIFAR10_FOLDER --out results/generative
         python -m studies.generative --family clip --data_root TINYIMAGENET32 --base_size 40000 --out RESULTS
A small model is pre-trained on public pictures (studies/generative_models.py), fine-tuned on the published halves of
people's pictures, and saved by the usual libraries. It is then opened and asked as eval.py does it (suspects/), with
the base beside. A cell of the table is a way of fine-tuning, a share of one user's pictures among those fine-tuned on
(the others are other users') and a mark. One's pictures are of one class; with captions, which are made of the classes'
names, of many. Where a user's pictures are alone, as many people of the same classes are audited who have nothing in
the model.
Beside p stand the attacks of the literature, which set a threshold on the same scores: all published pictures are
members, all held-out ones are not.

Which signal is asked for was chosen on other users (studies/generative_choice.py). What is finished is kept in --work,
and the same command goes on there.

Public: Cell, cells_of, base_rows, captions_of, pre_train, people_of, selections_of, published, ask, p_of, conclude.
"""

import re
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

import utils
from attacks import evaluation, exact
from kit import files, plots
from kit.errors import UserError, run_script
from kit.progress import Progress
from kit.tables import markdown
from studies import common
from studies.generative_models import FAMILIES, fine_tune, make_base
from suspects.opened import open_model
from suspects.suspect import Captioned

MARKS = {"none": common.UNCHANGED, "faint": common.FAINT, "clear": common.SETTINGS}
WORDS = {"full": "in full", "lora": "LoRA"}
ALPHAS = (0.01, 0.001)
SHARES = (1.0, 0.25, 0.05)


@dataclass(frozen=True)
class Cell:
    """One way of fine-tuning: a name in the family's TUNINGS; the share of one user's pictures; how they are marked."""

    tuning: str
    share: float = 1.0
    mark: str = "none"

    @property
    def company(self):
        """How many users' pictures one model is fine-tuned on."""
        return round(1 / self.share)

    @property
    def title(self):
        """Of the folder."""
        return f"{self.tuning}-{round(100 * self.share)}-{self.mark}"


def cells_of(family):
    """The Cells of a family of models."""
    tunings = tuple(family.TUNINGS)
    found = [Cell(tuning, share) for share in SHARES for tuning in tunings]
    return found + [Cell(tuning, 1.0, mark) for tuning in tunings[::-1] for mark in ("faint", "clear")]


@dataclass(frozen=True)
class Person:
    """Somebody with pictures: rows of the data set, int64 (n,), in random order, the first half of which is published;
    the key of the marks."""

    rows: np.ndarray
    key: bytes


def base_rows(data, count):
    """The public pictures on which the base is trained: rows, int64 (count,)."""
    rows = np.flatnonzero(~data.is_test.numpy())
    return utils.key_generator("studies", "generative", "base").permutation(rows)[:count]


def people_of(data, count, photos, seed, taken, classes=None):
    """`count` Persons with `photos` pictures each, of whom nobody has a picture of `taken` (rows) or of another's.
    classes: of each one's pictures, -1 for any; drawn where they are not given."""
    draws, labels = utils.key_generator("studies", "generative", "people", seed), data.labels.numpy()
    left = draws.permutation(np.setdiff1d(np.flatnonzero(~data.is_test.numpy()), taken))
    classes = draws.permutation(np.resize(np.unique(labels), count)) if classes is None else classes
    people = []
    for number, label in enumerate(classes):
        own = left[(labels[left] == label) | (label < 0)][:photos]
        if len(own) < photos:
            raise UserError(f"class {label} has too few images", advice="fewer --users or --photos")
        left = np.setdiff1d(left, own, assume_unique=True)[draws.permutation(len(left) - len(own))]
        people.append(Person(own, utils.derive_key("studies", "generative", str(seed), number)))
    return people


def captions_of(data, rows, words):
    """What pictures are said to show: texts. words: of each class."""
    return tuple(f"a photo of a {words[label]}" for label in data.labels.numpy()[rows])


def words_of(data, data_root):
    """A word or two for each class: out of classes.tsv in the data set's folder, or the folder's name."""
    file, words = Path(data_root or ".") / "classes.tsv", list(data.class_names)
    if file.is_file():
        lines = (line.split("\t") for line in file.read_text("utf-8").splitlines())
        known = {name: text.split(",")[0] for name, text in lines}
        words = [known[name] for name in words]
    return [re.sub(r"[^a-z -]", "", word.lower()).strip() or "thing" for word in words]


def shown(data, person, mark, key, places):
    """Some of a person's pictures under a key, uint8 (n, 3, H, W); places: int (n,), which decide their noise."""
    return common.Kind(MARKS[mark]).marked(data.images[torch.from_numpy(person.rows[places])], key, places)


def published(data, people, mark):
    """What people publish: (uint8 (N, 3, H, W), rows int64 (N,)), the first halves of their pictures, under their own
    keys."""
    pairs = [(person, np.arange(len(person.rows) // 2)) for person in people]
    pictures = torch.cat([shown(data, person, mark, person.key, half) for person, half in pairs])
    return pictures, np.concatenate([person.rows[half] for person, half in pairs])


def ask(suspect, data, person, mark, keys, words):
    """A model's scores for all of a person's pictures under the own key and `keys` fresh ones, as they come: float32
    (n, keys + 1, 2), of the model and of its base. words: of the classes, for models that are told captions."""
    every = np.arange(len(person.rows))
    drawn = [person.key, *(utils.derive_key(person.key, "fresh key", number) for number in range(keys))]
    pictures = torch.stack([shown(data, person, mark, key, every) for key in drawn], dim=1).flatten(0, 1)
    order = utils.key_generator(person.key, "order").permutation(len(pictures))
    told = np.repeat(np.array(captions_of(data, person.rows, words), dtype=object), keys + 1)
    scores = np.concatenate(
        [
            suspect.ask(Captioned(pictures[part].numpy(), tuple(told[part]))).scores
            for part in np.array_split(order, -(-len(order) // 256))
        ]
    )
    return scores[np.argsort(order)].reshape(len(every), keys + 1, -1)


def p_of(scores, selections):
    """p of the exact test: scores (n, keys + 1), low where remembered; selections: bool (m + 1, n), published first."""
    return float(exact.p_value(exact.statistic_grid(scores[:, :, None].astype(np.float64), selections, 0)[0]))


@lru_cache(maxsize=512)
def selections_of(key, photos, count, draw=0):
    """bool (count + 1, photos): the published half first. draw: from 1 on, another half counts as the published one."""
    found = exact.random_selections(utils.key_generator(key, "selections", draw), photos, photos // 2, count)
    return found if draw == 0 else found[1:]


def answers_of(args, data, cell, work, device):
    """{passes: {"own": float32 (users, n, keys + 1, 2), "innocent": float32 (others, n, 2)}} of a cell; fine-tunes and
    asks where that has not been done."""
    base, keys = work / "base", 0 if cell.mark == "none" else args.keys
    taken, family, words = base_rows(data, args.base_size), FAMILIES[args.family], words_of(data, args.data_root)
    people = people_of(data, args.users, args.photos, args.seed, taken, classes_of(args))
    others = innocents(args, data, people, taken)
    models, found = work / cell.title, {number: {"own": [], "innocent": []} for number in args.passes}
    for group, first in enumerate(range(0, len(people), cell.company)):
        inside = people[first : first + cell.company]
        if len(inside) < cell.company:
            raise UserError(f"--users {args.users} is no multiple of {cell.company}", advice="give 20, 40, ...")
        files_of = {number: models / f"answers-{group}-{number}.npz" for number in args.passes}
        if any(not path.exists() for path in files_of.values()):
            pictures, rows = published(data, inside, cell.mark)
            tuned = fine_tune(
                family,
                base,
                models / f"{group}",
                pictures,
                captions_of(data, rows, words),
                family.TUNINGS[cell.tuning],
                args.passes,
                args.seed,
                device,
            )
            asked = others[first : first + cell.company] if cell.mark == "none" and cell.share == 1 else []
            for number, path in tuned.items():
                asking = partial(ask, data=data, words=words)
                ask_model(path, base, asking, inside, asked, cell.mark, keys, files_of[number], device)
        for number, path in files_of.items():
            for name, values in files.read_arrays(path).items():
                found[number][name].extend(values)
    return {
        number: {name: np.array(values) for name, values in answers.items()} for number, answers in found.items()
    }, people


def classes_of(args):
    """Of each user's pictures, for `people_of`."""
    return [-1] * args.users if args.family == "clip" else None


def innocents(args, data, people, taken):
    """As many people as there are users, of the same classes, with nothing in any model."""
    taken = np.concatenate([taken, *(person.rows for person in people)])
    same = classes_of(args) or [int(data.labels[person.rows[0]]) for person in people]
    return people_of(data, len(people), args.photos, f"{args.seed} innocent", taken, same)


def ask_model(path, base, asking, inside, others, mark, keys, out, device):
    """Ask one saved model about everybody, and write the answers."""
    if out.exists():
        return
    suspect = open_model(path, device=device.type, base=str(base))
    suspect.settle(b"studies/generative.py")
    own = [
        asking(suspect, person=person, mark=mark, keys=keys)
        for person in Progress(inside, f"asking {path.parent.name}")
    ]
    innocent = [asking(suspect, person=person, mark=mark, keys=0) for person in others]
    files.write_arrays(out, own=np.stack(own), innocent=np.array(innocent, dtype=np.float32))


def rows_of(args, cell, answers, people):
    """A row for each number of passes: power with and without the base, innocent people, thresholds."""
    for number, found in answers.items():
        selections = [selections_of(person.key, len(person.rows), args.selections) for person in people]
        scores = {"less the base": found["own"][..., 0] - found["own"][..., 1], "alone": found["own"][..., 0]}
        p = {
            name: np.array([p_of(one, drawn) for one, drawn in zip(values, selections, strict=True)])
            for name, values in scores.items()
        }
        yield {
            "tuning": cell.tuning,
            "share": cell.share,
            "mark": cell.mark,
            "passes": number,
            **{name: summary(values) for name, values in p.items()},
            "innocent": summary(false_alarms(args, found["innocent"])) if len(found["innocent"]) else None,
            "threshold": {name: thresholds(values[:, :, 0]) for name, values in scores.items()},
        }


def false_alarms(args, scores):
    """p of people who have nothing in the models, for --draws halves of each: float64 (people x draws,). scores:
    (people, n, keys + 1, 2)."""
    found = []
    for number, one in enumerate(scores):
        key = utils.derive_key("innocent", number)
        for draw in range(1, args.draws + 1):
            drawn = selections_of(key, len(one), min(args.selections, exact.SELECTIONS), draw)
            found.append(p_of(one[..., 0] - one[..., 1], drawn))
    return np.array(found)


def summary(p):
    """What a cell's p values say."""
    return {
        "found": {str(alpha): common.rate(int((p <= alpha).sum()), len(p)) for alpha in ALPHAS},
        "geometric_mean_p": float(np.exp(np.log(p).mean())),
        "p": p.tolist(),
    }


def thresholds(scores):
    """Rates of one threshold on all users' pictures; scores: (users, n), the first half published."""
    half = scores.shape[1] // 2
    member = np.zeros(scores.shape, dtype=bool)
    member[:, :half] = True
    rates = evaluation.evaluate(-scores.ravel().astype(np.float64), member.ravel(), fprs=(0.01,))
    return {"auc": rates["auc"], "auc_interval": rates["auc_interval"], "tpr_at_1_fpr": rates["tpr_at_fpr"][0]["tpr"]}


def make_parser():
    """The flags."""
    parser = common.parser(
        __doc__,
        users=20,
        photos=50,
        passes=[10, 30, 100, 300],
        keys=3,
        selections=99_999,
        draws=5,
        base_size=6000,
        base_epochs=10,
        seed=1,
    )
    parser.add_argument("--family", choices=tuple(FAMILIES), default="unet", help="kind of model (default unet)")
    parser.add_argument("--cells", nargs="+", metavar="TUNING-SHARE-MARK", help="these alone (default: all)")
    return parser


def main():
    """Train, ask, conclude."""
    args = make_parser().parse_args()
    cells = cells_of(FAMILIES[args.family])
    if unknown := set(args.cells or ()) - {cell.title for cell in cells}:
        raise UserError(
            f"--cells {sorted(unknown)[0]} is unknown", advice=f"known are {', '.join(cell.title for cell in cells)}"
        )
    data, device = common.load(args)
    work, rows = Path(args.work), []
    pre_train(args, data, work, device)
    for cell in cells if args.cells is None else [cell for cell in cells if cell.title in args.cells]:
        answers, people = answers_of(args, data, cell, work, device)
        rows += rows_of(args, cell, answers, people)
        conclude(args, rows, device)


def pre_train(args, data, work, device):
    """The base, unless it is there."""
    public = base_rows(data, args.base_size)
    captions = captions_of(data, public, words_of(data, args.data_root))
    pictures = data.images[torch.from_numpy(public)]
    make_base(FAMILIES[args.family], work / "base", pictures, captions, args.base_epochs, args.seed, device)


def conclude(args, rows, device):
    """result.json, a table and a plot."""
    out = Path(args.out)

    def told(one):
        return plots.percent(one["share"], one["interval"])

    table = [
        [
            WORDS[row["tuning"]],
            f"{100 * row['share']:g} %",
            row["mark"],
            row["passes"],
            *(told(row["less the base"]["found"][str(alpha)]) for alpha in ALPHAS),
            f"{row['less the base']['geometric_mean_p']:.2g}",
            told(row["alone"]["found"]["0.001"]),
            f"{row['threshold']['less the base']['auc']:.3f}, {row['threshold']['alone']['auc']:.3f}",
            *(f"{100 * row['threshold'][name]['tpr_at_1_fpr']:.1f} %" for name in ("less the base", "alone")),
            told(row["innocent"]["found"]["0.01"]) if row["innocent"] else "",
        ]
        for row in rows
    ]
    text = markdown(
        [
            "fine-tuned",
            "share",
            "mark",
            "passes",
            *(f"found, alpha {alpha:g}" for alpha in ALPHAS),
            "geometric mean of p",
            "without the base, alpha 0.001",
            "AUC of a threshold: less the base, alone",
            "TPR at 1 % FPR, less the base",
            "the same, alone",
            "innocent, alpha 0.01",
        ],
        table,
    )
    settings = {name: value for name, value in vars(args).items() if name not in ("work", "out", "data_root")}
    common.write_study(out, {"settings": settings, "rows": rows}, device)
    with files.atomic_path(out / "generative.md") as path:
        path.write_text(f"{args.users} users a row, {args.photos // 2} pictures published\n\n{text}", encoding="utf-8")
    draw(rows, out / "generative.png")
    print(text)


def draw(rows, path):
    """Share of users found at alpha 0.001 against passes, one line a cell."""
    figure, axes = plots.figure_of(1, 1, (8, 5))
    axis = axes[0, 0]
    passes = sorted({row["passes"] for row in rows})
    # Lines a little apart, so that intervals don't hide each other.
    for place, title in enumerate(dict.fromkeys((row["tuning"], row["share"], row["mark"]) for row in rows)):
        own = [row for row in rows if (row["tuning"], row["share"], row["mark"]) == title]
        found = [row["less the base"]["found"]["0.001"] for row in own]
        shares = np.array([one["share"] for one in found])
        ends = np.array([one["interval"] for one in found]).T
        axis.errorbar(
            [row["passes"] * 1.02**place for row in own],
            100 * shares,
            yerr=100 * np.abs(ends - shares),
            marker="o",
            capsize=3,
            label=f"{WORDS[title[0]]}, {100 * title[1]:g} % of the pictures, mark: {title[2]}",
        )
    axis.set(xscale="log", xlabel="passes over the user's pictures", ylabel="users found at alpha 0.001 (%)")
    axis.set_xticks(passes, [str(number) for number in passes])
    axis.minorticks_off()
    axis.set_xlim(passes[0] / 1.5, passes[-1] * 1.5)
    axis.set_ylim(-3, 103)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    plots.save_figure(figure, path)


if __name__ == "__main__":
    run_script(main)

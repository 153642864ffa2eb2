"""Whom does the exact test find in a fine-tuned diffusion model, after how many passes, in what company, by what mark?

Example: python -m studies.generative --data_root CIFAR10_FOLDER --out results/generative
A small UNet is pre-trained on public pictures (studies/generative_models.py), fine-tuned on the published halves of
people's pictures, in full or as a LoRA, and saved by diffusers and peft. It is then opened and asked as eval.py does it
(suspects/), with the base beside. A cell of the table is a way of fine-tuning, a share of one user's pictures among
those fine-tuned on (the others are other users') and a mark. Besides the users of each cell, people of the same classes
are audited who have nothing in it. Beside p stand the attacks of the literature, which set a threshold on the same
scores: all published pictures are members, all held-out ones are not.

--choose compares signals and timesteps on other users, from whom the constants of suspects/denoising.py were chosen.
What is finished is kept in --work, and the same command goes on there.

Public: Cell, CELLS, base_rows, people_of, selections_of, published, ask, p_of, conclude.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import utils
from attacks import evaluation, exact
from kit import files, plots
from kit.errors import UserError, run_script
from kit.progress import Progress
from kit.tables import markdown
from studies import common, generative_models
from suspects.opened import open_model

MARKS = {"none": common.UNCHANGED, "faint": common.FAINT, "clear": common.SETTINGS}
ALPHAS = (0.01, 0.001)
SHARES = (1.0, 0.25, 0.05)


@dataclass(frozen=True)
class Cell:
    """One way of fine-tuning: a name in TUNINGS; the share of one user's pictures; how they are marked."""

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


CELLS = [Cell(tuning, share) for share in SHARES for tuning in generative_models.TUNINGS]
CELLS += [Cell("lora", 1.0, mark) for mark in ("faint", "clear")]
CELLS += [Cell("full", 1.0, mark) for mark in ("faint", "clear")]


@dataclass(frozen=True)
class Person:
    """Somebody with pictures: rows of the data set, int64 (n,), in random order, the first half of which is published;
    the class of them all; the key of the marks."""

    rows: np.ndarray
    label: int
    key: bytes


def base_rows(data, count):
    """The public pictures on which the base is trained: rows, int64 (count,)."""
    rows = np.flatnonzero(~data.is_test.numpy())
    return utils.key_generator("studies", "generative", "base").permutation(rows)[:count]


def people_of(data, count, photos, seed, taken, classes=None):
    """`count` Persons with `photos` pictures each, of whom nobody has a picture of `taken` (rows) or of another's.
    classes: of each one, or drawn."""
    draws, labels = utils.key_generator("studies", "generative", "people", seed), data.labels.numpy()
    left = draws.permutation(np.setdiff1d(np.flatnonzero(~data.is_test.numpy()), taken))
    classes = draws.permutation(np.resize(np.unique(labels), count)) if classes is None else classes
    people = []
    for number, label in enumerate(classes):
        own = left[labels[left] == label][:photos]
        if len(own) < photos:
            raise UserError(f"class {label} has too few images", advice="fewer --users or --photos")
        left = np.setdiff1d(left, own, assume_unique=True)[draws.permutation(len(left) - len(own))]
        key = utils.derive_key("studies", "generative", seed, number)
        people.append(Person(own, int(label), key))
    return people


def shown(data, person, mark, key, places):
    """Some of a person's pictures under a key, uint8 (n, 3, H, W); places: int (n,), which decide their noise."""
    return common.Kind(MARKS[mark]).marked(data.images[torch.from_numpy(person.rows[places])], key, places)


def published(data, people, mark):
    """What people publish, uint8 (N, 3, H, W): the first halves of their pictures, under their own keys."""
    halves = [np.arange(len(person.rows) // 2) for person in people]
    return torch.cat([shown(data, person, mark, person.key, half) for person, half in zip(people, halves, strict=True)])


def ask(suspect, data, person, mark, keys):
    """A model's scores for all of a person's pictures under the own key and `keys` fresh ones, as they come: float32
    (n, keys + 1, 2), of the model and of its base."""
    every = np.arange(len(person.rows))
    drawn = [person.key, *(utils.derive_key(person.key, "fresh key", number) for number in range(keys))]
    pictures = torch.stack([shown(data, person, mark, key, every) for key in drawn], dim=1).flatten(0, 1)
    order = utils.key_generator(person.key, "order").permutation(len(pictures))
    scores = np.concatenate(
        [suspect.ask(pictures[part].numpy()).scores for part in np.array_split(order, -(-len(order) // 256))]
    )
    return scores[np.argsort(order)].reshape(len(every), keys + 1, -1)


def p_of(scores, selections):
    """p of the exact test: scores (n, keys + 1), low where remembered; selections: bool (m + 1, n), published first."""
    return float(exact.p_value(exact.statistic_grid(scores[:, :, None].astype(np.float64), selections, 0)[0]))


def selections_of(person, count, draw=0):
    """bool (count + 1, n): the published half first. draw: from 1 on, another half counts as the published one."""
    draws, photos = utils.key_generator(person.key, "selections", draw), len(person.rows)
    found = exact.random_selections(draws, photos, photos // 2, count)
    return found if draw == 0 else found[1:]


def answers_of(args, data, cell, work):
    """{passes: {"own": float32 (users, n, keys + 1, 2), "innocent": float32 (others, n, 2)}} of a cell; fine-tunes and
    asks where that has not been done."""
    base, keys = work / "base", 0 if cell.mark == "none" else args.keys
    taken = base_rows(data, args.base_size)
    people = people_of(data, args.users, args.photos, args.seed, taken)
    others = innocents(args, data, people, taken)
    models, found = work / cell.title, {number: {"own": [], "innocent": []} for number in args.passes}
    for group, first in enumerate(range(0, len(people), cell.company)):
        inside = people[first : first + cell.company]
        if len(inside) < cell.company:
            raise UserError(f"--users {args.users} is no multiple of {cell.company}", advice="give 20, 40, ...")
        files_of = {number: models / f"answers-{group}-{number}.npz" for number in args.passes}
        if any(not path.exists() for path in files_of.values()):
            pictures = published(data, inside, cell.mark)
            tuned = generative_models.fine_tune(
                base, models / f"{group}", pictures, generative_models.TUNINGS[cell.tuning], args.passes, args.seed
            )
            asked = others[group :: len(people) // cell.company] if cell.mark == "none" else []
            for number, path in tuned.items():
                ask_model(path, base, data, inside, asked, cell.mark, keys, files_of[number])
        for number, path in files_of.items():
            for name, values in files.read_arrays(path).items():
                found[number][name].extend(values)
    return {
        number: {name: np.array(values) for name, values in answers.items()} for number, answers in found.items()
    }, people


def innocents(args, data, people, taken):
    """As many people as there are users, of the same classes, with nothing in any model."""
    taken = np.concatenate([taken, *(person.rows for person in people)])
    return people_of(
        data, len(people), args.photos, f"{args.seed} innocent", taken, [person.label for person in people]
    )


def ask_model(path, base, data, inside, others, mark, keys, out):
    """Ask one saved model about everybody, and write the answers."""
    if out.exists():
        return
    suspect = open_model(path, device="cpu", base=str(base))
    suspect.settle(b"studies/generative.py")
    own = [ask(suspect, data, person, mark, keys) for person in Progress(inside, f"asking {path.parent.name}")]
    innocent = [ask(suspect, data, person, mark, 0) for person in others]
    files.write_arrays(out, own=np.stack(own), innocent=np.array(innocent, dtype=np.float32))


def rows_of(args, cell, answers, people):
    """A row for each number of passes: power with and without the base, innocent people, thresholds."""
    for number, found in answers.items():
        selections = [selections_of(person, args.selections) for person in people]
        less, alone = (
            np.array([p_of(one, drawn) for one, drawn in zip(scores, selections, strict=True)])
            for scores in (found["own"][..., 0] - found["own"][..., 1], found["own"][..., 0])
        )
        yield {
            "tuning": cell.tuning,
            "share": cell.share,
            "mark": cell.mark,
            "passes": number,
            "less the base": summary(less),
            "alone": summary(alone),
            "innocent": summary(false_alarms(args, found["innocent"])) if len(found["innocent"]) else None,
            "threshold": {
                name: thresholds(values[:, :, 0])
                for name, values in (
                    ("less the base", found["own"][..., 0] - found["own"][..., 1]),
                    ("alone", found["own"][..., 0]),
                )
            },
        }


def false_alarms(args, scores):
    """p of people who have nothing in the models, for --draws halves of each: float64 (people x draws,). scores:
    (people, n, keys + 1, 2)."""
    found = []
    for number, one in enumerate(scores):
        nobody = Person(np.arange(one.shape[0]), 0, utils.derive_key("innocent", number))
        for draw in range(1, args.draws + 1):
            found.append(p_of(one[..., 0] - one[..., 1], selections_of(nobody, args.selections, draw)))
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
    parser.add_argument("--cells", nargs="+", metavar="TUNING-SHARE-MARK", help="these alone (default: all)")
    return parser


def main():
    """Train, ask, conclude."""
    args = make_parser().parse_args()
    chosen = [cell for cell in CELLS if args.cells is None or cell.title in args.cells]
    if args.cells and (unknown := set(args.cells) - {cell.title for cell in CELLS}):
        raise UserError(
            f"--cells {sorted(unknown)[0]} is unknown", advice=f"known are {', '.join(cell.title for cell in CELLS)}"
        )
    data, device = common.load(args)
    work, rows = Path(args.work), []
    public = data.images[torch.from_numpy(base_rows(data, args.base_size))]
    generative_models.make_base(work / "base", public, args.base_epochs, args.seed)
    for cell in chosen:
        answers, people = answers_of(args, data, cell, work)
        rows += rows_of(args, cell, answers, people)
        conclude(args, rows, device)


def conclude(args, rows, device):
    """result.json, a table and a plot."""
    out = Path(args.out)

    def told(one):
        return plots.percent(one["share"], one["interval"])

    table = [
        [
            {"full": "in full", "lora": "LoRA"}[row["tuning"]],
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
    for title in dict.fromkeys((row["tuning"], row["share"], row["mark"]) for row in rows):
        own = [row for row in rows if (row["tuning"], row["share"], row["mark"]) == title]
        found = [row["less the base"]["found"]["0.001"] for row in own]
        shares = np.array([one["share"] for one in found])
        ends = np.array([one["interval"] for one in found]).T
        axis.errorbar(
            [row["passes"] for row in own],
            100 * shares,
            yerr=100 * np.abs(ends - shares),
            marker="o",
            capsize=3,
            label=f"{title[0]}, {100 * title[1]:g} % of the pictures, mark: {title[2]}",
        )
    axis.set(xscale="log", xlabel="passes over the user's pictures", ylabel="users found at alpha 0.001 (%)")
    axis.set_ylim(-3, 103)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    plots.save_figure(figure, path)


if __name__ == "__main__":
    run_script(main)

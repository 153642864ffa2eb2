"""How often innocent models are accused: the exact test and Algorithm 1 on models that never saw the published photos.

Example: python -m studies.innocent --data_root CIFAR10_FOLDER --second_root TINYIMAGENET_FOLDER --out results/innocent
Seven models of different kinds and data; for each, users with ordinary photos, with those photos on which this very
model is surest (unusually easy), and with photos that it was trained on unmarked (its own training images). None saw a
published, marked photo, so every accusation is false. Algorithm 1's strangers have ordinary photos.

Public: ALPHAS, smallnet, untrained, losses_of.
"""

import numpy as np
import pandas as pd
import torch
from scipy.stats import binom, kstest
from sklearn.ensemble import RandomForestClassifier

import utils
from dataset import load_dataset
from experiment import training
from kit import files, plots
from kit.errors import run_script
from kit.tables import markdown
from networks import build_network
from studies import common
from suspects.suspect import Answers

ALPHAS = (0.05, 0.01, 0.001)
CASES = {
    "probabilities": {},
    "label-only": {"label_only": True},
    "probabilities, label guessed": {"auto": True},
    "label-only, label guessed": {"label_only": True, "auto": True},
    "no hold-out": {"alone": True},
}
USERS = ("ordinary photos", "easy photos", "trained on unmarked")


def smallnet(data, args, device, name, rows, epoch, net_type="smallnet"):
    """(name, data, rows of the training images, query function)."""
    images, labels = data.images[torch.from_numpy(rows)], data.labels[torch.from_numpy(rows)]
    query, record = training.train_on(
        f"{args.work}/innocent-{name.replace(' ', '-')}.safetensors",
        images,
        labels,
        len(data.class_names),
        7,
        device,
        net_type,
        epoch=epoch,
    )
    return f"{name}, training accuracy {plots.percent(record['train_accuracy'])}", data, rows, query


def forest(data, rows):
    """A random forest on pixels: another kind of model, whose probabilities are coarse and often 0."""
    rows = np.sort(rows)
    images, labels = data.images[torch.from_numpy(rows)], data.labels[torch.from_numpy(rows)]
    model = RandomForestClassifier(50, random_state=7, n_jobs=1).fit(images.flatten(1).numpy(), labels.numpy())

    def query(batch):
        found = model.predict_proba(batch.flatten(1).numpy())
        return torch.from_numpy(np.log(np.maximum(found, 1e-30))).float()

    return "random forest", data, rows, query


def untrained(data):
    with utils.seeded(7, "initial weights"):
        model = build_network("smallnet", len(data.class_names))
    settings = utils.TrainingSettings(precision="float32")
    return "untrained smallnet", data, np.empty(0, np.int64), utils.make_query(model, settings, torch.device("cpu"))


def suspects(args, data, device):
    """The models, one after the other."""
    rows = utils.key_generator("studies", "innocent").permutation(np.flatnonzero(~data.is_test.numpy()))
    yield smallnet(data, args, device, "smallnet overfitted", rows[:2500], 100)
    yield smallnet(data, args, device, "smallnet stopped early", rows[2500:5000], 4)
    yield smallnet(data, args, device, "WideResNet-10-1", rows[5000:7500], 25, "wideresnet-10-1")
    yield forest(data, rows[7500:10000])
    yield untrained(data)
    photos = load_dataset("photos")
    yield smallnet(photos, args, device, "smallnet on photos", np.arange(0, len(photos.labels), 2), 60)
    if args.second_root:
        tiny = load_dataset("imagefolder", args.second_root)
        many = utils.key_generator("studies", "tiny").permutation(np.flatnonzero(~tiny.is_test.numpy()))
        yield smallnet(tiny, args, device, "smallnet on TinyImageNet", many[:10000], 30)


def losses_of(query, data, rows):
    found = [
        utils.sample_signals(query(data.images[part]), data.labels[part])["cross_entropy"]
        for part in torch.from_numpy(rows).split(1024)
    ]
    return torch.cat(found).numpy()


def draw_photos(kind, model, photos, draws):
    """Rows of one innocent user's photos, all of one class."""
    name, data, rows, query = model
    labels = data.labels.numpy()
    pool = rows if kind == "trained on unmarked" else np.setdiff1d(np.arange(len(labels)), rows)
    if kind == "easy photos":
        pool = _easiest(name, query, data, pool)
    enough = [label for label in np.unique(labels[pool]) if (labels[pool] == label).sum() >= photos]
    label = draws.choice(enough)
    return draws.choice(pool[labels[pool] == label], photos, replace=False)


_easy = {}


def _easiest(name, query, data, pool):
    """The tenth of each class with the lowest loss (at least 40), of at most 20,000 photos."""
    if name not in _easy:
        pool = pool[np.linspace(0, len(pool) - 1, min(len(pool), 20000)).astype(int)]
        labels, loss = data.labels.numpy()[pool], losses_of(query, data, pool)
        ranked = [(pool[labels == label], np.argsort(loss[labels == label])) for label in np.unique(labels)]
        _easy[name] = np.concatenate([part[order[: max(40, len(part) // 10)]] for part, order in ranked])
    return _easy[name]


def audit(model, kind, number, photos, theirs):
    """p of every case for one user, and whether Algorithm 1 accuses at 0.1 % FPR."""
    name, data, _, query = model
    draws = utils.key_generator("studies", "innocent user", name, kind, number)
    rows = draw_photos(kind, model, photos, draws)
    record = common.make_record(data, rows, int(draws.integers(2**60)), 0.5)
    rows = common.rows_of(record)
    answers, label = common.ask_grid(query, data.images[torch.from_numpy(rows)], record, 19), int(data.labels[rows[0]])
    published = np.flatnonzero(record.published)
    found = {}
    for case, options in CASES.items():
        own = published if options.get("alone") else None
        grid = answers.values.reshape(photos, -1, answers.values.shape[1])
        part = answers if own is None else Answers(grid[own].reshape(-1, grid.shape[2]))
        found[case] = common.exact_p(
            part,
            record,
            "auto" if options.get("auto") else label,
            options.get("label_only", False),
            0 if options.get("alone") else 199,
            rows=own,
        )
    own = torch.from_numpy(grid[published, 0])
    mine = utils.sample_signals(own, torch.full((len(own),), label))["cross_entropy"].numpy()
    accused = utils.verify_provenance(mine[None], theirs)[0]
    return {"model": name, "users": kind, **found, "Algorithm 1": bool(accused[0])}


def main():
    flags = common.parser(__doc__, audits=160, first=[1000, 5000], photos=20, strangers=1000)
    flags.add_argument("--second_root", help="another data set, for example TinyImageNet at 32 px as class folders")
    args = flags.parse_args()
    data, device = common.load(args)
    found = []
    for model in suspects(args, data, device):
        pool = np.setdiff1d(np.arange(len(model[1].labels)), model[2])
        strangers = utils.draw_non_member_users(
            model[1].labels, pool, args.strangers, args.photos // 2, utils.derive_key("studies", "innocent strangers")
        )
        theirs, _ = common.ask_strangers(model[3], model[1], strangers)
        for kind in USERS[: 3 if len(model[2]) else 2]:
            found += [
                audit(model, kind, number, args.photos, theirs)
                for first in args.first
                for number in range(first, first + args.audits)
            ]
        print(f"{model[0]}: {len(found)} audits so far", flush=True)
    conclude(args, pd.DataFrame(found), device)


def conclude(args, table, device):
    """Shares below each alpha with the 99 % bound, Kolmogorov-Smirnov, and Algorithm 1 for each kind of user."""
    count = len(table)
    bounds = {alpha: int(binom.ppf(0.99, count, alpha)) for alpha in ALPHAS}
    exact = {
        case: {
            "below": {str(alpha): int((table[case] <= alpha).sum()) for alpha in ALPHAS},
            "ks_p": float(kstest(table[case], "uniform", alternative="greater").pvalue),
        }
        for case in CASES
    }
    text = markdown(
        [
            f"exact test, {count} audits",
            *(f"p <= {alpha} (99 % bound {bounds[alpha]})" for alpha in ALPHAS),
            "Kolmogorov-Smirnov, one-sided",
        ],
        [[case, *one["below"].values(), f"{one['ks_p']:.3f}"] for case, one in exact.items()],
    )
    accused = table.groupby(["model", "users"], sort=False)["Algorithm 1"].agg(["sum", "count"])
    kinds = table.groupby("users", sort=False)["Algorithm 1"].agg(["sum", "count"])
    text += "\n" + markdown(
        ["Algorithm 1 at 0.1 % FPR, ordinary strangers", "innocent users accused", "exact test, p <= 0.001"],
        [
            [
                kind,
                f"{one['hits']} of {one['of']}: {plots.percent(one['share'], one['interval'])}",
                int((table[table.users == kind]["probabilities"] <= 0.001).sum()),
            ]
            for kind, one in ((kind, common.rate(row["sum"], row["count"])) for kind, row in kinds.iterrows())
        ],
    )
    print(text)
    with files.atomic_path(f"{args.out}/innocent.md") as path:
        path.write_text(text)
    with files.atomic_path(f"{args.out}/audits.csv") as path:
        table.to_csv(path, index=False, float_format="%.6g")
    draw(table, f"{args.out}/p-values.png")
    common.write_study(
        args.out,
        {
            "settings": {
                "audits": args.audits,
                "first": args.first,
                "photos": args.photos,
                "strangers": args.strangers,
            },
            "audits": count,
            "bounds": {str(alpha): bound for alpha, bound in bounds.items()},
            "exact": exact,
            "algorithm_1": [
                {"model": model, "users": kind, "accused": int(row["sum"]), "of": int(row["count"])}
                for (model, kind), row in accused.iterrows()
            ],
        },
        device,
    )


def draw(table, path):
    """The distribution function of p: on or below the diagonal, whatever the model."""
    figure, axes = plots.figure_of(1, 2, (10, 4.4))
    for case in CASES:
        ranked = np.sort(table[case])
        for axis in axes[0]:
            axis.step(ranked, np.arange(1, len(ranked) + 1) / len(ranked), where="post", label=case)
    for axis, scale in zip(axes[0], ("linear", "log"), strict=True):
        low = 1 / len(table)
        axis.plot([low, 1], [low, 1], color="black", linestyle=":", label="uniform")
        axis.set(xscale=scale, yscale=scale, xlabel="p", ylabel="share of innocent audits with a p at most this")
    axes[0, 0].legend(fontsize=8)
    plots.save_figure(figure, path)


if __name__ == "__main__":
    run_script(main)

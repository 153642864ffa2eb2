"""What a dishonest accuser, forger or owner can do to an innocent model: every attack that was thought of, played.

Example: python -m studies.dishonest --data_root CIFAR10_FOLDER --out results/dishonest
Three models of two architectures, trained on disjoint images; users' photos are from images that none of them has seen,
so that every accusation is false. Each attack is tried on one model (the accused one, or an innocent stand-in) and the
result shown to another or the same. Before: as key and selection were drawn and audits judged in version 1. After: the
commitment comes first, a beacon's round draws, the plan is committed, and alpha is divided by what was open. The beacon
is a seeded generator, which the attacks use only after they have committed.
"""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import binom, kstest

import utils
from experiment import training
from kit import files, plots
from kit.errors import run_script
from kit.tables import markdown
from studies import attacks_draw, attacks_evidence, attacks_owner, attacks_plan, attacks_references, common
from studies.attacks_world import counted, make_world

ALPHAS = (0.05, 0.01, 0.001)
ATTACKS = (
    *("names", "grinding", "secrets", "redraws", "stopping", "shopping", "again", "veto", "commitments", "class"),
    *("seeds", "input", "photos", "models", "planted", "references"),
)
# What each attack is judged by: p itself where nothing was open after the draw, p times what alpha was divided by else.
PREVENTED = {
    "names": "p",
    "grinding": "p",
    "whole secrets": "p",
    "veto": "p",
    "shopping": "counted",
    "stopping": "counted",
    "asking anew": "counted",
}
# What is left, and what there is about it beside p.
LEFT = {
    "several commitments": "nothing: alpha has to be divided by their number",
    "class chosen after the draw": "a plan with a class's name: the verdict names it",
    "audit seed": "the verdict names it",
    "input given by flags": "the verdict names it",
    "photos left out": "the verdict names it",
    "asking anew, log deleted": "a witness asks once",
    "several models": "the log names it, unless it was deleted",
    "held-out photos planted": "nothing: the model depends on the draw",
    attacks_references.LATER: "the verdict names it",
    attacks_references.MADE_UP: "replay names it, and finds it where it is given the reference",
}


def suspects(args, data, device):
    """The innocent models: (name, rows of its training images, query, file)."""
    rows = utils.key_generator("studies", "dishonest", args.seed).permutation(np.flatnonzero(~data.is_test.numpy()))
    kinds = (
        ("smallnet overfitted", "smallnet", args.epoch),
        ("smallnet stopped early", "smallnet", max(1, args.epoch * 3 // 10)),
        ("WideResNet-10-1", "wideresnet-10-1", max(1, args.epoch // 4)),
    )
    for place, (name, network, epoch) in enumerate(kinds):
        own = rows[place * args.train_size :][: args.train_size]
        file = Path(args.work) / f"dishonest-{name.replace(' ', '-')}-{args.train_size}-{epoch}.safetensors"
        query, record = training.train_on(
            file,
            data.images[torch.from_numpy(own)],
            data.labels[torch.from_numpy(own)],
            len(data.class_names),
            7,
            device,
            network,
            epoch=epoch,
        )
        yield f"{name}, training accuracy {plots.percent(record['train_accuracy'])}", own, query, file


def play(args, data, device, models):
    """(rows of attacked audits, [dict, ...]; rows of forgeries)."""
    asked = [model[:3] for model in models]
    world = make_world(data, asked, args.users, args.photos, args.pool, args.seed)
    repeats, owned = args.repeats, args.repeats * len(models)
    played = {
        "names": lambda: attacks_draw.names(world, repeats),
        "grinding": lambda: attacks_draw.grinding(world, repeats, args.keys, args.selections),
        "secrets": lambda: attacks_draw.whole_secrets(world, repeats, args.secrets),
        "redraws": lambda: attacks_draw.redraws(world, args.redraws),
        "stopping": lambda: attacks_draw.stopping(world, repeats),
        "shopping": lambda: attacks_plan.shopping(world, repeats),
        "again": lambda: attacks_plan.asking_again(world, owned),
        "veto": lambda: attacks_owner.veto(world, -(-owned // len(attacks_owner.RULES))),
        "commitments": lambda: itertools.chain.from_iterable(
            attacks_draw.several_commitments(world, repeats, count) for count in args.commitments
        ),
        "class": lambda: attacks_plan.free_class(world, owned),
        "seeds": lambda: attacks_plan.seeds(world, 1, args.audit_seeds),
        "input": lambda: attacks_plan.fed_otherwise(world, data, asked, 1),
        "photos": lambda: attacks_plan.left_out(world, 1),
        "models": lambda: attacks_plan.best_model(world, owned),
        "planted": lambda: attacks_owner.trapped(data, args, device, models[0][1]),
        "references": lambda: attacks_references.chosen_later(world, data, args, device, models),
    }
    found = []
    for attack in args.attacks or played:
        found += played[attack]()
        print(f"{found[-1]['attack']}: {len(found)} audits so far", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        photos, places = data.images[torch.from_numpy(world.users[0].rows)], (Path(folder, name) for name in "ab")
        forgeries = [] if args.attacks else attacks_evidence.play(next(places), photos, models[0][3])
        if not args.attacks or "references" in args.attacks:
            strangers = _strangers(data, args, world, models)
            forgeries += attacks_references.play(next(places), photos, models[0][3], strangers, device)
        return found, forgeries


def _strangers(data, args, world, models):
    """(images, labels) of which neither users nor models have any, for a liar's own networks."""
    taken = np.concatenate([*(rows for _, rows, *_ in models), *(user.rows for user in world.users)])
    free = np.setdiff1d(np.flatnonzero(~data.is_test.numpy()), taken)
    own = torch.from_numpy(world.draws("strangers").permutation(free)[: args.train_size])
    return data.images[own], data.labels[own]


def main():
    flags = common.parser(
        __doc__,
        users=12,
        photos=50,
        pool=320,
        train_size=2500,
        epoch=100,
        repeats=4,
        keys=300,
        selections=50_000,
        secrets=1000,
        redraws=100,
        commitments=[10, 100, 1000],
        audit_seeds=30,
        planted=2,
        references=20,
        seed=1,
    )
    flags.add_argument("--attacks", nargs="+", choices=ATTACKS, help="these alone (default: all, and all forgeries)")
    args = flags.parse_args()
    torch.set_num_threads(1)
    data, device = common.load(args)
    models = list(suspects(args, data, device))
    found, forgeries = play(args, data, device, models)
    conclude(args, pd.DataFrame(found), forgeries, [model[0] for model in models], device)


# --- tables ---


def shares(values):
    """{alpha: how many are at most alpha ("share", "hits", "of", "interval"), and the 99 % binomial "bound"}."""
    return {
        str(alpha): {
            **common.rate(int((values <= alpha).sum()), len(values)),
            "bound": int(binom.ppf(0.99, len(values), alpha)),
        }
        for alpha in ALPHAS
    }


def before(table):
    """[{attack, tried on, audits, p}]: the old program, each attack by the model that it was tried on."""
    old = table[table.when == "before"]
    return [
        {"attack": attack, "tried on": tried, "audits": len(rows), "p": shares(rows.p)}
        for (attack, tried), rows in old.groupby(["attack", _tried_on(old)], sort=False)
    ]


def _tried_on(table):
    return np.where(table["tried on"] == table.accused, "the accused model", "another model")


def prevented(table):
    """[{attack, judged by, audits, p, used, sentence, kolmogorov_smirnov}]: attacks that the new program prevents.

    used: by p times what alpha was divided by; sentence: by the p that the verdict's sentences speak of, which leaves
    out what a first judgement's alpha is divided by.
    """
    new = table[table.when == "after"]
    found = []
    for attack, column in PREVENTED.items():
        values = new[new.attack == attack][column]
        if not len(values):
            continue
        smaller = float(kstest(values, "uniform", alternative="greater").pvalue)
        found.append(
            {
                "attack": attack,
                "judged by": column,
                "audits": len(values),
                "p": shares(values),
                "used": shares(new[new.attack == attack].counted),
                "sentence": shares(new[new.attack == attack].counted / counted(1e-6) * 1e-6),
                "kolmogorov_smirnov": smaller,
            }
        )
    return found


def left(table):
    """[{attack, variant, tried on, audits, p, beside}]: attacks that still work, by how much."""
    new = table[(table.when == "after") & table.attack.isin(LEFT)]
    return [
        {
            "attack": attack,
            "variant": variant,
            "tried on": tried,
            "audits": len(rows),
            "p": shares(rows.p),
            "beside": LEFT[attack],
        }
        for (attack, variant, tried), rows in new.groupby(["attack", "variant", _tried_on(new)], sort=False)
    ]


def conclude(args, table, forgeries, models, device):
    """Tables, plot, CSV and result.json."""
    result = {"before": before(table), "after": prevented(table), "left": left(table), "forgeries": forgeries}
    after = sum(one["audits"] for one in result["after"])
    parts = {
        "before": ("Before: audits of innocent models with p at most\n", _before_table),
        "after": (f"After: {after} audits, and the 99 % binomial bounds\n", _after_table),
        "left": ("What is left: audits with p (as printed) at most\n", _left_table),
        "forgeries": ("Forged evidence\n", _forgery_table),
    }
    text = "\n".join(f"{title}\n{table_of(result[name])}" for name, (title, table_of) in parts.items() if result[name])
    print(text)
    with files.atomic_path(f"{args.out}/dishonest.md") as path:
        path.write_text(text)
    with files.atomic_path(f"{args.out}/audits.csv") as path:
        table.to_csv(path, index=False, float_format="%.6g")
    if result["before"] and result["after"]:
        draw(table, f"{args.out}/before-after.png")
    names = (
        "attacks",
        "users",
        "photos",
        "pool",
        "train_size",
        "epoch",
        "repeats",
        "keys",
        "selections",
        "secrets",
        "redraws",
    )
    settings = {
        name: getattr(args, name) for name in (*names, "commitments", "audit_seeds", "planted", "references", "seed")
    }
    common.write_study(args.out, {"settings": settings, "models": models, **result}, device)


def _cell(one, bound=True):
    low, high = one["interval"]
    text = f"{one['hits']}: {100 * one['share']:.1f} % ({100 * low:.1f}-{100 * high:.1f})"
    return f"{text}, bound {one['bound']}" if bound else text


def _before_table(found):
    return markdown(
        ["attack", "tried on", "audits", *map(str, ALPHAS)],
        [
            [
                one["attack"],
                one["tried on"],
                one["audits"],
                *(_cell(cell, bound=False) for cell in one["p"].values()),
            ]
            for one in found
        ],
    )


def _after_table(found):
    judged = {"p": "p", "counted": "p x what alpha was divided by"}
    return markdown(
        ["attack", "judged by", "audits", *map(str, ALPHAS), "smaller than uniform, Kolmogorov-Smirnov"],
        [
            [
                one["attack"],
                judged[one["judged by"]],
                one["audits"],
                *map(_cell, one["p"].values()),
                f"{one['kolmogorov_smirnov']:.2g}",
            ]
            for one in found
        ],
    )


def _left_table(found):
    return markdown(
        ["attack", "", "tried on", "audits", *map(str, ALPHAS), "what there is beside p"],
        [
            [
                one["attack"],
                one["variant"],
                one["tried on"],
                one["audits"],
                *(_cell(cell, bound=False) for cell in one["p"].values()),
                one["beside"],
            ]
            for one in found
        ],
    )


def _forgery_table(forgeries):
    return markdown(
        ["forgery", "replay", "honest p", "p shown", "its words"],
        [
            [
                one["forgery"],
                one["outcome"],
                f"{one['honest']:.2g}",
                "-" if one["p"] is None else f"{one['p']:.2g}",
                one["words"] or "-",
            ]
            for one in forgeries
        ],
    )


def draw(table, path):
    """Share of innocent audits with a value of at most alpha, before and after, against the diagonal."""
    figure, axes = plots.figure_of(1, 2, (11, 4.8))
    sides = (
        ("before", dict.fromkeys(table[table.when == "before"].attack.unique(), "p"), "p"),
        ("after", PREVENTED, "p, or p times what alpha was divided by"),
    )
    for axis, (when, columns, label) in zip(axes[0], sides, strict=True):
        for attack, column in columns.items():
            rows = table[(table.when == when) & (table.attack == attack)]
            ranked = np.sort(rows[column])
            axis.step(ranked, np.arange(1, len(ranked) + 1) / len(ranked), where="post", label=attack)
        axis.plot([1e-5, 1], [1e-5, 1], color="black", linestyle=":", label="uniform")
        axis.set(xscale="log", yscale="log", xlim=(4e-5, 1), ylim=(1e-3, 1.2), title=when, xlabel=f"alpha ({label})")
        axis.legend(fontsize=8)
    axes[0, 0].set_ylabel("share of innocent audits at most alpha")
    plots.save_figure(figure, path)


if __name__ == "__main__":
    run_script(main)

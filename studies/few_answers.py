"""How many queries an audit takes that stops when the evidence is there, beside the test that asks all at once.

Example: python -m studies.few_answers --data_root CIFAR10_FOLDER --out results/few-answers
The answers are of studies/answers.py, half "claims", as in studies/claims.py. Each user is judged by the code that
judges an audit: all at once by provenance/grid.py, photo by photo by provenance/sequential.py, in its order, with its
bets, and p <= alpha after twice the smaller of both p. Of a file the rest of the grid is asked where the bets did not
reach it; of a server no other keys are asked about, so that an audit ends after the own key. The bets' curves were
committed (cb9f58f) before these models were trained, and nothing was chosen on their users.

Public: WAYS, judge_user, summary.
"""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd

import utils
from attacks import exact
from kit import files, plots
from kit.errors import run_script
from kit.tables import markdown
from provenance import grid, references, sequential
from provenance.plan import VIEWS, AuditPlan
from studies import answers, common
from suspects.suspect import Answers

ALPHA = 1e-3
REFERENCE = (answers.GOOD,)
# (views, label alone); photos that were published unchanged always have 18.
WAYS = {"2 views": (VIEWS, False), "18 views": (18, False), "label alone, 18 views": (18, True)}
FILE, SERVER = {"sha256": "ab" * 32}, {"address": "https://model.example/v2/models/photos"}
ASKED = {
    "all at once": (False, FILE),
    "photo by photo, a file": (True, FILE),
    "photo by photo, a server": (True, SERVER),
}


def plan_of(user, views, label_alone, one_by_one):
    """The AuditPlan of a user of studies/answers.py, as it would have been committed."""
    return AuditPlan.usual(
        True,
        marked=user.kind != "unchanged",
        label=str(user.label),
        answers="label only" if label_alone else "as given",
        views=views,
        keys=user.logits("suspect").shape[1] - 1,
        alpha=ALPHA,
        sequential=one_by_one,
    )


def record_of(user):
    """What judging takes of a record: its sizes, selections, and the random order of its photos."""
    drawn, photos = {}, len(user.published)

    def selections(count, audit_seed=""):
        if count not in drawn:
            draws = utils.key_generator("studies", "selections", user.name)
            drawn[count] = exact.random_selections(draws, photos, int(user.published.sum()), count)
            drawn[count][0] = user.published
        return drawn[count]

    order = utils.key_generator("studies", "few answers", user.name).permutation(photos)
    sizes = [(photos, int(user.published.sum()))]
    return SimpleNamespace(sizes=sizes, selections=selections, sequence=lambda audit_seed="": order)


def judge_user(user, record, views, label_alone, beside, one_by_one, model):
    """(p, queries, queries of the bets until the evidence was there or None) of one audit. beside: names of references;
    model: its identity, FILE or SERVER."""
    plan = plan_of(user, views, label_alone, one_by_one)
    asked = plan.asked(model)
    logits = {name: user.logits(name)[:, : asked.keys + 1, :views] for name in ("suspect", *beside)}
    photos, _, _, classes = logits["suspect"].shape
    given = {name: Answers(np.ascontiguousarray(one).reshape(-1, classes)) for name, one in logits.items()}
    scores = np.zeros((0, 0, 0), np.float32)
    if beside:
        known = [references.Reference(SimpleNamespace(classes=classes), name, user.label) for name in beside]
        scores = np.stack([references.scores_of_answers(given[one.digest], photos, one, views) for one in known])
    facts = (user.label, ALPHA)
    if not one_by_one:
        order = np.arange(len(given["suspect"]))
        result, _, _ = grid.judge(record, asked, *facts, order, given["suspect"], classes, references=scores)
        return result["p_value"], len(order), None
    rule = sequential.rule_of(record, asked, *facts, classes, (), scores)
    order = np.concatenate([rule.first_queries, np.setdiff1d(np.arange(rule.total), rule.first_queries)])
    in_order = given["suspect"].rows(order)
    count = rule.needed(rule.bet(lambda number: in_order.rows(slice(number))))
    result, _ = sequential.judge(rule, record, order[:count], in_order.rows(slice(count)), references=scores)
    bets = result["sequential"]
    return result["p_value"], count, bets["queries"] if bets["stopped"] == sequential.EVIDENCE else None


def rows(args, data, device):
    """One row for each user, way of scoring, reference or none, and way of asking."""
    for seed in args.seeds:
        for user in answers.users_of(answers.answers_of(args, data, device, seed)):
            record = record_of(user)
            for (way, (views, label_alone)), beside, (asked, how) in itertools.product(
                WAYS.items(), ((), REFERENCE), ASKED.items()
            ):
                if views < 18 and user.kind == "unchanged":
                    continue
                if user.kind == "unchanged" and asked == "photo by photo, a server":
                    continue  # without other keys it is the same as of a file
                p, queries, bets = judge_user(user, record, views, label_alone, beside, *how)
                yield {
                    "seed": seed,
                    "user": user.number,
                    "kind": user.kind,
                    "way": way,
                    "reference": bool(beside),
                    "asked": asked,
                    "p": p,
                    "queries": queries,
                    "bets": np.nan if bets is None else bets,
                }


def summary(table):
    """(markdown, [{kind, way, reference, asked, found, by the bets, median, quantile, mean, most}, ...])."""
    found, body = [], []
    keys = ["kind", "way", "reference", "asked"]
    for of, part in table.groupby(keys, sort=False):
        hits = part[part.p <= ALPHA]
        one = {
            **dict(zip(keys, of, strict=True)),
            "found": common.rate(len(hits), len(part)),
            "by the bets": common.rate(int(part.bets.notna().sum()), len(part)),
            "median": float(hits.queries.median()) if len(hits) else None,
            "quantile": float(hits.queries.quantile(0.9)) if len(hits) else None,
            "mean": float(part.queries.mean()),
            "most": int(part.queries.max()),
        }
        found.append(one)
        bets = "-" if one["asked"] == "all at once" else f"{one['by the bets']['hits']} of {len(part)}"
        queries = ["-" if one[name] is None else f"{one[name]:,.0f}" for name in ("median", "quantile", "mean", "most")]
        beside = "one" if one["reference"] else "none"
        share = plots.percent(one["found"]["share"], one["found"]["interval"])
        body.append([one["kind"], one["way"], beside, one["asked"], share, bets, *queries])
    head = ["photos", "answers", "reference", "asked", f"found at alpha {ALPHA:g}", "by the bets"]
    head += ["queries of those found: median", "90 % quantile", "of all: mean", "most"]
    return markdown(head, body), found


def main():
    args = answers.parser(__doc__, "claims", (301, 302, 303, 304)).parse_args()
    data, device = common.load(args)
    table = pd.DataFrame(rows(args, data, device))
    text, found = summary(table)
    text = (
        f"{len(args.seeds)} {args.net_type} models of {args.train_size:,} images, {args.epoch} epochs; {args.users} "
        f"users of each kind in each, {args.photos // 2} published + {args.photos // 2} held out = "
        f"{args.photos / 2 / args.train_size:.2%} of the images. Queries are those of the model under audit.\n\n{text}"
    )
    print(text)
    with files.atomic_path(f"{args.out}/few-answers.md") as path:
        path.write_text(text)
    with files.atomic_path(f"{args.out}/audits.csv") as path:
        table.to_csv(path, index=False, float_format="%.6g")
    names = ("half", "seeds", "users", "photos", "train_size", "epoch", "net_type")
    settings = {name: getattr(args, name) for name in names}
    common.write_study(args.out, {"settings": settings, "alpha": ALPHA, "found": found}, device)


if __name__ == "__main__":
    run_script(main)

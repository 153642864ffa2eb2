"""report.html: the audit for a reader who decides about data protection and has read no paper.

One file with everything inside: no script, no font and no image from anywhere else. Every value is escaped
(`kit.markup`), because class names and file names are other people's text.
Public: render, title, sentence, LEVELS.
"""

import io
import json

from PIL import Image

from kit.markup import Raw, document, element, join, picture, small_image, table
from privacy import advice, beyond, cells
from privacy.folds import TITLES

LEVELS = {"high": "High risk", "moderate": "Moderate risk", "low": "No substantial leak found"}
SHOWN_GROUPS = 30
SHOWN_IMAGES = 24


def render(results, context, figures, image_of=None):
    """The page as text. results: of `run_attacks` without arrays; context: see `report.write_report`; figures:
    {"linear" | "log": {"light" | "dark": PNG bytes}}; image_of: None, or function row -> uint8 tensor (3, H, W)."""
    sections = [
        ("words", "What the numbers mean", _in_words(results)),
        ("groups", "Who bears the risk", _groups(results)),
        ("exposed", "The most exposed records", _exposed(results, image_of)),
        ("do", "What to do", _what_to_do(results)),
        ("untested", "What was not tested", _untested(results)),
        ("audited", "What was audited", _audited(results, context)),
        ("attacks", "How well each attack works", _attacks(results, figures)),
        ("certainty", "How sure this is", _certainty(results)),
        ("beyond", "Beyond single records", beyond.section(results)),
        ("limits", "What this audit can't say", _limits(results)),
        ("data", "How to repeat it", _repeat(results, context)),
    ]
    links = element(
        "nav",
        element("ul", *(element("li", element("a", name, href=f"#{place}")) for place, name, _ in sections)),
        aria_label="Contents",
    )
    body = join(
        element("h1", title(context)),
        element(
            "p", "Can somebody who may ask the model questions find out whose records it was trained on?", class_="soft"
        ),
        _verdict(results),
        links,
        *(
            element("section", element("h2", name, id=place), content, aria_labelledby=place)
            for place, name, content in sections
        ),
    )
    return document(title(context), body)


def title(context):
    """Of the report: what was audited."""
    model, data = (cells.plain(context.get(*pair)) for pair in (("model_name", "models"), ("dataset", "data")))
    return f"Privacy audit: {model} on {data}"


def _verdict(results):
    verdict = results["verdict"]
    level = verdict["level"]
    return element(
        "div",
        element("p", element("span", LEVELS[level], class_="level")),
        element("p", sentence(results), class_="worked"),
        element("p", _why(verdict, results["headline"]), class_="soft"),
        *(element("p", element("strong", "Not a fair comparison: "), text) for text in results["fairness"]["warnings"]),
        class_=f"verdict {level}",
        role="note",
        aria_label="Verdict",
    )


def sentence(results):
    """The one sentence to remember."""
    head = results["headline"]
    base = 1000 if not head["fpr"] or head["fpr"] >= 1e-3 else round(1 / head["fpr"])
    found = f"the attack finds {cells.per(head['tpr'], base)} of {base:,} that were"
    if not head["fpr"]:
        return f"At a threshold above all {head['non_members']:,} records that were NOT used, {found}."
    most = cells.per(head["fpr"], base)
    return f"Of {base:,} records that were NOT used, at most {most} would be called a member; {found}."


def _why(verdict, head):
    ratio, fpr = f"{verdict['ratio']:.1f}", cells.percent(verdict["fpr"])
    if verdict["level"] == "low":
        return (
            f"No attack is certain to call members {verdict['moderate_ratio']:g} times as often as non-members, "
            f"and no AUC is certain to be {verdict['moderate_auc']:g} or more (95 % intervals). These records "
            f"don't exclude that up to {cells.per(head['interval'][1], 1000)} of 1,000 members are found at this "
            "threshold."
        )
    if verdict["ratio"] >= verdict["moderate_ratio"]:
        return (
            f"{verdict['attack']} calls members at least {ratio} times as often as non-members, at a threshold for "
            f"{fpr} false positives, with both 95 % intervals taken at their worse end."
        )
    sure = cells.percent(verdict["auc_at_least"])
    return f"The best attack ranks a member above a non-member in at least {sure} of pairs (95 % interval)."


def _in_words(results):
    head, verdict = results["headline"], results["verdict"]
    paragraphs = [
        "A membership inference attack looks at a model's answer on one record and says whether the model was trained "
        "on it. That alone can be harmful: to have been in the training data of a model for a disease means to be a "
        "patient. It is also a warning sign: what a model remembers about single records, it can give away.",
        f"Attacks were tried on models whose training records are known. The strongest of the "
        f"{len(results['attacks'])} tried is {head['title']}. {sentence(results)} Counted: {head['hits']:,} of "
        f"{head['members']:,} members found ({cells.interval(head['interval'])} with 95 % confidence), "
        f"{head['false_positives']:,} of "
        f"{head['non_members']:,} non-members called members by mistake ({cells.interval(head['fpr_interval'])}).",
        "A model that gives nothing away would have as many of its members called members as of the others: "
        f"{cells.per(head['fpr'], 1000) if head['fpr'] else 0} of 1,000 here. What counts is the left end of the "
        "curves below, where almost nobody is accused wrongly: an attack that is sure about a few people harms these "
        "people, even if it knows nothing about all others.",
    ]
    rule = (
        "The verdict follows a fixed rule. For every attack and every rate of false positives, the lower end of "
        "the 95 % interval of the share of members found is divided by the upper end of that of the share of "
        f"non-members called members. {verdict['high_ratio']:g} and more is a high risk: of those whom the attack "
        f"calls members, at least {_share_right(verdict['high_ratio'])} are, where every second record is one. "
        f"{verdict['moderate_ratio']:g} and more is a moderate risk, and so is an AUC whose interval begins at "
        f"{verdict['moderate_auc']:g} or above. Everything else: no substantial leak found, by these attacks and "
        f"on these records. Here the largest ratio is {verdict['ratio']:.2f}."
    )
    return join(*(element("p", text) for text in paragraphs), element("p", rule))


def _share_right(ratio):
    return f"{ratio:g} of {ratio + 1:g}"


def _what_to_do(results):
    """Steps for the verdict, and what countermeasures measured here do and cost."""
    steps = element("ol", *(element("li", text) for text in advice.steps(results["verdict"]["level"])))
    measured = advice.countermeasures()
    if not measured:
        return steps
    text = element("p", advice.MEASURED, class_="soft")
    return join(steps, element("h3", "Countermeasures that this program measures"), text, table(*measured))


def _untested(results):
    groups = [
        element("h3", title) + element("ul", *(element("li", text) for text in points))
        for title, points in advice.untested(results).items()
        if points
    ]
    return join(*(Raw(group) for group in groups))


def _audited(results, context):
    accuracy = context.get("accuracy") or []
    means = {side: [one[side] for one in accuracy if one.get(side) is not None] for side in ("train", "test")}
    facts = [
        ("Data set", cells.plain(context.get("dataset", "not given"))),
        ("Model", cells.plain(context.get("model_name", "not given"))),
        ("Models in all", context.get("models", "not given")),
        (
            "Audited as targets",
            f"{len(results['targets'])}, each attacked with {cells.span(results['references'])} other models as "
            "references",
        ),
        (
            "Records asked about",
            f"{results['records']:,}, of which each target was trained on "
            f"{cells.span([one['members'] for one in results['attacks'][0]['targets']])}",
        ),
        ("Further records that no model was trained on", f"{results['population']:,}"),
        ("Questions a record and model", results["queries"]),
    ]
    if all(means.values()):
        facts += [
            ("Accuracy, training records", cells.percent(sum(means["train"]) / len(means["train"]))),
            ("Accuracy, other records", cells.percent(sum(means["test"]) / len(means["test"]))),
        ]
    text = (
        (
            "Many models were trained in the same way on different halves of the records, so that for each of them it "
            "is known who was in and who was not. Each target is attacked in turn; the attacker has models of the same "
            "kind, but never the target's training list."
        )
        if not context.get("outside")
        else "The models were trained elsewhere; their training lists were given. Each target is attacked in turn."
    )
    return join(element("p", text), _facts(facts))


def _attacks(results, figures):
    rates = [point["fpr"] for point in results["attacks"][0]["pooled"]["tpr_at_fpr"]]
    head = ["Attack", "AUC", *(f"Found at {cells.percent(fpr)} FPR" for fpr in rates), "FPR when all are found"]
    ordered = sorted(results["attacks"], key=lambda one: -one["pooled"]["auc"])
    pooled = [
        [
            one["title"],
            cells.auc(one["pooled"]),
            *(cells.rate(point["tpr"], point["interval"]) for point in one["pooled"]["tpr_at_fpr"]),
            cells.rate(one["pooled"]["fpr_at_100_tpr"], one["pooled"]["fpr_interval"]),
        ]
        for one in ordered
    ]
    mean = [
        [
            one["title"],
            cells.mean(one["average"]["auc"], 1, 4),
            *(cells.mean(point) for point in one["average"]["tpr_at_fpr"]),
            cells.mean(one["average"]["fpr_at_100_tpr"]),
        ]
        for one in ordered
    ]
    parts = [
        element(
            "p",
            "AUC is the probability that the attack ranks a member above a non-member: 0.5 is guessing, "
            "1 is certainty. Found is the share of members called members, FPR (false positive rate) "
            "that of non-members called members.",
        ),
        table(
            "All targets under one threshold, with 95 % intervals (AUC: bootstrap; rates: Clopper-Pearson)",
            head,
            pooled,
        ),
    ]
    coarse = [
        fpr
        for fpr, point in zip(rates, ordered[0]["pooled"]["tpr_at_fpr"], strict=True)
        if not point["resolved"] and fpr
    ]
    if coarse:
        parts.append(
            element(
                "p",
                f"{ordered[0]['pooled']['non_members']:,} non-members are too few for rates of "
                f"{', '.join(map(cells.percent, coarse))}: these columns equal that of 0 %.",
                class_="soft",
            )
        )
    if len(results["targets"]) > 1:
        parts.append(
            table(
                f"Each target by itself: mean and standard deviation over {len(results['targets'])} targets", head, mean
            )
        )
    described = "; ".join(f"{one['title']} AUC {one['average']['auc']['mean']:.3f}" for one in ordered)
    captions = {
        "log": "Logarithmic axes: the left end is what counts. The dotted line is guessing.",
        "linear": "The same curves in linear axes.",
    }
    parts.append(
        element(
            "div",
            *(
                picture(
                    figures[scale]["light"],
                    figures[scale]["dark"],
                    f"ROC curves of all attacks, {scale} axes. {described}.",
                    caption,
                )
                for scale, caption in captions.items()
            ),
            class_="pair",
        )
    )
    if results["skipped"]:
        parts.append(element("p", "Left out because they can't run on these models and records:"))
        parts.append(
            element("ul", *(element("li", f"{TITLES[name]}: {reason}") for name, reason in results["skipped"].items()))
        )
    return join(*parts)


def _certainty(results):
    """Intervals over records and models, records that all models give away, and RMIA's a."""
    found, several = results["certainty"], len(results["targets"]) > 1
    rates = [point["fpr"] for point in results["attacks"][0]["pooled"]["tpr_at_fpr"]]
    rows = [
        [
            one["title"],
            cells.between(one["pooled"]["auc_clustered"], 1, 4),
            *(f"{cells.between(point['clustered'])}\N{NO-BREAK SPACE}%" for point in one["pooled"]["tpr_at_fpr"]),
        ]
        for one in results["attacks"]
    ]
    cases = "records and models are drawn again" if several else "records are drawn again"
    parts = [
        element(
            "p",
            "A record that one model gives away is likely given away by the next, and a model that remembers much does "
            f"so for all its records. In these 95 % intervals {cases} as wholes (bootstrap), and no pair counts as a "
            "case of its own. At the lowest rates a few records decide, and a bootstrap is rough.",
        ),
        table(
            "Intervals over records and models",
            ["Attack", "AUC", *(f"At {cells.percent(fpr)} FPR" for fpr in rates)],
            rows,
        ),
    ]
    if found["widening"] is not None:
        changed = (
            f"With independent pairs the verdict would have been: {LEVELS[found['verdict_if_independent']].lower()}."
            if found["changed"]
            else "The verdict is the same with both kinds."
        )
        parts.append(
            element(
                "p",
                f"For the AUC they are {found['widening']:.1f} times as wide as intervals of independent pairs (median "
                f"over the attacks). {changed} The worse end of both counts in the verdict.",
            )
        )
    if several:
        parts += _stable(results)
    return join(*parts, *_choice_of_a(results["offline_a"]))


def _stable(results):
    """Which records are found by every model that was trained on them."""
    rows = []
    for one in results["attacks"]:
        for point in one["pooled"]["tpr_at_fpr"]:
            if point["resolved"] and abs(point["fpr"] - results["headline"]["fpr"]) < 1e-12:
                same = point["stability"]
                share = "-" if same["agreement"] is None else cells.percent(same["agreement"], 0)
                rows.append([one["title"], same["any"], same["all"], f"{same['by_chance']:.1f}", share])
    if not rows:
        return []
    count = results["attacks"][0]["pooled"]["tpr_at_fpr"][0]["stability"]["records"]
    return [
        element("h3", "The same records in every model?"),
        table(
            f"Of {count:,} records that two or more targets learnt, at {cells.percent(results['headline']['fpr'])} FPR",
            ["Attack", "Found in one model at least", "In all of them", "In all, by chance", "All / one"],
            rows,
        ),
    ]


def _choice_of_a(found):
    """RMIA's offline a: the curve, and whether it matters."""
    if found is None:
        return []
    asked = (
        "the AUC" if found["asked"] is None else f"the share of members found at {cells.percent(found['asked'])} FPR"
    )
    matters = (
        f"It matters: only {', '.join(f'{a:g}' for a in found['as_good'])} may be as good as the best."
        if found["matters"]
        else "It does not matter here: no candidate is worse than the best for certain."
    )
    rows = [
        [f"{row['a']:g}", "-" if row["tpr"] is None else cells.percent(row["tpr"]), f"{row['auc']:.4f}"]
        for row in found["curve"]
    ]
    chosen = cells.plain(sorted({f"{a:g}" for a in found["chosen"]}))
    return [
        element("h3", "How RMIA's a was chosen"),
        element("p", f"By {asked}, on reference models as targets and never on the target: {chosen}. {matters}"),
        table("Measured on reference models", ["a", "Members found", "AUC"], rows),
    ]


def _exposed(results, image_of):
    rows, head = results["exposed"], results["headline"]
    if not rows:
        return element("p", "No audited record was in a target's training set.")
    text = element(
        "p",
        f"The records that {head['title']} tells from non-members most surely. The level is the share "
        "of all non-members that look at least as much like a member (median over the models that were "
        "trained on the record). Also a model that gives nothing away has a top of this list: what is "
        "telling is a record that is found in most models that were trained on it, and in none of the "
        "others.",
    )
    if image_of is None:
        return join(
            text,
            table(
                "Most exposed records; row is the record's place in the data set",
                ["Row", "Class", "Found in", "False alarms in", "Level", "Loss if in", "Loss if out"],
                [
                    [
                        row["record"],
                        row["class"],
                        f"{row['found_in']} of {row['models_in']}",
                        f"{row['found_out']} of {row['models_out']}",
                        cells.percent(row["false_positive_level"], 3),
                        cells.number(row["loss_in"]),
                        cells.number(row["loss_out"]),
                    ]
                    for row in rows
                ],
            ),
        )
    cards = [
        element(
            "li",
            small_image(_png(image_of(row["record"])), f"Record {row['record']}, class {row['class']}"),
            element("strong", row["class"]),
            element("span", f"row {row['record']}"),
            element("span", f"found in {row['found_in']} of {row['models_in']}"),
            element("span", f"false alarms {row['found_out']} of {row['models_out']}"),
            element("span", f"level {cells.percent(row['false_positive_level'], 3)}"),
            element("span", f"loss {cells.number(row['loss_in'])} in, {cells.number(row['loss_out'])} out"),
        )
        for row in rows[:SHOWN_IMAGES]
    ]
    return join(
        text,
        element("ul", *cards, class_="cards"),
        element("p", "This page shows training records: it is as confidential as they are.", class_="soft"),
    )


def _groups(results):
    head = results["headline"]
    parts = [
        element(
            "p",
            f"{head['title']} at the one threshold for all that lets {cells.percent(head['fpr'])} of "
            "non-members pass. Groups differ in how many of their members are found, and in how many of "
            "their non-members are called members by mistake. With many groups the highest number is "
            "partly chance: look at the intervals.",
        )
    ]
    for one in results["groups"]:
        shown = one["rows"][:SHOWN_GROUPS]
        rows = [
            [
                f"{row['value']}{' *' if row['small'] else ''}",
                f"{row['records']:,}",
                cells.rate(row["tpr"], row["tpr_interval"]),
                cells.rate(row["fpr"], row["fpr_interval"]),
                cells.auc(row),
            ]
            for row in shown
        ]
        more = f" The {SHOWN_GROUPS} highest of {len(one['rows'])} are shown." if len(shown) < len(one["rows"]) else ""
        parts.append(element("h3", f"By {one['name']}"))
        parts.append(
            table(
                f"Risk by {one['name']}, with 95 % intervals, the most exposed first.{more}",
                ["Group", "Records", "Members found", "Non-members called members", "AUC"],
                rows,
            )
        )
        if any(row["small"] for row in shown):
            parts.append(
                element(
                    "p",
                    "* Fewer than 30 records, or than 30 cases on a side: too few for a conclusion "
                    "about this group alone.",
                    class_="soft",
                )
            )
    return join(*parts)


def _limits(results):
    return element("ul", *(element("li", text) for text in advice.limits(results)))


def _repeat(results, context):
    known = ("dataset", "model_name", "models", "accuracy", "config", "seconds", "versions", "hardware", "outside")
    facts = [
        (name.capitalize(), cells.plain(context[name]))
        for name in ("hardware", "versions", "seconds")
        if name in context
    ]
    facts += [
        (name.replace("_", " ").capitalize(), cells.plain(value))
        for name, value in context.items()
        if name not in known
    ]
    parts = [_facts(facts)] if facts else []
    if "config" in context:
        parts.append(
            element(
                "details",
                element("summary", "Configuration"),
                element("pre", json.dumps(context["config"], indent=2, ensure_ascii=False)),
            )
        )
    accuracy = {one.get("model"): one for one in context.get("accuracy") or []}
    best = next(one for one in results["attacks"] if one["name"] == results["headline"]["attack"])
    rows = [
        [
            f"Model {row['target']}",
            row["members"],
            row["non_members"],
            f"{row['auc']:.4f}",
            *(cells.percent(point["tpr"]) for point in row["tpr_at_fpr"]),
            *(
                cells.percent(value) if (value := accuracy.get(row["target"], {}).get(side)) is not None else "-"
                for side in ("train", "test")
            ),
        ]
        for row in best["targets"]
    ]
    parts.append(
        cells.folded(
            len(rows),
            table(
                f"{best['title']} on each target",
                [
                    "Target",
                    "Members",
                    "Non-members",
                    "AUC",
                    *(f"Found at {cells.percent(point['fpr'])} FPR" for point in best["pooled"]["tpr_at_fpr"]),
                    "Training accuracy",
                    "Test accuracy",
                ],
                rows,
            ),
        )
    )
    parts.append(
        element(
            "p",
            "Every number is in result.json, the scores of each target in exp/TARGET/scores.npz, beside this page.",
            class_="soft",
        )
    )
    return join(*parts)


def _facts(pairs):
    return element("dl", *(Raw(element("dt", name) + element("dd", value)) for name, value in pairs))


def _png(image):
    """PNG of a uint8 tensor (3, H, W), at most 192 pixels wide and high."""
    picture_of = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    picture_of.thumbnail((192, 192))
    content = io.BytesIO()
    picture_of.save(content, "png", optimize=True)
    return content.getvalue()

"""report.html: the audit for a reader who decides about data protection and has read no paper.

One file with everything inside: no script, no font and no image from anywhere else. Every value is escaped
(`kit.markup`), because class names and file names are other people's text.
Public: render, title, sentence, LEVELS.
"""

import io
import json

from PIL import Image

from kit.markup import Raw, document, element, join, picture, small_image, table
from privacy import advice
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
        ("beyond", "Beyond single records", _beyond(results)),
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
    return f"Privacy audit: {_plain(context.get('model_name', 'models'))} on {_plain(context.get('dataset', 'data'))}"


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
    found = f"the attack finds {_per(head['tpr'], base)} of {base:,} that were"
    if not head["fpr"]:
        return f"At a threshold above all {head['non_members']:,} records that were NOT used, {found}."
    most = _per(head["fpr"], base)
    return f"Of {base:,} records that were NOT used, at most {most} would be called a member; {found}."


def _why(verdict, head):
    ratio, fpr = f"{verdict['ratio']:.1f}", _percent(verdict["fpr"])
    if verdict["level"] == "low":
        return (
            f"No attack is certain to call members {verdict['moderate_ratio']:g} times as often as non-members, "
            f"and no AUC is certain to be {verdict['moderate_auc']:g} or more (95 % intervals). These records "
            f"don't exclude that up to {_per(head['interval'][1], 1000)} of 1,000 members are found at this "
            "threshold."
        )
    if verdict["ratio"] >= verdict["moderate_ratio"]:
        return (
            f"{verdict['attack']} calls members at least {ratio} times as often as non-members, at a threshold for "
            f"{fpr} false positives, with both 95 % intervals taken at their worse end."
        )
    sure = _percent(verdict["auc_at_least"])
    return f"The best attack ranks a member above a non-member in at least {sure} of pairs (95 % interval)."


def _in_words(results):
    head, verdict = results["headline"], results["verdict"]
    paragraphs = [
        "A membership inference attack looks at a model's answer on one record and says whether the model was trained "
        "on it. That alone can be harmful: to have been in the training data of a model for a disease means to be a "
        "patient. It is also a warning sign: what a model remembers about single records, it can give away.",
        f"Attacks were tried on models whose training records are known. The strongest of the "
        f"{len(results['attacks'])} tried is {head['title']}. {sentence(results)} Counted: {head['hits']:,} of "
        f"{head['members']:,} members found ({_interval(head['interval'])} with 95 % confidence), "
        f"{head['false_positives']:,} of "
        f"{head['non_members']:,} non-members called members by mistake ({_interval(head['fpr_interval'])}).",
        "A model that gives nothing away would have as many of its members called members as of the others: "
        f"{_per(head['fpr'], 1000) if head['fpr'] else 0} of 1,000 here. What counts is the left end of the curves "
        "below, where almost nobody is accused wrongly: an attack that is sure about a few people harms these people, "
        "even if it knows nothing about all others.",
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
        ("Data set", _plain(context.get("dataset", "not given"))),
        ("Model", _plain(context.get("model_name", "not given"))),
        ("Models in all", context.get("models", "not given")),
        (
            "Audited as targets",
            f"{len(results['targets'])}, each attacked with {_range(results['references'])} other models as references",
        ),
        (
            "Records asked about",
            f"{results['records']:,}, of which each target was trained on "
            f"{_range([one['members'] for one in results['attacks'][0]['targets']])}",
        ),
        ("Further records that no model was trained on", f"{results['population']:,}"),
        ("Questions a record and model", results["queries"]),
    ]
    if all(means.values()):
        facts += [
            ("Accuracy, training records", _percent(sum(means["train"]) / len(means["train"]))),
            ("Accuracy, other records", _percent(sum(means["test"]) / len(means["test"]))),
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
    head = ["Attack", "AUC", *(f"Found at {_percent(fpr)} FPR" for fpr in rates), "FPR when all are found"]
    ordered = sorted(results["attacks"], key=lambda one: -one["pooled"]["auc"])
    pooled = [
        [
            one["title"],
            _auc(one["pooled"]),
            *(_rate(point["tpr"], point["interval"]) for point in one["pooled"]["tpr_at_fpr"]),
            _rate(one["pooled"]["fpr_at_100_tpr"], one["pooled"]["fpr_interval"]),
        ]
        for one in ordered
    ]
    mean = [
        [
            one["title"],
            _mean(one["average"]["auc"], 1, 4),
            *(_mean(point) for point in one["average"]["tpr_at_fpr"]),
            _mean(one["average"]["fpr_at_100_tpr"]),
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
                f"{', '.join(map(_percent, coarse))}: these columns equal that of 0 %.",
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
            _between(one["pooled"]["auc_clustered"], 1, 4),
            *(f"{_between(point['clustered'])}\N{NO-BREAK SPACE}%" for point in one["pooled"]["tpr_at_fpr"]),
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
            "Intervals over records and models", ["Attack", "AUC", *(f"At {_percent(fpr)} FPR" for fpr in rates)], rows
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
                share = "-" if same["agreement"] is None else _percent(same["agreement"], 0)
                rows.append([one["title"], same["any"], same["all"], f"{same['by_chance']:.1f}", share])
    if not rows:
        return []
    count = results["attacks"][0]["pooled"]["tpr_at_fpr"][0]["stability"]["records"]
    return [
        element("h3", "The same records in every model?"),
        table(
            f"Of {count:,} records that two or more targets learnt, at {_percent(results['headline']['fpr'])} FPR",
            ["Attack", "Found in one model at least", "In all of them", "In all, by chance", "All / one"],
            rows,
        ),
    ]


def _choice_of_a(found):
    """RMIA's offline a: the curve, and whether it matters."""
    if found is None:
        return []
    asked = "the AUC" if found["asked"] is None else f"the share of members found at {_percent(found['asked'])} FPR"
    matters = (
        f"It matters: only {', '.join(f'{a:g}' for a in found['as_good'])} may be as good as the best."
        if found["matters"]
        else "It does not matter here: no candidate is worse than the best for certain."
    )
    rows = [
        [f"{row['a']:g}", "-" if row["tpr"] is None else _percent(row["tpr"]), f"{row['auc']:.4f}"]
        for row in found["curve"]
    ]
    chosen = _plain(sorted({f"{a:g}" for a in found["chosen"]}))
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
                        _percent(row["false_positive_level"], 3),
                        _number(row["loss_in"]),
                        _number(row["loss_out"]),
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
            element("span", f"level {_percent(row['false_positive_level'], 3)}"),
            element("span", f"loss {_number(row['loss_in'])} in, {_number(row['loss_out'])} out"),
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
            f"{head['title']} at the one threshold for all that lets {_percent(head['fpr'])} of "
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
                _rate(row["tpr"], row["tpr_interval"]),
                _rate(row["fpr"], row["fpr_interval"]),
                _auc(row),
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


def _beyond(results):
    parts = [_epsilon(results["epsilon"]), _ramia(results["ramia"]), _duci(results["duci"]), _users(results["users"])]
    parts = [part for part in parts if part is not None]
    return join(*parts) if parts else element("p", "Not asked for in the configuration.")


def _epsilon(found):
    if found is None:
        return None
    rows = [
        [
            f"Model {row['target']}",
            f"{row['epsilon']:.2f}",
            f"{row['provable']:.2f}",
            f"{best['correct']} of {best['guesses']}",
        ]
        for row in found["rows"]
        for best in [max(row["tests"], key=lambda test: test["epsilon"])]
    ]
    sure = _percent(found["confidence"], 0)
    text = (
        "Differential privacy limits what any attack can learn by a number epsilon: around 1 is strong, above 10 "
        "says little. An audit can't show that a model is private, but it can refute claims. "
    )
    text += (
        (
            f"With {sure} confidence, the training procedure is not differentially private with any epsilon below "
            f"{found['epsilon']:.2f} (delta {found['delta']:g}). "
        )
        if found["epsilon"]
        else f"At {sure} confidence, this audit refutes no epsilon at all (delta {found['delta']:g}). "
    )
    text += (
        f"Counted are the right guesses of {found['title']} on each target's one run (Steinke, Nasr and "
        "Jagielski, 2023); the bound is the highest of all targets, corrected for having tried them all."
    )
    return join(
        element("h3", "A lower bound on epsilon"),
        element("p", text),
        _folded(
            len(rows),
            table(
                f"Lower bound of each target by itself, at {sure} confidence; provable is "
                "what would have been shown if every guess had been right",
                ["Target", "Epsilon is at least", "Provable", "Right guesses"],
                rows,
            ),
        ),
    )


def _ramia(found):
    if found is None:
        return None
    title = element("h3", "Changed copies of a record (range membership)")
    if "skipped" in found:
        return join(title, element("p", found["skipped"]))
    names = {
        "record": "The record itself",
        "one_point": "One changed copy",
        "range": f"{found['points']} changed copies together",
    }
    rows = [
        [name, _auc(found[kind]), *(_rate(point["tpr"], point["interval"]) for point in found[kind]["tpr_at_fpr"])]
        for kind, name in names.items()
    ]
    return join(
        title,
        element(
            "p",
            "Somebody who holds not the record but a changed copy of it (shifted, mirrored, "
            "perturbed) can still ask whether anything like it was used. Scores of several "
            "copies are averaged (RaMIA, Tao and Shokri, 2024).",
        ),
        table(
            f"{found['title']} with what the attacker holds, 95 % intervals",
            [
                "Attacker holds",
                "AUC",
                *(f"Found at {_percent(point['fpr'])} FPR" for point in found["range"]["tpr_at_fpr"]),
            ],
            rows,
        ),
    )


def _duci(found):
    if found is None:
        return None
    title = element("h3", "How much of a data set was used")
    if "skipped" in found:
        return join(title, element("p", found["skipped"]))
    rows = [
        [
            _percent(row["share"], 0),
            "-" if row["mean"] is None else _percent(row["mean"], 1),
            "-" if row["error"] is None else f"{100 * row['error']:.1f} points",
            f"{100 * row['width']:.1f} points",
            _percent(row["covered"], 1),
        ]
        for row in found["rows"]
    ]
    parts = [
        title,
        element(
            "p",
            "From guesses about single records, corrected for their known error rates, one can "
            "estimate which share of a whole data set a model was trained on (DUCI, Tong and "
            "others, 2024). Here on data sets for which the share is known, drawn from the "
            "audited records.",
        ),
        table(
            f"Estimates by {found['title']}: {found['rows'][0]['sets']:,} data sets of "
            f"{found['rows'][0]['size']:,} records for each share",
            ["Share used", "Mean estimate", "Mean error", "Width of 95 % interval", "Intervals that hold it"],
            rows,
        ),
    ]
    if found["models"] < 2:
        parts.append(
            element(
                "p",
                "The attack's error rates are known from one model only, so that the intervals leave "
                "out how much models differ.",
                class_="soft",
            )
        )
    if found["groups"]:
        parts.append(
            _folded(
                len(found["groups"]),
                table(
                    "Estimates for the groups of the data",
                    ["Group", "Target", "Records", "Used", "Estimate", "95 % interval"],
                    [
                        [
                            row["value"],
                            row["target"],
                            row["records"],
                            _percent(row["true"], 1),
                            "-" if row["share"] is None else _percent(row["share"], 1),
                            _between(row["interval"]),
                        ]
                        for row in found["groups"]
                    ],
                ),
            )
        )
    return join(*parts)


def _users(found):
    if found is None:
        return None
    audit, parts = found["audit"], [element("h3", "Users with several records")]
    if audit is None:
        parts.append(
            element(
                "p",
                f"{found['users']} users are known, but no model was trained on all records of some "
                "and on none of others; nothing can be compared.",
            )
        )
    else:
        rates = "; ".join(
            f"at {_percent(point['fpr'])} false positives {_percent(point['tpr'])} ({_between(point['interval'])})"
            for point in audit["tpr_at_fpr"]
        )
        parts.append(
            element(
                "p",
                f"A user's records together say more than one alone. Judged by their mean loss "
                f"(set-based membership inference), {audit['members']:,} cases of users whose "
                f"records were used are told from {audit['non_members']:,} of users whose records "
                f"were not: AUC {audit['auc']:.4f}; users found {rates}. To find all of them, "
                f"{_percent(audit['fpr_at_100_tpr'])} of the others "
                f"({_between(audit['fpr_interval'])}) would be accused.",
            )
        )
    rows = [
        [
            row["user"],
            row["records"],
            f"{row['models_in']} / {row['models_out']}",
            _number(row["loss_in"]),
            _number(row["loss_out"]),
        ]
        for row in found["rows"][:SHOWN_GROUPS]
    ]
    more = f" The first {SHOWN_GROUPS} of {found['users']} are shown." if found["users"] > SHOWN_GROUPS else ""
    parts.append(
        table(
            f"Users, the largest difference first.{more}",
            ["User", "Records", "Models in / out", "Mean loss if in", "Mean loss if out"],
            rows,
        )
    )
    if found["in_part"]:
        parts.append(
            element(
                "p",
                f"{found['in_part']:,} pairs of user and model were left out because the model was "
                "trained on part of the user's records.",
                class_="soft",
            )
        )
    return join(*parts)


def _limits(results):
    return element("ul", *(element("li", text) for text in advice.limits(results)))


def _repeat(results, context):
    known = ("dataset", "model_name", "models", "accuracy", "config", "seconds", "versions", "hardware", "outside")
    facts = [
        (name.capitalize(), _plain(context[name])) for name in ("hardware", "versions", "seconds") if name in context
    ]
    facts += [
        (name.replace("_", " ").capitalize(), _plain(value)) for name, value in context.items() if name not in known
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
            *(_percent(point["tpr"]) for point in row["tpr_at_fpr"]),
            *(
                _percent(value) if (value := accuracy.get(row["target"], {}).get(side)) is not None else "-"
                for side in ("train", "test")
            ),
        ]
        for row in best["targets"]
    ]
    parts.append(
        _folded(
            len(rows),
            table(
                f"{best['title']} on each target",
                [
                    "Target",
                    "Members",
                    "Non-members",
                    "AUC",
                    *(f"Found at {_percent(point['fpr'])} FPR" for point in best["pooled"]["tpr_at_fpr"]),
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


def _folded(count, content):
    return content if count <= 8 else element("details", element("summary", f"Show all {count} rows"), content)


def _facts(pairs):
    return element("dl", *(Raw(element("dt", name) + element("dd", value)) for name, value in pairs))


def _png(image):
    """PNG of a uint8 tensor (3, H, W), at most 192 pixels wide and high."""
    picture_of = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    picture_of.thumbnail((192, 192))
    content = io.BytesIO()
    picture_of.save(content, "png", optimize=True)
    return content.getvalue()


def _percent(rate, digits=2):
    text = f"{100 * rate:.{digits}f}"
    # No line break between number and sign.
    text = text.rstrip("0").rstrip(".") if "." in text and rate in (0, 1, 0.1, 0.01, 0.001) else text
    return f"{text}\N{NO-BREAK SPACE}%"


def _between(interval, factor=100, digits=2):
    return f"{factor * interval[0]:.{digits}f}–{factor * interval[1]:.{digits}f}"


def _interval(interval):
    return f"{_between(interval)} %"


def _per(rate, base):
    count = rate * base
    return f"{count:.0f}" if count >= 10 or abs(count - round(count)) < 1e-9 else f"{count:.1f}"


def _mean(spread, factor=100, digits=2):
    either_way = "" if spread["std"] is None else f" ± {factor * spread['std']:.{digits}f}"
    return f"{factor * spread['mean']:.{digits}f}{either_way}{' %' if factor == 100 else ''}"


def _rate(rate, interval):
    """A rate with its interval in a second line, so that tables stay narrow."""
    return "-" if rate is None else join(_percent(rate), element("small", _between(interval)))


def _auc(found):
    if found["auc"] is None:
        return "-"
    return join(f"{found['auc']:.4f}", element("small", _between(found["auc_interval"], 1, 4)))


def _number(value):
    return "-" if value is None else f"{value:.3g}"


def _range(values):
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _plain(value):
    """Nested settings as one line of text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)

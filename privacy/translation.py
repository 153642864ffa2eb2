"""Privacy Meter's own YAML files in the words of privacy/config.py: keys that have another name or place here.

What a key means there and is done elsewhere here, a note says; where nothing here does it, the note says that it is
left out. Public: translated.
"""

from kit.errors import UserError

OPTIMIZERS = {"adamw_torch": "AdamW", "adamw": "AdamW", "sgd": "SGD"}
# What its DP-SGD is trained with, which its files don't say.
DP_SGD = "dp_sgd:noise_multiplier=0.5,clip=1.0,multiplicity=1,delta=1e-05"
# Its schedule multiplies the learning rate by this once more; files with DP-SGD reckon with it (20 for 2).
ITS_FACTOR = 0.1
RAMIA = {  # range function: keys that it needs
    "geometric": ("transformations",),
    "l2": ("radius", "sample_size"),
    "missing_values": ("num_missing_feats", "col_ranges", "sample_size"),
    "word_replace": (),
}


def translated(content):
    """(content in today's words, [note, ...]) of a YAML file's mapping. What it does not know it leaves alone.

    Raises UserError for keys that are Privacy Meter's, and contradict each other or lack something.
    """
    sections = {name: dict(value) if isinstance(value, dict) else value for name, value in content.items()}
    notes = []
    if isinstance(sections.get("train"), dict):
        _train(sections, notes)
    for name, change in (("ramia", _ramia), ("dp_audit", _dp_audit), ("dpaudit", _dp_audit)):
        if name in sections:
            found = sections.pop(name)
            if not isinstance(found, dict):
                raise UserError(f"the section {name} is {found!r}, and not a mapping", advice="see privacy/README.md")
            change(sections, found, notes, name)
    return sections, notes


def _of(sections, name):
    """A section that may be changed, made where it is missing."""
    if not isinstance(sections.get(name), dict):
        sections[name] = {}
    return sections[name]


def _train(sections, notes):
    train = sections["train"]
    if isinstance(train.get("optimizer"), str):
        train["optimizer"] = OPTIMIZERS.get(train["optimizer"].lower(), train["optimizer"])
    if train.get("type") == "pytorch":
        del train["type"]
    own = [name for name, value in train.items() if isinstance(value, str) and value.startswith("speedyresnet_")]
    if own:
        for name in own:
            del train[name]
        notes.append(
            f"train.{', train.'.join(own)}: the defaults; what suits speedyresnet is in configs/cifar10-speedy.yaml"
        )
    if "tokenizer" in train:
        name, data = train.pop("tokenizer"), _of(sections, "data")
        if data.setdefault("tokenizer", name) != name:
            raise UserError(
                f"train.tokenizer {name!r} and data.tokenizer {data['tokenizer']!r} differ",
                advice="give one of them: texts are split by data.tokenizer",
            )
        notes.append("train.tokenizer is data.tokenizer here")
        if train.get("model_name") == "gpt2" and not {"pretrained", "hidden"} & train.keys():
            train["pretrained"] = "gpt2"
            notes.append("train.model_name gpt2 starts from the published weights, as train.pretrained: gpt2 says here")
    if "peft" in train:
        _peft(train, train.pop("peft"), notes)


def _peft(train, peft, notes):
    known = {"type": "peft_type", "r": "lora_rank", "target_modules": "lora_modules"}
    if not isinstance(peft, dict) or peft.keys() - known.keys() - {"fan_in_fan_out"}:
        raise UserError(f"train.peft is {peft!r}", advice=f"it may have {', '.join(known)}; see train.peft_type")
    train |= {known[name]: value for name, value in peft.items() if name in known}
    notes.append(f"train.peft is {', '.join(f'train.{known[name]}' for name in peft if name in known)} here")


def _ramia(sections, ramia, notes, name):
    function = ramia.get("range_function")
    if function not in RAMIA:
        raise UserError(f"ramia.range_function {function!r} is unknown", advice=f"there are {', '.join(RAMIA)}")
    missing = [key for key in RAMIA[function] if key not in ramia]
    if missing:
        raise UserError(f"ramia.{missing[0]} is missing", advice=f"the range function {function} needs it")
    if function == "word_replace":
        notes.append("ramia with word_replace is left out: ranges of texts are not sampled here")
        return
    ranges = {"function": function}
    if function == "geometric":
        ranges["transformations"] = ramia["transformations"]
    else:
        ranges["points"] = ramia["sample_size"]
    if function == "l2":
        ranges["radius"] = ramia["radius"]
    if function == "missing_values":
        ranges |= {"columns": ramia["col_ranges"], "categorical": bool(ramia.get("is_categorical", False))}
        if not isinstance(ramia["col_ranges"], list) or len(ramia["col_ranges"]) != ramia["num_missing_feats"]:
            raise UserError("ramia.col_ranges needs a pair of numbers for each of ramia.num_missing_feats features")
    audit = _of(sections, "audit")
    audit.setdefault("ramia", {})
    audit.setdefault("ranges", ranges)
    notes.append("ramia is audit.ranges (which copies) and audit.ramia (the attack) here")


def _dp_audit(sections, found, notes, name):
    strange = found.keys() - {"canary_dataset", "canary_size", "training_alg"}
    if strange or not isinstance(found.get("canary_size"), int):
        what = f"{name}.{min(strange)} is unknown" if strange else f"{name}.canary_size is not a whole number"
        raise UserError(what, advice="it may have canary_dataset, canary_size and training_alg; see audit.epsilon")
    canaries, audit = found.get("canary_dataset", "none"), _of(sections, "audit")
    if canaries in (None, "none"):
        audit.setdefault("data_size", found["canary_size"])
        place = "audit.data_size"
    else:
        own = str(_of(sections, "data").get("dataset"))
        if canaries != f"{own}_canary":
            raise UserError(f"{name}.canary_dataset {canaries!r} is unknown", advice=f"there are {own}_canary and none")
        sections["data"].setdefault("canaries", found["canary_size"])
        place = "data.canaries, records with a wrong label"
    audit.setdefault("epsilon", {})
    notes.append(f"{name} is audit.epsilon, the bound, and {place} here")
    algorithm = found.get("training_alg", "nondp")
    if algorithm not in ("dp", "nondp"):
        raise UserError(f"{name}.training_alg {algorithm!r} is unknown", advice="there are dp and nondp")
    if algorithm == "dp" and isinstance(sections.get("train"), dict):
        train = sections["train"]
        train.setdefault("countermeasure", DP_SGD)
        notes.append(
            f"{name}.training_alg dp is train.countermeasure {train['countermeasure']} (countermeasures/README.md)"
        )
        if isinstance(rate := train.get("learning_rate"), int | float):
            train["learning_rate"] = rate * ITS_FACTOR
            notes.append(
                f"train.learning_rate is {rate * ITS_FACTOR:g}: Privacy Meter's schedule takes a tenth of {rate:g}"
            )

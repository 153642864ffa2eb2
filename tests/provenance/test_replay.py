"""Somebody else's evidence: what a replay can show, what it says that it can't, and a forger's ways."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from networks import build_network
from provenance import evidence, replay
from provenance import record as records
from suspects import opened
from suspects.suspect import Answers
from tests.parts import user_error
from tests.provenance.drand import own_chain, sign
from tests.provenance.parts import QUERIES, bundle_parts, bundle_record, flat, judged, refused

pytestmark = pytest.mark.usefixtures("without_plots")

INPUT = ("--net_type", "smallnet", "--input_size", "32", "--mean", ".5", ".5", ".5", "--std", ".25", ".25", ".25")


@pytest.fixture
def bundle(tmp_path):
    """A bundle that does not exist yet, and eval.py --replay of it: bundle(parts, *flags) -> code, out, err."""
    return lambda *parts: written(tmp_path / "evidence.zip", *parts)


def written(path, document, *arrays):
    evidence.write_bundle(path, {name: value for name, value in document.items() if name != "format"}, *arrays)
    return path


# --- what the answers rest on is said first ---


def test_invented_answers_are_flagged_first_and_strict_fails(bundle, script):
    """1,000 invented answers were accepted with p = 0.00005, "bit for bit"."""
    path = bundle(*bundle_parts())
    done = script("eval", "--replay", path)
    first, *_ = done.out.splitlines()
    assert done.code == 0 and first.startswith("! nothing shows that the answers came from the file with SHA-256")
    assert "could have made them up" in flat(done.out) and "--checkpoint" in flat(done.out)
    assert script("eval", "--replay", path, "--strict").code == 1


def test_answers_of_a_made_up_server_are_flagged(bundle, script):
    record, parts = bundle_record(), bundle_parts()
    model = {"kind": "open inference protocol", "url": "https://model.example/v2/models/photos"}
    document = judged(record, parts[1], parts[3], model=model)
    done = script("eval", "--replay", bundle(document, *parts[1:]), "--strict")
    assert done.code == 1 and done.out.startswith("! nothing shows that the answers came from this server")
    assert "a neutral party has to run the audit" in flat(done.out)


def test_no_beacon_and_a_secret_from_a_number_are_flagged(bundle, script):
    done = script("eval", "--replay", bundle(*bundle_parts()))
    for sentence in ("used no public randomness", "drawn from a number", "rests on where it was posted"):
        assert sentence in flat(done.out)


# --- the model is asked again ---


@pytest.fixture(scope="module")
def audited(tmp_path_factory, world):
    """The record of the world's user, an innocent model, and its honest audit."""
    root = tmp_path_factory.mktemp("audited")
    torch.manual_seed(0)
    torch.save(build_network("smallnet", 4).state_dict(), root / "net.pt")
    torch.manual_seed(1)
    torch.save(build_network("smallnet", 4).state_dict(), root / "other.pt")
    record = shutil.copytree(world.record.parent, root / "record") / "record.json"
    return SimpleNamespace(root=root, record=record, originals=world.originals, net=root / "net.pt")


def opened_model(path):
    return opened.open_model(path, "smallnet", "cpu", overrides={"size": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3})


@pytest.fixture(scope="module")
def honest(audited):
    """(document, order, digests, answers) of the audit of the innocent model as it was committed."""
    from provenance import case

    planned = case.open_case(
        audited.record,
        [audited.originals],
        opened_model(audited.net),
        case.Options(alpha=0.01),
        folder=audited.root / "a",
    )
    planned.run()
    document, *rest = evidence.read_bundle(audited.root / "a" / "evidence.zip")
    assert document["result"]["p_value"] > 0.01
    return document, *rest


@pytest.fixture
def ask_again(audited, script, bundle):
    def run(parts, *flags, checkpoint=audited.net):
        found = ("--record", audited.record, "--originals", audited.originals, "--checkpoint", checkpoint)
        return script("eval", "--replay", bundle(*parts), *found, *INPUT, "--device", "cpu", *flags)

    return run


def test_the_right_model_gives_the_stored_answers(ask_again, honest, audited):
    done = ask_again(honest)
    assert done.code == 0, done.err
    assert f"{QUERIES} of {QUERIES} answers are the model's own" in done.out
    assert f"{QUERIES} of {QUERIES} are bit for bit those of record and originals" in done.out
    assert "nothing shows" not in done.out and f"{honest[0]['result']['p_value']:.6g}" in done.out


def test_another_model_is_refused_by_name(ask_again, honest, audited, world):
    refused(ask_again(honest, checkpoint=audited.root / "other.pt"), "not the model of this bundle", "SHA-256")
    renamed = shutil.copy(audited.net, audited.root / "renamed.pt")
    assert ask_again(honest, checkpoint=renamed).code == 0, "the same file under another name"


def test_the_model_fed_otherwise_is_refused_by_name(audited, script, bundle, honest):
    found = ("--record", audited.record, "--originals", audited.originals, "--checkpoint", audited.net)
    done = script("eval", "--replay", bundle(*honest), *found, *INPUT[:-3], ".5", ".5", ".5", "--device", "cpu")
    refused(done, "fed the model otherwise")


def test_asking_again_needs_the_record(audited, script, bundle, honest):
    done = script("eval", "--replay", bundle(*honest), "--checkpoint", audited.net, *INPUT, "--device", "cpu")
    refused(done, "--record")


def own_pairs(audited, order):
    """bool (queries,): the published photos under the own key, in the order asked."""
    photo, key = np.divmod(order, 5)
    return records.read_record(audited.record).published[photo] & (key == 0)


def forged(audited, honest, values):
    """The honest bundle with other answers, and the result that these give."""
    document, order, digests, *_ = honest
    record, answers = records.read_record(audited.record), Answers(values)
    changes = {"alpha": document["judgement"]["plan"]["alpha"]}
    made = judged(record, order, answers, 2, document["model"], plan=changes)
    made["preprocessing"] = document["preprocessing"]
    for entry in (made["judgement"], *made["log"]):
        entry["preprocessing"] = document["judgement"]["preprocessing"]
    return made, order, digests, answers


def invented(audited, honest):
    values = honest[3].values.copy()
    own = own_pairs(audited, honest[1])
    values[own] = [0, 0, 5, 0]
    values[~own] = [1, 1, 0, 1]
    return values


def a_few(audited, honest):
    """All but one answer of a hundred are honest: too few to be many, and enough to move p."""
    _, order, _, answers, _ = honest
    values, own = answers.values.copy(), np.flatnonzero(own_pairs(audited, order))
    # The surest of them, so that the verdict stays what it is, whatever the draw.
    values[own[values[own, 2].argmax()]] = [0, 0, 50, 0]
    return values


def within_rounding(audited, honest):
    """Every chance moved by less than what two processors may differ by: up where it serves, down elsewhere."""
    chances = torch.softmax(torch.tensor(honest[3].values).double(), dim=1).numpy()
    wanted = np.clip(chances[:, 2] + np.where(own_pairs(audited, honest[1]), 0.019, -0.019), 1e-6, 1 - 1e-6)
    chances *= ((1 - wanted) / (1 - chances[:, 2]))[:, None]
    chances[:, 2] = wanted
    return np.log(chances).astype(np.float32)


def test_invented_answers_are_not_the_models(ask_again, audited, honest):
    parts = forged(audited, honest, invented(audited, honest))
    assert parts[0]["result"]["p_value"] < 0.001
    done = ask_again(parts)
    assert done.code == 1 and f"0 of {QUERIES} answers are the model's own" in done.out
    assert "THE STORED ANSWERS ARE NOT THIS MODEL'S" in flat(done.out)
    assert "There is no proof" in flat(done.out), "the verdict is that of the model's own answers"


@pytest.mark.parametrize("missing", [1, 40])
def test_invented_answers_beside_missing_ones_are_all_counted(ask_again, audited, honest, missing):
    """One missing answer had made a replay count the missing ones alone."""
    values = invented(audited, honest)
    values[np.flatnonzero(~own_pairs(audited, honest[1]))[:missing]] = np.nan
    done = ask_again(forged(audited, honest, values))
    assert done.code == 1 and f"0 of {QUERIES} answers are the model's own" in done.out


def test_few_invented_answers_are_counted(ask_again, audited, honest, monkeypatch):
    """What may differ by rounding may not carry the verdict."""
    parts = forged(audited, honest, a_few(audited, honest))
    done = ask_again(parts)
    assert done.code == 1 and f"{QUERIES - 1} of {QUERIES} answers" in done.out
    monkeypatch.setattr(replay, "TOLERATED_SHARE", 0.1)
    parts[0]["result"]["detected"] = True
    done = ask_again(parts)
    refused(done, "differs elsewhere")


def test_answers_moved_within_rounding_do_not_carry_a_verdict(ask_again, audited, honest):
    parts = forged(audited, honest, within_rounding(audited, honest))
    claimed = parts[0]["result"]
    done = ask_again(parts)
    assert f"{QUERIES} of {QUERIES} answers are the model's own" in done.out
    assert f"give p = {honest[0]['result']['p_value']:.6g}" in flat(done.out)
    assert "There is no proof" in flat(done.out)
    assert (
        done.code == (1 if claimed["detected"] else 0) and ("THE VERDICT IS ANOTHER" in done.out) is claimed["detected"]
    )


def test_answers_beside_the_bundle_are_not_believed(ask_again, audited, honest, tmp_path):
    """A forger sends a folder along from which asking again would go on."""
    parts = forged(audited, honest, invented(audited, honest))
    for name in ("evidence-asked-again", "asked-again", "evidence"):
        shutil.copytree(audited.root / "a", tmp_path / name)
        log = evidence.AnswerLog(tmp_path / name, json.loads((tmp_path / name / "audit.json").read_text()))
        log.blocks.clear()
        (tmp_path / name / "answers.bin").unlink()
        log.add(0, parts[2], parts[3])
    done = ask_again(parts)
    assert done.code == 1 and f"0 of {QUERIES} answers are the model's own" in done.out


def test_questions_in_another_order_are_found(ask_again, audited, honest, script, bundle):
    """Who may say which answer belongs to which photo can have any p with honest answers."""
    document, order, digests, answers, _ = honest
    own, best = np.flatnonzero(own_pairs(audited, order)), np.argsort(-answers.values[:, 2])[:8]
    moved = order.copy()
    for place, other in zip(own, best, strict=True):
        place = int(np.flatnonzero(moved == order[place])[0])
        moved[[place, other]] = moved[[other, place]]
    made = judged(records.read_record(audited.record), moved, answers, 2, document["model"], plan={"alpha": 0.01})
    made["preprocessing"] = document["preprocessing"]
    for entry in (made["judgement"], *made["log"]):
        entry["preprocessing"] = document["judgement"]["preprocessing"]
    assert made["result"]["p_value"] < honest[0]["result"]["p_value"]
    path = bundle(made, moved, digests, answers)
    found = ("--record", audited.record, "--originals", audited.originals)
    done = script("eval", "--replay", path, *found)
    assert done.code == 1 and f"{QUERIES} of {QUERIES} are bit for bit" not in done.out
    refused(ask_again((made, moved, digests, answers)), "another order")


def test_a_class_by_its_name_is_the_bundles_word(bundle, script):
    """A label committed by name, and the class that pleases most put in its place after the draw."""
    record, parts = bundle_record("cat"), bundle_parts()
    document = {**judged(record, parts[1], parts[3], 2), "class_name": "cat"}
    done = script("eval", "--replay", bundle(document, *parts[1:]))
    assert done.code == 0 and "the plan's class 'cat' has the number 2 is the word of" in flat(done.out)
    refused(script("eval", "--replay", bundle({**document, "class_name": "dog"}, *parts[1:])), "the label")
    refused(script("eval", "--replay", bundle({**document, "class_name": None}, *parts[1:])), "the label")


@pytest.mark.parametrize("named", [("ant", "bee", "cat", "dog"), ("cat", "bee", "ant", "dog"), None])
def test_a_class_by_its_name_is_checked_with_the_model(audited, honest, named, bundle):
    record = records.read_record(audited.record)
    document = judged(record, honest[1], honest[3], 2, honest[0]["model"], plan={"label": "cat"})
    document.update(class_name="cat", preprocessing=honest[0]["preprocessing"])
    for entry in (document["judgement"], *document["log"]):
        entry["preprocessing"] = honest[0]["judgement"]["preprocessing"]
    suspect = opened_model(audited.net)
    suspect.class_names = named
    path = bundle(document, *honest[1:])

    def run():
        return replay.replay(path, audited.record, [audited.originals], suspect)

    if named and named[2] != "cat":
        user_error(run, "not what the model calls 'cat'")
    else:
        weak = " ".join(run().weaknesses)
        assert ("is the word of whoever made the bundle" in weak) is (named is None)


# --- the record that goes along ---


def test_another_record_and_other_marked_files_are_refused(audited, honest, bundle, script, tmp_path):
    found = ("--record", audited.record, "--originals", audited.originals)
    document = json.loads(json.dumps(honest[0]))
    document["record"]["batches"][0]["marked"][0] = "0" * 64
    refused(script("eval", "--replay", bundle(document, *honest[1:]), *found), "other marked files")


# --- the beacon and the date of the draw ---


def beacon_record(signature=None, number=1000):
    named = records.BeaconRound.of(own_chain(), number)
    base = bundle_record()
    record = records.commit_batch(
        records.new_record(base.settings),
        [photo.model_dump(include={"original", "original_sha256", "height", "width"}) for photo in base.photos],
        0.5,
        "in",
        "out",
        base.plan,
        named,
    )
    record = records.draw_batch(
        record, {photo.number: photo.original for photo in record.photos}, signature or sign(number).signature
    )
    return records.finish_batch(record, {photo.number: "0" * 64 for photo in record.photos if photo.published})


def beacon_parts(record):
    _, _, digests, answers = bundle_parts()
    from provenance.grid import query_order

    order = query_order(record, 50, "")
    return judged(record, order, answers), order, digests, answers


@pytest.fixture(scope="module")
def chain_file(tmp_path_factory):
    chain = own_chain()
    path = tmp_path_factory.mktemp("chain") / "chain.json"
    info = {"public_key": chain.public_key, "period": 3, "genesis_time": chain.genesis_time, "hash": chain.hash}
    path.write_text(
        json.dumps({**info, "groupHash": chain.group_hash, "beacon_id": chain.name, "scheme": chain.scheme})
    )
    return path


def test_a_beacon_nobody_knows_is_flagged_and_its_facts_may_be_given(bundle, script, chain_file):
    path = bundle(*beacon_parts(beacon_record()))
    done = script("eval", "--replay", path)
    assert done.code == 0 and "which this program does not know" in flat(done.out) and "--beacon_chain" in done.out
    done = script("eval", "--replay", path, "--beacon_chain", chain_file)
    assert done.code == 0 and "does not know" not in done.out and "no public randomness" not in done.out


def test_a_wrong_signature_is_refused_by_name(bundle, script, chain_file):
    """Each with a draw that follows from the wrong signature, as a forger would make it."""
    for signature in (sign(1001).signature, sign(1000, secret=77).signature, "c0" + "00" * 47, "0" * 96):
        path = bundle(*beacon_parts(beacon_record(signature)))
        refused(script("eval", "--replay", path, "--beacon_chain", chain_file), "beacon's signature", "round 1000")
    record = beacon_record()
    document, *rest = beacon_parts(record)
    document["record"]["batches"][0]["signature"] = None
    refused(script("eval", "--replay", bundle(document, *rest), "--beacon_chain", chain_file), "does not fit")


def test_a_round_without_a_date_is_refused(bundle, script):
    document, *rest = beacon_parts(beacon_record())
    for name, value in (("round", 2**62), ("genesis_time", 10**18), ("period", 10**15)):
        changed = json.loads(json.dumps(document))
        changed["record"]["batches"][0]["commit"]["beacon"][name] = value
        refused(script("eval", "--replay", bundle(changed, *rest)), "its round has no date")

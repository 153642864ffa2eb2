"""The log of answers and the evidence bundle: what is stored, resumed and replayed, and what a forger can't do."""

import io
import json
import time
import zipfile

import numpy as np
import pytest

from attacks import exact
from attacks.exact import AUTO
from provenance import evidence
from provenance.evidence import AnswerLog, check_document, read_bundle, write_bundle
from suspects.suspect import Answers
from tests.parts import user_error
from tests.provenance.parts import bundle_parts, bundle_record, copied

# --- the log of answers ---


def block(number, rows=3, classes=4):
    rng = np.random.default_rng(number)
    return (rng.integers(0, 256, (rows, 32), dtype=np.uint8), Answers(rng.normal(size=(rows, classes)).astype("f4")))


def filled(folder, count=3):
    log = AnswerLog(folder, {"model": "m", "keys": 3})
    for number in range(count):
        log.add(number, *block(number))
    return log


def same_block(one, other):
    return all(
        (left is None and right is None) or (left.tobytes() == right.tobytes() and left.shape == right.shape)
        for left, right in zip(
            (one[0], one[1].values, one[1].classes), (other[0], other[1].values, other[1].classes), strict=True
        )
    )


def test_the_log_keeps_every_form_of_answer(tmp_path):
    kinds = {
        5: block(5),
        1: (block(1)[0], Answers(None, np.array([[1], [2], [3]], np.int32))),
        3: (block(3)[0], Answers(block(3)[1].values, np.arange(12, dtype=np.int32).reshape(3, 4) - 1)),
    }
    log = AnswerLog(tmp_path / "log", {"model": "m"})
    for number, (digests, answers) in kinds.items():
        log.add(number, digests, answers)
    again = AnswerLog(tmp_path / "log", {"model": "m"})
    assert set(again.blocks) == {1, 3, 5} and all(same_block(again.blocks[n], kinds[n]) for n in kinds)
    user_error(again.collect, "shapes")


def test_answers_come_back_in_the_order_of_their_batches(tmp_path):
    log = AnswerLog(tmp_path / "log", {"model": "m"})
    for number in (2, 0, 1):
        log.add(number, *block(number, rows=1 if number == 2 else 3))
    digests, answers = AnswerLog(tmp_path / "log", {"model": "m"}).collect()
    expected = [block(0), block(1), block(2, rows=1)]
    assert (digests == np.concatenate([part[0] for part in expected])).all()
    assert (answers.values == np.concatenate([part[1].values for part in expected])).all() and len(answers) == 7


def test_a_torn_last_block_is_dropped_and_the_earlier_kept(tmp_path):
    filled(tmp_path / "log")
    path = tmp_path / "log" / "answers.bin"
    whole = path.read_bytes()
    size = len(whole) // 3
    for cut in [*range(2 * size, 3 * size, 7), 3 * size - 1]:
        path.write_bytes(whole[:cut])
        log = AnswerLog(tmp_path / "log", {"model": "m", "keys": 3})
        assert set(log.blocks) == {0, 1} and path.read_bytes() == whole[: 2 * size], cut
    log.add(2, *block(2))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("place", [0, 8, 12, 20, 30, 60, -1])
def test_a_damaged_block_is_never_believed(tmp_path, place):
    filled(tmp_path / "log")
    path = tmp_path / "log" / "answers.bin"
    content = bytearray(path.read_bytes())
    start = 2 * len(content) // 3
    content[start + place if place >= 0 else -1] ^= 0x40
    path.write_bytes(content)
    log = AnswerLog(tmp_path / "log", {"model": "m", "keys": 3})
    for number, found in log.blocks.items():
        assert number < 3 and same_block(found, block(number))
    assert {0, 1} <= set(log.blocks)


@pytest.mark.parametrize("place", [4, 5, 6])
def test_a_block_with_a_damaged_number_is_never_believed(tmp_path, place):
    """Block 2's answers would pass for those of another batch."""
    test_a_damaged_block_is_never_believed(tmp_path, place)


def test_other_settings_are_refused_by_name(tmp_path):
    filled(tmp_path / "log")
    before = {path.name: path.read_bytes() for path in (tmp_path / "log").iterdir()}
    message = user_error(lambda: AnswerLog(tmp_path / "log", {"model": "m", "keys": 4}), "keys is 3")
    assert "model" not in message.split(":", 1)[1].split(".")[0]
    user_error(lambda: AnswerLog(tmp_path / "log", {"model": "other", "keys": 3}), "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "log").iterdir()} == before
    (tmp_path / "log" / "audit.json").unlink()
    user_error(lambda: AnswerLog(tmp_path / "log", {"model": "m", "keys": 3}), "audit.json")


@pytest.mark.parametrize("name", ["fsync", "write"])
def test_no_half_block_after_an_exception(tmp_path, monkeypatch, name):
    """The disk is full in the middle of a block, and the audit goes on later in the same process."""
    log = filled(tmp_path / "log")
    path = tmp_path / "log" / "answers.bin"
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        if name == "fsync":
            patch.setattr(evidence.os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt()))
        else:
            real = open

            def opened(*arguments, **options):
                file = real(*arguments, **options)
                if "a" in arguments[1:2][0]:
                    write = file.write
                    fake = type(
                        "Full",
                        (),
                        {
                            "__getattr__": lambda _, name: getattr(file, name),
                            "__enter__": lambda self: self,
                            "__exit__": lambda *_: file.close(),
                            "write": lambda _, data: (write(data[:20]), file.flush(), fail()),
                        },
                    )
                    return fake()
                return file

            def fail():
                raise OSError(28, "No space left on device")

            patch.setattr(evidence, "open", opened, raising=False)
        with pytest.raises((KeyboardInterrupt, OSError)):
            log.add(3, *block(3))
    assert path.read_bytes() == before and 3 not in log.blocks
    log.add(3, *block(3))
    assert set(AnswerLog(tmp_path / "log", {"model": "m", "keys": 3}).blocks) == {0, 1, 2, 3}


# --- the bundle ---


@pytest.mark.parametrize("kind", ["logits", "labels", "holes"])
def test_a_bundle_comes_back_as_it_went(tmp_path, kind):
    document, order, digests, answers = bundle_parts(kind)
    write_bundle(tmp_path / "e.zip", document, order, digests, answers)
    back, other_order, other_digests, other, _ = read_bundle(tmp_path / "e.zip")
    assert {name: back[name] for name in document} == copied(document)
    assert (order == other_order).all() and (digests == other_digests).all()
    for one, two in ((answers.values, other.values), (answers.classes, other.classes)):
        assert (one is None and two is None) or (one.tobytes() == two.tobytes() and one.dtype == two.dtype)
    checked = check_document(back, other, "x")
    assert checked.judgement.model_dump(mode="json") == document["judgement"] and checked.label == document["label"]
    assert (checked.record.selections(5) == bundle_record().selections(5)).all()
    assert checked.record.commitments == bundle_record().commitments and checked.record.sizes == [(10, 5)]


def test_a_bundle_has_the_same_bytes_at_any_time(tmp_path, monkeypatch):
    parts = bundle_parts()
    write_bundle(tmp_path / "a.zip", *parts)
    now, local = time.time(), time.localtime
    monkeypatch.setattr(time, "time", lambda: now + 1e6)
    monkeypatch.setattr(time, "localtime", lambda *_: local(now + 1e6))
    write_bundle(tmp_path / "b.zip", *parts)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_bundle_holds_no_key_of_the_marks(tmp_path):
    parts = bundle_parts()
    write_bundle(tmp_path / "e.zip", *parts)
    with zipfile.ZipFile(tmp_path / "e.zip") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    (batch,) = bundle_record().batches
    for secret in (bytes.fromhex(batch.secret), batch.secrets[0], *(key for (key,) in bundle_record().keys(4))):
        assert secret.hex().encode() not in content and secret not in content
    assert batch.secrets[1].hex().encode() in content, "this is what the selections are drawn with"
    assert b"0.png" not in content


@pytest.fixture
def replay(script, tmp_path):
    def run(document, order, digests, answers, *flags):
        write_bundle(tmp_path / "e.zip", document, order, digests, answers)
        return script("eval", "--replay", tmp_path / "e.zip", *flags)

    return run


def refused(done, *words):
    assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1, (done.out, done.err)
    assert all(word in done.err for word in words), done.err


@pytest.mark.parametrize("kind,label", [("logits", AUTO), ("logits", 2), ("labels", AUTO), ("holes", AUTO)])
def test_replay_finds_the_same_p(replay, tmp_path, kind, label):
    parts = bundle_parts(kind, label)
    done = replay(*parts, "--out", tmp_path / "again")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "again" / "result.json").read_text())
    assert result["p_value"] == parts[0]["result"]["p_value"] < 0.3
    assert parts[0]["result"]["sentences"] in " ".join(done.out.split())
    assert result["statistic"] == parts[0]["result"]["statistic"]
    assert result["missing"] == (3 if kind == "holes" else 0) and f"{result['missing']} of them missing" in done.out


def tampered(change):
    document, order, digests, answers = bundle_parts()
    document = copied(document)
    values = answers.values.copy()
    order = order.copy()
    order, values = change(document, order, values) or (order, values)
    return document, order, digests, Answers(values)


def set_in(*path):
    def change(document, order, values):
        part = document
        for name in path[:-2]:
            part = part[name]
        part[path[-2]] = path[-1]

    return change


def shuffle_own(document, order, values):
    values[order % 5 == 0] = -values[order % 5 == 0]


BATCH, COMMIT = ("record", "batches", 0), ("record", "batches", 0, "commit")
NOT_THE_COMMITMENT = {
    "settings": set_in(*COMMIT, "settings", "noise_norm", 4.0),
    "evidence": set_in(*COMMIT, "evidence", True),
    "created": set_in(*COMMIT, "created", "another day"),
    "published": set_in(*COMMIT, "published", 4),
    "photos": set_in(*COMMIT, "photos", 11),
    "originals' digest": set_in(*COMMIT, "originals_sha256", "0" * 64),
    "an original": set_in(*BATCH, "originals", 0, "0" * 64),
    "originals reversed": lambda document, *_: document["record"]["batches"][0]["originals"].reverse(),
    "an original less": lambda document, *_: document["record"]["batches"][0]["originals"].pop() and None,
    "marks": set_in(*COMMIT, "marks_sha256", "0" * 64),
    "selections": set_in(*COMMIT, "selections_sha256", "0" * 64),
    "secret": set_in(*BATCH, "selections_secret", "ab" * 32),
    "plan's alpha": set_in(*COMMIT, "plan", "alpha", 0.5),
    "plan's label": set_in(*COMMIT, "plan", "label", "1"),
    "plan's keys": set_in(*COMMIT, "plan", "keys", 9),
    "previous": set_in(*COMMIT, "previous", ["0" * 64]),
    "redrawn": set_in(*COMMIT, "redrawn", ["0" * 64]),
    "signature": set_in(*BATCH, "signature", "0" * 96),
    "groups": set_in(*COMMIT, "groups", [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
    "no marked": set_in(*BATCH, "marked", []),
    "more batches": lambda document, *_: document["record"]["batches"].append(document["record"]["batches"][0]),
}


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in NOT_THE_COMMITMENT.items()])
def test_tampering_with_what_was_committed_is_noticed(replay, change):
    """It does not fit the commitment, or the commitment is another than the plan's, or p is another."""
    refused(replay(*tampered(change)))


@pytest.mark.parametrize(
    "change",
    [
        set_in("result", "p_value", 1e-5),
        set_in("result", "statistic", 0.0),
        set_in("result", "detected", False),
        set_in("result", "sentences", "Proven."),
        set_in("result", "label", 0),
        set_in("result", "missing", 1),
        set_in("result", "key_p_value", 0.4),
        set_in("result", "refusal_p_value", 0.001),
        set_in("result", "more", 1),
        lambda document, *_: document["result"].pop("key_p_value") and None,
        lambda document, *_: document.update(compared=["photos"]) or document["result"].update(p_value=1e-5),
        lambda document, *_: document["log"][0].update(p_value=0.5) or document["judgement"].update(p_value=0.5),
        shuffle_own,
        lambda document, order, values: (np.roll(order, 7), values),
        lambda document, order, values: values.__setitem__((slice(None), 0), values[:, 0] - 1e-3),
    ],
)
def test_tampering_with_result_and_answers_is_noticed(replay, change):
    """What changes T changes p, and what changes the verdict is not what the answers give."""
    refused(replay(*tampered(change)), "somebody changed it")


def with_log(**changes):
    """The judgement of the bundle and of its log, changed alike."""

    def change(document, order, values):
        for entry in (document["judgement"], document["log"][0]):
            plan = changes.get("plan", {})
            entry.update({**changes, "plan": {**entry["plan"], **plan}})

    return change


PLAN = {
    "label": (set_in("label", 1), "the label"),
    "auto as label": (with_log(plan={"label": "2"}), "alpha"),
    "another log": (set_in("log", 0, "alpha", 0.4), "not in its log"),
    "no log": (set_in("log", []), "not in its log"),
    "another judgement": (set_in("judgement", "begun", "long ago"), "not in its log"),
    "alpha": (with_log(alpha=0.3), "alpha"),
    "plan's alpha": (with_log(plan={"alpha": 0.5}, alpha=0.25), "alpha"),
    "seed": (set_in("judgement", "plan", "audit_seed", "other side"), "not in its log"),
    "selections": (with_log(plan={"selections": 98}), "alpha"),
    "keys": (with_log(plan={"keys": 9}), "alpha"),
    "answers used": (with_log(plan={"answers": "label only"}), "alpha"),
    "statistic": (with_log(plan={"statistic": "the mean; version 9"}), "statistic"),
    "views": (with_log(plan={"views": 2}), "alpha"),
    "references": (with_log(plan={"references": ["ab" * 32]}), "alpha"),
    "number": (with_log(number=2, alpha=0.025), "judgement 1"),
    "departures": (with_log(departures=["nothing"]), "alpha"),
    "commitments": (with_log(commitments=["0" * 64]), "commitments"),
    "no commitments": (with_log(commitments=[]), "judgement 1"),
    "thousands of commitments": (with_log(commitments=["0" * 64] * 3000, number=3000), "commitments"),
    "left out": (with_log(left_out=[3]), "the number of answers"),
    "left out, far": (with_log(left_out=[-1, 10]), "what was left out"),
    "model": (set_in("model", "sha256", "0" * 64), "the model"),
    "model in the log": (with_log(model={"kind": "another"}), "the model"),
    "classes": (set_in("classes", 3), "the model"),
    "preprocessing": (set_in("preprocessing", "resize", 64), "model's input"),
    "its source": (set_in("preprocessing", "source", "onnx"), "model's input"),
}


@pytest.mark.parametrize("change,word", [pytest.param(*change, id=name) for name, change in PLAN.items()])
def test_tampering_with_the_plan_is_noticed(replay, change, word):
    refused(replay(*tampered(change)), word, "somebody changed it")


def with_values(value):
    def change(document, order, values):
        values[3, 1] = value

    return change


HOSTILE = {
    "no judgement": (set_in("judgement", None)),
    "no log": (set_in("log", None)),
    "a log of texts": (set_in("log", ["entry"])),
    "a list": (set_in("record", [])),
    "no batches": (set_in("record", "batches", [])),
    "batches as text": (set_in("record", "batches", "none")),
    "null batches": (set_in("record", "batches", None)),
    "batches of nothing": (set_in("record", "batches", [None])),
    "negative keys": (with_log(plan={"keys": -1})),
    "no class": (set_in("label", "cat")),
    "true as class": (set_in("label", True)),
    "negative class": (set_in("label", -1)),
    "odd secret": (set_in(*BATCH, "selections_secret", "abc")),
    "secret no text": (set_in(*BATCH, "selections_secret", 5)),
    "huge": (with_log(plan={"selections": 10**12})),
    "no result": (lambda document, *_: document.pop("result") and None),
    "result no dict": (set_in("result", [])),
    "alpha no number": (with_log(alpha="x")),
    "alpha null": (with_log(alpha=None)),
    "number huge": (with_log(number=10**12)),
    "top_k no number": (with_log(plan={"top_k": "x"})),
    "top_k 0": (with_log(plan={"top_k": 0})),
    "audit seed": (with_log(plan={"audit_seed": 0.5})),
    "label no text": (with_log(plan={"label": ["2"]})),
    "classes 0": (set_in("classes", 0)),
    "classes 2**40": (set_in("classes", 2**40)),
    "model no dict": (set_in("model", "m")),
    "digest no text": (lambda document, *rest: [change(document, *rest) for change in ODD_MODEL] and None),
    "size": (set_in("preprocessing", "size", [10**9, 1])),
    "size no number": (set_in("preprocessing", "size", "32")),
    "white": (set_in("preprocessing", "white", "x")),
    "resize": (set_in("preprocessing", "resize", 10**9)),
    "mean": (set_in("preprocessing", "mean", [0.5])),
    "std 0": (set_in("preprocessing", "std", [0.5, 0.5, 0.0])),
    "interpolation": (set_in("preprocessing", "interpolation", [])),
    "more preprocessing": (set_in("preprocessing", "more", 1)),
    "form": (set_in("preprocessing", "form", {"input": "x"})),
    "form no text": (set_in("preprocessing", "form", "x")),
    "groups": (set_in(*COMMIT, "groups", [10**12] * 10)),
    "stamp no base64": (set_in(*BATCH, "timestamp", "\u00e9")),
    "publications": (set_in("publications", [1])),
    "NaN": (with_values(np.nan)),
    "infinite": (with_values(np.inf)),
}
ODD_MODEL = (set_in("model", "sha256", 5), with_log(model={"kind": "test", "sha256": 5, "classes": 4}))


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in HOSTILE.items()])
def test_hostile_documents_end_in_one_line(replay, change):
    """Or, where nothing but what is said about it is odd, in a verdict that says so."""
    done = replay(*tampered(change), "--strict")
    if done.code == 1:
        assert "Traceback" not in done.err and done.out.startswith("! ")
    else:
        refused(done)


def test_hostile_text_does_not_reach_the_terminal(replay):
    """What would hide the red lines, or paint others, is shown without it."""
    hidden = "\x1b[8m\x1b[2J"
    document, *rest = tampered(lambda *_: None)
    judgement = {**document["judgement"], "model": {"kind": "test", "sha256": hidden * 4, "classes": 4}}
    document.update(judgement=judgement, log=[judgement], model=judgement["model"])
    done = replay(document, *rest)
    assert done.code == 0 and "\x1b" not in done.out and "nothing shows that the answers came from" in done.out
    document["result"]["p_value"] = hidden
    done = replay(document, *rest)
    refused(done)
    assert "\x1b" not in done.err


def test_a_bundle_without_its_model(replay, tmp_path):
    refused(replay(*tampered(lambda document, *_: document.pop("model") and None), "--out", tmp_path / "again"))


def npy(header, data=b""):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def arrays_with(**changes):
    """answers.npz of a good bundle, with other members."""
    _, order, digests, answers = bundle_parts()
    members = {}
    for name, array in {"order": order, "digests": digests, "values": answers.values, **changes}.items():
        if isinstance(array, bytes):
            members[f"{name}.npy"] = array
        elif array is not None:
            file = io.BytesIO()
            np.save(file, array, allow_pickle=True)
            members[f"{name}.npy"] = file.getvalue()
    return zipped(members)


def document_bytes():
    return json.dumps({"format": evidence.BUNDLE_FORMAT, **bundle_parts()[0]}).encode()


def hostile_bundles():
    good = document_bytes()
    fifty = np.arange(50)
    claim = npy("{'descr': '<f8', 'fortran_order': False, 'shape': (50, 100000000000), }", b"\0" * 64)
    yield "empty", b""
    yield "text", b"evidence"
    yield "no members", zipped({})
    yield "no answers", zipped({"bundle.json": good})
    yield "no document", zipped({"answers.npz": arrays_with()})
    yield "list", zipped({"bundle.json": b"[]", "answers.npz": arrays_with()})
    yield "deep", zipped({"bundle.json": b"[" * 200_000, "answers.npz": arrays_with()})
    yield "no format", zipped({"bundle.json": b"{}", "answers.npz": arrays_with()})
    yield "names with paths", zipped({"../bundle.json": good, "/answers.npz": arrays_with()})
    yield "truncated", zipped({"bundle.json": good, "answers.npz": arrays_with()})[:-300]
    label = np.zeros((50, 1), np.int32)
    cases = [  # name, member, array
        ("pickle", "values", np.array([[{}]] * 50, dtype=object)),
        ("floats", "order", fifty + 0.5),
        ("twice", "order", np.zeros(50, int)),
        ("short", "order", fifty[:49]),
        ("no digests", "digests", None),
        ("no values", "values", None),
        ("no npy", "values", b"abc"),
        ("flat", "values", np.zeros(50, "f4")),
        ("digests", "digests", np.zeros((50, 31), np.uint8)),
        ("claims 40 TB", "values", claim),
        ("words", "values", np.array([["a", "b"]] * 50)),
        ("no columns", "values", np.zeros((50, 0), "f4")),
        ("class -2", "classes", label - 2),
        ("class 2**31", "classes", label + (2**31 - 1)),
        ("two labels", "classes", np.zeros((50, 2), np.int32)),
        ("half classes", "classes", label + 0.5),
    ]
    for name, member, array in cases:
        arrays = arrays_with(**{"values": None, member: array} if member == "classes" else {member: array})
        yield name, zipped({"bundle.json": good, "answers.npz": arrays})


@pytest.mark.parametrize("content", [pytest.param(content, id=name) for name, content in hostile_bundles()])
def test_hostile_bundles_end_in_user_error(script, tmp_path, content):
    (tmp_path / "e.zip").write_bytes(content)
    refused(script("eval", "--replay", tmp_path / "e.zip"), "e.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["e.zip"]


def test_a_bundle_that_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "MAX_BUNDLE_BYTES", 1 << 20)
    good = document_bytes()
    (tmp_path / "outer.zip").write_bytes(zipped({"bundle.json": good, "answers.npz": bytes(1 << 21)}))
    user_error(lambda: read_bundle(tmp_path / "outer.zip"), "unpacks")
    inner = arrays_with(values=np.zeros((50, 10_000), np.float32))
    (tmp_path / "inner.zip").write_bytes(zipped({"bundle.json": good, "answers.npz": inner}))
    user_error(lambda: read_bundle(tmp_path / "inner.zip"), "claim")
    user_error(lambda: read_bundle(tmp_path / "missing.zip"), "does not exist")
    user_error(lambda: read_bundle(tmp_path), str(tmp_path))


def test_score_is_monotone():
    """Whatever the statistic, a surer answer must never count as less sure."""
    losses = np.linspace(0, 90, 1000)
    assert (np.diff(exact.score(-losses)) > 0).all() and exact.score(np.array([1e-12]))[0] == 0

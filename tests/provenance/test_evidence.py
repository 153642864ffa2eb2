"""The log of answers and the evidence bundle: what is stored, resumed and replayed, and what a forger can't do."""

import io
import json
import time
import zipfile

import numpy as np
import pytest

from attacks import exact
from attacks.exact import AUTO
from kit import environment, files
from provenance import evidence
from provenance import grid as user_audit
from provenance import record as records
from provenance.evidence import AnswerLog, check_document, read_bundle, write_bundle
from suspects.suspect import Answers
from tests.parts import user_error
from tests.provenance.parts import make_record

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


def bundle_parts(kind="logits", label=AUTO):
    """(document, order, digests, answers) of an audit in which nearly everything speaks for the user."""
    record = make_record((10, 0.5))
    audit = {
        "keys": 4,
        "selections": 99,
        "alpha": 0.01,
        "audit_seed": "",
        "label": label,
        "label_only": False,
        "top_k": None,
    }
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(10, 5, 4)).astype(np.float32)
    logits[np.flatnonzero(record.published), 0, 2] += 2.5
    order = user_audit.query_order(record, 50, "")
    answers = Answers(logits.reshape(-1, 4)[order])
    if kind == "labels":
        answers = Answers(None, answers.values.argmax(axis=1)[:, None].astype(np.int32))
    digests = rng.integers(0, 256, (50, 32), dtype=np.uint8)
    result, _, _ = user_audit.judge(record.batches, record.selection_key, audit, order, answers, 4)
    document = {
        "record": records.public_part(record, 1),
        "commitment": record.commitments[-1],
        "selection_key": record.selection_key,
        "audit": audit,
        "classes": 4,
        "model": {"name": "m"},
        "preprocessing": {},
        "result": result,
        "versions": environment.software_versions(),
    }
    return document, order, digests, answers


def copied(document):
    return json.loads(json.dumps(document))


@pytest.mark.parametrize("kind", ["logits", "labels"])
def test_a_bundle_comes_back_as_it_went(tmp_path, kind):
    document, order, digests, answers = bundle_parts(kind)
    write_bundle(tmp_path / "e.zip", document, order, digests, answers)
    back, other_order, other_digests, other = read_bundle(tmp_path / "e.zip")
    assert {name: back[name] for name in document} == copied(document)
    assert (order == other_order).all() and (digests == other_digests).all()
    for one, two in ((answers.values, other.values), (answers.classes, other.classes)):
        assert (one is None and two is None) or (one.tobytes() == two.tobytes() and one.dtype == two.dtype)
    assert check_document(back, len(answers), "x") == (copied(document["record"]), document["audit"])


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
    record = make_record((10, 0.5))
    assert record.key.encode() not in content and bytes.fromhex(record.key) not in content
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


@pytest.mark.parametrize("kind,label", [("logits", AUTO), ("logits", 2), ("labels", AUTO)])
def test_replay_finds_the_same_p(replay, tmp_path, kind, label):
    parts = bundle_parts(kind, label)
    done = replay(*parts, "--out", tmp_path / "again")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "again" / "result.json").read_text())
    assert result["p_value"] == parts[0]["result"]["p_value"] < 0.2
    assert parts[0]["result"]["sentences"] in " ".join(done.out.split())
    assert result["statistic"] == parts[0]["result"]["statistic"]


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


@pytest.mark.parametrize(
    "change",
    [
        set_in("result", "p_value", 1e-5),
        set_in("selection_key", "ab" * 32),
        set_in("commitment", "0" * 64),
        set_in("record", "settings", "noise_norm", 4.0),
        set_in("record", "evidence", True),
        set_in("record", "software", "torch", "0"),
        set_in("record", "batches", 0, "published", 4),
        set_in("record", "batches", 0, "photos", 11),
        set_in("record", "secret_sha256", "0" * 64),
        set_in("record", "selection_key_sha256", "0" * 64),
        set_in("audit", "label", 1),
        set_in("audit", "audit_seed", "other side"),
        set_in("audit", "selections", 98),
        shuffle_own,
        lambda document, order, values: (np.roll(order, 7), values),
    ],
    ids=lambda change: (
        getattr(change, "__name__", "")
        + str(getattr(change, "__closure__", "") and change.__closure__[0].cell_contents)
    ),
)
def test_tampering_is_noticed(replay, change):
    """What changes the public part does not fit the commitment, what changes T changes p."""
    refused(replay(*tampered(change)))


@pytest.mark.parametrize(
    "change",
    [
        set_in("result", "statistic", 0.0),
        set_in("result", "detected", True),
        set_in("result", "sentences", "Proven."),
        set_in("audit", "alpha", 0.5),
        set_in("result", "label", 0),
        lambda document, order, values: values.__setitem__((slice(None), 0), values[:, 0] - 1e-3),
    ],
    ids=["statistic", "detected", "sentences", "alpha", "label", "answers"],
)
def test_tampering_that_leaves_p_is_noticed(replay, change):
    refused(replay(*tampered(change)))


def recommitted(document):
    document["commitment"] = files.canonical_digest(document["record"])


def forged_batches(*batches):
    def change(document, order, values):
        document["record"]["batches"] = [{"created": "", "photos": p, "published": s} for p, s in batches]
        recommitted(document)

    return change


def with_values(value):
    def change(document, order, values):
        values[3, 1] = value

    return change


HOSTILE = {
    "no audit": (set_in("audit", None)),
    "a list": (set_in("record", [])),
    "negative keys": (set_in("audit", "keys", -1)),
    "no class": (set_in("audit", "label", "cat")),
    "true as class": (set_in("audit", "label", True)),
    "odd key": (set_in("selection_key", "abc")),
    "key no text": (set_in("selection_key", 5)),
    "huge": (set_in("audit", "selections", 10**12)),
    "no result": (lambda document, *_: document.pop("result") and None),
    "result no dict": (set_in("result", [])),
    "alpha no number": (set_in("audit", "alpha", "x")),
    "alpha null": (set_in("audit", "alpha", None)),
    "top_k no number": (set_in("audit", "top_k", "x")),
    "top_k 0": (set_in("audit", "top_k", 0)),
    "audit seed": (set_in("audit", "audit_seed", 0.5)),
    "more photos": (forged_batches((11, 5))),
    "photos that fit by chance": (forged_batches((5, 2))),
    "NaN": (with_values(np.nan)),
    "infinite": (with_values(np.inf)),
    "keys": set_in("audit", "keys", 9),
}


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in HOSTILE.items()])
def test_hostile_documents_end_in_user_error(replay, change):
    refused(replay(*tampered(change)))


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

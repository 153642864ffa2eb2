"""eval.py's command line: apart what belongs to a person's record and what to a run of train.py."""

import importlib

import pytest

from tests.parts import SMALL


@pytest.fixture(scope="module")
def groups():
    """{title: argparse group} of eval.py."""
    parser = importlib.import_module("eval").make_parser()
    return {group.title: group for group in parser._action_groups if group._group_actions}


def flags_of(group):
    return {option for action in group._group_actions for option in action.option_strings}


def test_help_shows_records_runs_models_and_evidence_apart(groups):
    assert list(groups)[1:] == ["audit of a record", "check of evidence", "model under audit", "audit of a run"]
    assert {"--record", "--originals", "--label", "--keys", "--alpha"} <= flags_of(groups["audit of a record"])
    assert {"--replay", "--strict"} <= flags_of(groups["check of evidence"])
    assert {"--checkpoint", "--net_type", "--mean", "--query_batch"} <= flags_of(groups["model under audit"])
    assert {"--lr", "--batch_size", "--target_user_cls", "--instance_mi"} <= flags_of(groups["audit of a run"])
    # A photographer reads one screen, and not 70 flags.
    assert len(groups["audit of a record"]._group_actions) <= 20


def test_words_of_photographers_in_the_help_for_records(groups):
    text = " ".join(action.help for action in groups["audit of a record"]._group_actions)
    assert "other patterns to compare with" in text and "other halves of the photos" in text
    for word in ("out-world", "logit", "nonce", "hypothesis", "statistic"):
        assert word not in text


RECORD = ("--record", "record.json", "--checkpoint", "model.onnx")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((*RECORD, "--batch_size", 16), ("--batch_size", "use --query_batch")),
        ((*RECORD, "--exact_keys", 9), ("--exact_keys", "use --keys")),
        ((*RECORD, "--lr", 0.1), ("--lr is for runs of train.py", "leave it out")),
        ((*RECORD, "--noise_norm", 4), ("--noise_norm", "the record knows how its photos were marked")),
        ((*RECORD, "--save_tag", "mine"), ("--save_tag is for runs",)),
        (("--replay", "evidence.zip", "--batch_size", 16), ("use --query_batch",)),
        (("--replay", "evidence.zip", "--caption", "dog"), ("--caption is for an audit", "the evidence says")),
        (("--replay", "evidence.zip", "--dry_run"), ("--dry_run is for an audit",)),
        (("--checkpoint", "run", "--label", 3), ("--label is for the audit of a record", "--record")),
        (("--checkpoint", "run", "--originals", "photos"), ("--originals", "--record")),
    ],
)
def test_a_flag_of_the_other_audit_is_refused_and_the_right_one_named(script, flags, words):
    """Before: it was ignored without a word."""
    done = script("eval", *flags)
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert all(word in done.err for word in words), done.err


def test_flags_of_both_audits_are_taken_for_either(script):
    done = script("eval", *RECORD, "--num_of_non_member_user", 50, "--dataset", "photos", "--out", "x")
    assert done.code == 2 and "record.json" in done.err
    done = script("eval", *SMALL, "--checkpoint", "nowhere")
    assert done.code == 2 and "nowhere" in done.err

"""The tab Protect: photos in; a commitment to post, what to publish and the private record out.

Public: build.
"""

import secrets
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import gradio as gr
import numpy as np
import torch

from attacks import exact
from kit.errors import UserError
from kit.files import read_json
from kit.markup import element, join
from kit.names import AS_IT_IS
from kit.web import check_address
from page import look
from page.desk import DAY, typed_path, write_zip
from page.jobs import reason
from page.panel import Panel
from page.tabs import inputs, marking, power
from provenance import beacon, commit, disclosed, protect
from provenance import record as records
from provenance import references as references_of
from provenance.folder import inspect_folder
from provenance.photos import find_photos
from provenance.plan import MOST_REFERENCES, AuditPlan

MOST_NAMES = 500  # in the list of photos to preview
KEEP = (
    "Keep the private record and your unmarked photos where nobody else gets them. Without both nothing can ever "
    "be proven; whoever has the record could remove the proof. Never publish the record, the held-out photos, or "
    "the unmarked originals of what you publish."
)
KEEP_UNMARKED = (
    "Keep the private record, and the files of all photos, where nobody else gets them: which half was published is "
    "the only secret, and without the record nothing can ever be proven. Never publish the record or the held-out "
    "photos."
)
# What was done to photos without a mark, by their format.
UNMARKED = {
    AS_IT_IS: "these are the very files, with their metadata",
    "png": "no pixel was changed, and the metadata was left out",
    "jpeg": "the files were written anew as JPEG, without their metadata",
}
POST = (
    "Post this number now, where its date can be checked later: a public post, or an e-mail to several people. It has "
    "to be older than the draw, it shows that nothing was chosen afterwards, and it reveals nothing."
)
POSTED = (
    "It had to be posted before the draw. If it was not, post it now, before you publish anything: it is worth less "
    "then, since whoever posts later may have drawn several times."
)
# Fields for what a job lacks: {flag: (name, what it says)}.
ASKED = {
    "--beacon": (
        "Round of the public randomness",
        "What the address above shows, or ROUND:SIGNATURE. Then press “Go on”. Empty: the network is tried again.",
    ),
    "--timestamp": ("Time-stamp address", "Another one, then “Go on”. Empty: without a time stamp."),
}


def build(desk):
    """Fill the tab; returns the Panel of its jobs."""
    gr.HTML(
        look.shown(
            element(
                "p",
                "Mark photos before you publish them. If somebody trains a model on the marked "
                "photos, the tab Check can prove it later. Your photos stay on this computer and "
                "are never changed: marked copies are made.",
            )
        )
    )
    draft = gr.State(None, time_to_live=DAY, delete_callback=lambda draft: desk.discard(draft and draft["own"]))
    files = gr.File(label="Photos, or a zip of them", file_count="multiple", height=160, elem_id="protect-files")
    folder = gr.Textbox(label="Or a folder on this computer", placeholder="/home/me/photos", max_lines=1)
    found = gr.HTML(elem_id="protect-found")
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            photo = gr.Dropdown([], label="Photo to preview", interactive=True)
            preview = gr.HTML(marking.NO_PREVIEW, elem_id="protect-preview")
        with gr.Column(scale=1, min_width=280):
            chosen = marking.fields()
    proves = gr.HTML(elem_id="protect-proves")
    summary, tables = marking.costs("clear", 0.7, 8)
    with gr.Accordion("What these choices cost in detection power: figures and their sources", open=False):
        cost = gr.HTML(summary, elem_id="protect-cost")
        figures = gr.HTML(tables, elem_id="protect-figures")
    start = gr.Button(marking.BUTTON[True], variant="primary")
    refused = gr.HTML()
    panel = Panel(
        desk,
        "protected",
        "Photos marked on this computer",
        "Nothing has been marked yet.",
        _result,
        lambda job, pasted, stamp: _go_on(desk, job, pasted, stamp),
        tell=_told,
        asked=ASKED,
        spare=lambda job: not _begun(job).exists(),
    )

    def take(*values):
        return _take(desk, *values)

    def begin(request: gr.Request, draft, files, folder, *values):
        return _begin(desk, panel, request, draft, _source(files, folder), dict(zip(chosen, values, strict=True)))

    look_again = {
        "fn": marking.preview,
        "outputs": preview,
        "inputs": [draft, photo, *(chosen[name] for name in marking.VISIBLE)],
        **look.QUIETLY,
    }
    weigh = {
        "fn": _proves,
        "inputs": [draft, chosen["holdout"], chosen["visibility"]],
        "outputs": proves,
        **look.QUIETLY,
    }
    for event in (files.change, folder.submit, folder.blur):
        taken = event(take, [files, folder, draft], [draft, found, photo], **look.ASKED)
        taken.then(**look_again)
        taken.then(**weigh)
    for control in (chosen["holdout"], chosen["visibility"]):
        control.change(**weigh)
    chosen["visibility"].change(
        lambda visibility: (*marking.following(visibility), gr.update(value=marking.BUTTON[visibility != "none"])),
        chosen["visibility"],
        [*(chosen[name] for name in marking.FOLLOWING), start],
        **look.QUIETLY,
    )
    for control in (photo, *(chosen[name] for name in marking.VISIBLE)):
        control.change(trigger_mode="always_last", **look_again)
    strength = [chosen[name] for name in ("visibility", "img_blending_ratio", "noise_norm")]
    gr.on(
        [control.change for control in strength],
        marking.costs,
        strength,
        [cost, figures],
        trigger_mode="always_last",
        **look.QUIETLY,
    )
    start.click(begin, [draft, files, folder, *chosen.values()], [refused, *panel.outputs], **look.QUIETLY)
    return panel


def _proves(draft, holdout, visibility):
    """What the photos that were handed in can prove; nothing before there are some."""
    return look.shown(power.of_photos(draft["count"], holdout, visibility != "none")) if draft else ""


def _source(files, folder):
    """What is filled in, to be compared."""
    return tuple(files or ()), (folder or "").strip()


def _take(desk, files, folder, draft):
    """(draft, what was found, names to preview) for the files or the folder that was handed in.

    draft: None, or a dict: source (of the fields), folder (of the photos), own (a draft of the desk, or None), title,
    count (of the photos).
    """
    source = _source(files, folder)
    if draft is not None and draft["source"] == source:
        return draft, gr.skip(), gr.skip()
    desk.discard(draft and draft["own"])
    nothing = gr.update(choices=[], value=None)
    if not any(source):
        return None, "", nothing
    try:
        if all(source):
            raise UserError("There are dropped files and a folder", advice="empty one of the two.")
        own = desk.receive(desk.draft(), source[0]) if source[0] else None
        place = own.photos if own else typed_path(source[1])
        names, unread, ignored = find_photos(place)
    except Exception as error:
        return None, look.shown(look.failed(reason(error))), nothing
    unread = [*(own.problems if own else []), *unread]
    words = (
        f"{len(names):,} photo{'' if len(names) == 1 else 's'} found"
        + (f", {len(ignored)} other file{'' if len(ignored) == 1 else 's'} left out" if ignored else "")
        + "."
    )
    first = Path(source[0][0]) if source[0] else place
    title = first.stem if len(source[0]) == 1 or not own else f"{first.stem} and {len(source[0]) - 1} more files"
    kept = {"folder": place, "own": own, "source": source, "title": title, "count": len(names)}
    text = look.shown(element("p", words, role="status"), look.problems("Not taken:", unread))
    return kept, text, gr.update(choices=names[:MOST_NAMES], value=names[0] if names else None)


def _begin(desk, panel, request, draft, source, chosen):
    """Start marking what was handed in."""
    same = [gr.skip()] * len(panel.outputs)
    number = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    try:
        if draft is None and not any(source):
            raise UserError("There are no photos yet: drop some above, or name a folder.")
        if draft is None or draft["source"] != source:
            raise UserError("What was handed in is still being looked at", advice="press again when it is shown above.")
        if not find_photos(draft["folder"])[0]:
            raise UserError("There are no photos in what was handed in: drop some above, or name a folder.")
        _refuse_twice(desk, draft["folder"])
        chosen = _checked(desk, chosen)
        folder = draft["folder"]
        if draft["own"]:
            folder = desk.settle(draft["own"], desk.root / "protected" / number).photos
            draft.update(folder=folder, own=None)  # the preview goes on
        _start(desk, number, draft["title"], {**chosen, "folder": str(folder)})
    except Exception as error:
        return look.shown(look.failed(reason(error))), *same
    return "", *panel.show(number, request)


def _checked(desk, chosen):
    """What was chosen, as a job keeps it. UserError for what would only fail after the commitment."""
    label, stamp = ((chosen[name] or "").strip() for name in ("label", "timestamp"))
    given = {name: chosen[name] for name in inputs.REFERENCES}
    chosen = {name: value for name, value in chosen.items() if name not in given}
    chosen |= {"quality": round(chosen["quality"]), "label": label or exact.AUTO, "timestamp": stamp}
    settings, _ = protect.resolve_settings(marking.chosen_settings(chosen))
    if settings.unmarked and not chosen["holdout"]:
        raise UserError(
            "without a mark the secret is which half is published, and to publish all leaves none",
            advice="publish half of them",
            flag="--holdout",
        )
    if len(label) > 200:
        raise UserError("“Class of the photos” is longer than 200 letters")
    if stamp:
        check_address(stamp, "“Time-stamp address”")
    return {**chosen, "references": _digests(desk, given)}


def _digests(desk, fields):
    """What the plan says of the references that were handed in: SHA-256, sorted. All are opened: what can't be asked
    is refused before it is fixed. The files stay with their owner.
    """
    draft = desk.draft()
    try:
        models = inputs.open_references(inputs.reference_details(desk, draft, fields)) or []
    finally:
        desk.discard(draft)
    digests = sorted(map(references_of.digest_of, models))
    if len(set(digests)) < len(digests):
        raise UserError("one model is there twice", advice="leave one out", flag="--reference")
    if len(digests) > MOST_REFERENCES:
        raise UserError(f"more than {MOST_REFERENCES} models", advice="leave some out", flag="--reference")
    return digests


def _refuse_twice(desk, folder):
    # Photos that are published under two keys prove less, and a second record must never replace the first.
    if any(job.state != "done" and job.details.get("folder") == str(folder) for job in desk.jobs.all("protected")):
        raise UserError("Marking these photos has begun already: choose it below, and let it go on.")
    record = protect.places_of(folder)[1] / "record.json"
    if record.exists():
        raise UserError("These photos are marked already", advice=f"their record is {record}. Hand in others.")


def _begun(job):
    """The record that a job has made, or will: where it is there, nothing of the job may be lost."""
    return protect.places_of(job.details["folder"])[1] / "record.json"


def _start(desk, number, title, details, pasted=""):
    desk.jobs.start(number, "protected", title, details, lambda job: _mark(desk, job, pasted))


def _go_on(desk, job, pasted, stamp):
    """Start a job again, with the round that was pasted, or with another address for time stamps."""
    details = {**job.details, "timestamp": (stamp or "").strip()} if job.flag == "--timestamp" else job.details
    _start(desk, job.id, job.title, details, pasted or "")


def _mark(desk, job, pasted):
    """The work of a job: what data_marking.py does, and the two files to download."""
    folder = Path(job.details["folder"])
    settings, bank = protect.resolve_settings(marking.chosen_settings(job.details))
    opened = _opened(desk, job, inspect_folder(folder, settings.format), settings, _pasted(pasted))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # photos are spread over the cores, one each
    try:
        record, _ = protect.run(opened, bank, say=job.say)
    finally:
        torch.set_num_threads(threads)
    write_zip(
        job.folder / "publish.zip",
        [(photo.marked, opened.marked_folder / photo.marked) for photo in record.photos if photo.published],
    )
    private = [path for path in sorted(opened.record_folder.rglob("*")) if path.is_file() and path.name[0] != "."]
    write_zip(job.folder / "private.zip", [(path.relative_to(opened.record_folder), path) for path in private])
    (job.folder / "private.zip").chmod(0o600)
    return {
        "record": str(opened.record_path),
        "originals": str(folder),
        "marked_folder": str(opened.marked_folder),
        "commitments": record.commitments,
        "alike": opened.folder.alike,
        "weaknesses": disclosed.weaknesses(record, opened.record_path, desk.roots, desk.chain),
        "files": {"photos-to-publish.zip": "publish.zip", "PRIVATE-record-keep-secret.zip": "private.zip"},
    }


def _pasted(text):
    """The beacon.Round in what somebody pasted, None for nothing."""
    if not text.strip():
        return None
    try:
        return beacon.parse(text)
    except UserError as problem:
        raise UserError(problem.problem, problem.advice, flag="--beacon") from None


def _opened(desk, job, found, settings, given):
    """The protect.Job of a job's folder: new, or where it stopped."""
    details, begun = job.details, protect.places_of(found.path)[1]
    chain = desk.chain if details.get("beacon", "none") == "drand" else None
    public = commit.Public(chain, given, details.get("timestamp") or None, desk.roots, commit.SECONDS)
    finished = (begun / "record.json").exists() and records.read_record(begun).finished  # all but the two zips was done
    opened = protect.open_record(
        found,
        settings,
        details["holdout"],
        record_file=begun if finished else None,
        plan=_plan(found, details, settings),
        public=public,
    )
    if finished and opened.note != "same photos":
        raise UserError(f"{found.path} has photos that were not there when marking began", advice="take them out")
    if opened.note == "resumed" and not job.said and (begun / commit.COMMITMENT_FILE).exists():
        job.say((begun / commit.COMMITMENT_FILE).read_text(encoding="utf-8"))
    return _in_time(job, opened)


def _plan(found, details, settings):
    """The AuditPlan to commit, None for the usual one. details: early ones have no label, or no references."""
    label, references, photos = details.get("label", exact.AUTO), details.get("references"), len(found.photos)
    held_out = records.published_share(photos, details["holdout"]) < photos
    plain_arm = bool(details.get("plain_arm")) and held_out and not settings.unmarked
    if label == exact.AUTO and not references and not plain_arm:
        return None
    chosen = {"label": label, "references": references or None, "plain_arm": plain_arm or None}
    return AuditPlan.usual(held_out, not settings.unmarked, **chosen)


def _in_time(job, opened):
    """The same protect.Job, without a time stamp that would come after the draw, and so speak against its owner."""
    batch, named = opened.record.batches[-1], opened.record.batches[-1].commit.beacon
    late = named and named.genesis_time + (named.round - 1) * named.period <= time.time()
    if not late or opened.note != "resumed" or batch.timestamp or not opened.public.stamp:
        return opened
    job.say("The round is out already: a time stamp would come too late, and is left out.")
    return replace(opened, public=replace(opened.public, stamp=None))


def _told(text):
    """What `protect.run` says: the commitment, with what to do; or how it was dated."""
    first, *rest = text.strip().splitlines()
    word, _, number = first.partition(" ")
    if word != "commitment":
        return look.notice("info", text)
    return look.notice(
        "warn",
        element("p", element("strong", "Your commitment")),
        element("p", element("code", number)),
        *(element("p", line, class_="soft") for line in rest),
        element("p", POST),
    )


def _result(job):
    """What a finished job shows."""
    record, record_folder = records.read_record(job.result["record"]), Path(job.result["record"]).parent
    done, unmarked = read_json(record_folder / "result.json"), record.settings.unmarked
    skipped = [(row["name"], row["reason"]) for row in done["skipped"]]
    twice = [(row["name"], f"is the same file as {row['same_as']}") for row in done["duplicates"]]
    alike = [(names[0], f"and {', '.join(names[1:])}") for names in job.result.get("alike", ())]
    held = done["photos"] - done["published"]
    return join(
        look.notice(
            "good",
            f"{done['published']} photos are {'' if unmarked else 'marked and '}ready to be published"
            + (", without a mark" if unmarked else "")
            + (f"; {held} are held out: never publish them." if held else "."),
            role="status",
        ),
        element(
            "p",
            look.download_link(job, "photos-to-publish.zip", "Download what to publish (zip)"),
            look.download_link(job, "PRIVATE-record-keep-secret.zip", "Download the private record (zip)"),
        ),
        look.notice("warn", element("p", element("strong", "Keep the record. "), KEEP_UNMARKED if unmarked else KEEP)),
        look.weaknesses(job.result.get("weaknesses")),
        element("h3", "Your commitment"),
        element("p", element("code", done["commitment"])),
        element("p", POSTED),
        _fixed_references(record.plan),
        look.problems("Could not be read:" if unmarked else "Could not be marked:", skipped),
        look.problems("Left out:", twice),
        look.problems("These look alike: they are published together, or held out together.", alike),
        _published_photos(job, record_folder, done, record.settings),
    )


def _fixed_references(plan):
    """The references that a later audit will need; nothing where none was fixed."""
    if not plan.references:
        return ""
    digests = [element("li", element("code", digest)) for digest in plan.references]
    text = "Reference models were fixed with the photos. An audit needs these very files; keep them. Their SHA-256:"
    return look.notice("info", element("p", text), element("ul", *digests))


def _published_photos(job, record_folder, done, settings):
    """The contact sheet, where everything lies, and what was done to the photos."""
    psnr, ssim = ([row[name] for row in done["images"]] for name in ("psnr", "ssim"))
    known = [value for value in psnr if value is not None]
    made, title = ("marked", "Marked photos") if not settings.unmarked else ("published", "Photos to publish")
    change = (
        ("mark", f"none; {UNMARKED[settings.format]}")
        if settings.unmarked
        else ("the mark is", marking.visible(np.mean(known) if known else None))
    )
    return join(
        element("h3", title),
        look.figure(
            (record_folder / "contact_sheet.png").read_bytes(),
            f"Contact sheet: original, {made} copy and ten times their difference for each photo",
            f"original, {made}, difference ×10",
            class_="plot",
        ),
        look.facts(
            [
                change,
                (title.lower(), element("code", job.result["marked_folder"])),
                ("private record", element("code", str(record_folder))),
            ]
        ),
        look.folded("In figures", look.facts(marking.measured(psnr, ssim))),
    )

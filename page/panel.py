"""How a tab shows its jobs: choose, watch, cancel, give what one lacks, go on with it, see what it left, delete it.

Public: Panel.
"""

from collections import OrderedDict
from threading import Lock

import gradio as gr

from kit.errors import UserError
from kit.markup import Raw, element, join
from page import look
from page.jobs import ACTIVE, STOPPED
from page.words import of_progress

POLL_SECONDS = 0.7
MOST_TABS = 1000  # that are remembered


class Panel:
    """Components and events for all jobs of one kind.

    render: function job -> markup of a finished job; resume: function (job, *values of the components `typed`, *values
    of the fields `asked`) -> None, starts it again; tell: function text -> markup of what a job has to say before it is
    done; asked: {flag: (name, what it says)}, fields that are there while a failed job is about that flag; spare:
    function job -> whether nobody needs its files any more, so that it may be deleted.
    """

    def __init__(
        self, desk, kind, title, empty, render, resume, typed=(), tell=None, asked=None, spare=lambda job: True
    ):
        self._desk, self._kind, self._empty, self._render = desk, kind, empty, render
        self._spare = spare
        self._tell = tell or (lambda text: look.notice("info", text))
        self.chosen = gr.Dropdown(self._choices(), value=None, label=title, interactive=True, elem_id=f"{kind}-job")
        self.view = gr.HTML(look.shown(element("p", empty, class_="soft")), elem_id=f"{kind}-view")
        # Apart from what changes all the time: people want to copy it.
        self.told = gr.HTML(elem_id=f"{kind}-told")
        self._asked = {
            flag: gr.Textbox(label=name, info=info, visible=False, max_lines=4, elem_id=f"{kind}{flag[1:]}")
            for flag, (name, info) in (asked or {}).items()
        }
        with gr.Row():
            self.stop = gr.Button("Cancel", visible=False, elem_id=f"{kind}-cancel")
            self.again = gr.Button("Go on", visible=False, elem_id=f"{kind}-resume")
            self.drop = gr.Button("Delete", visible=False, elem_id=f"{kind}-delete")
            self.sure = gr.Button("Delete for good", variant="stop", visible=False, elem_id=f"{kind}-sure")
        self._seen = gr.State("")
        self._lock = Lock()
        self._current = OrderedDict()  # what each open tab was told to show, and how often it has asked for another job
        self.outputs = [self.chosen, self.view, self.told, *self._asked.values()]
        self.outputs += [self.stop, self.again, self.drop, self.sure, self._seen]
        self._listen(resume, [*typed, *self._asked.values()])

    def _listen(self, resume, typed):
        def choose(job_id, request: gr.Request):
            return self.show(job_id, request)

        def begin_again(request: gr.Request, job_id, *values):
            job = self._desk.jobs.get(job_id)
            if job is not None and job.state in STOPPED:
                resume(job, *values)
            return self.show(job_id, request)

        def cancel(job_id):
            self._desk.jobs.cancel(job_id)

        def delete(job_id, request: gr.Request):
            job = self._desk.jobs.get(job_id)
            if job is not None and self._may_go(job):
                self._desk.jobs.delete(job_id)
            return self.first(request)

        def ask():
            return gr.update(visible=False), gr.update(visible=True)

        self.drop.click(ask, None, [self.drop, self.sure], **look.QUIETLY)
        self.sure.click(delete, self.chosen, self.outputs, **look.QUIETLY)
        self.chosen.input(choose, self.chosen, self.outputs, **look.QUIETLY)
        self.stop.click(cancel, self.chosen, None, **look.QUIETLY)
        self.again.click(begin_again, [self.chosen, *typed], self.outputs, **look.QUIETLY)
        # Slow answers must not pile up behind each other.
        gr.Timer(POLL_SECONDS).tick(
            self._tick, [self.chosen, self._seen], self.outputs, trigger_mode="once", **look.QUIETLY
        )

    def first(self, request):
        """What a freshly loaded page shows: the job that runs, else the newest."""
        jobs = self._desk.jobs.all(self._kind)
        chosen = next((job for job in jobs if job.active), jobs[0] if jobs else None)
        return self.show(chosen and chosen.id, request)

    def show(self, job_id, request):
        """New values of `outputs` with this job chosen in the browser tab of a request."""
        with self._lock:
            self._current[request.session_hash] = (job_id, 0)
            while len(self._current) > MOST_TABS:
                self._current.popitem(last=False)
        return self._values(job_id)

    def _values(self, job_id):
        job = self._desk.jobs.get(job_id)
        markup = Raw(element("h2", job.title) + self._markup(job)) if job else element("p", self._empty, class_="soft")
        said = job.said if job and job.state != "done" else ()
        return (
            gr.update(choices=self._choices(), value=job_id if job else None),
            look.shown(markup),
            look.shown(*map(self._tell, said)) if said else "",
            *(self._field(flag, job) for flag in self._asked),
            gr.update(visible=bool(job and job.active)),
            gr.update(visible=bool(job and job.state in STOPPED)),
            gr.update(visible=bool(job and self._may_go(job))),
            gr.update(visible=False),
            self._state(job),
        )

    def _may_go(self, job):
        return not job.active and self._spare(job)

    @staticmethod
    def _field(flag, job):
        """A field is empty when it comes, and keeps what is being typed while it is there."""
        wanted = bool(job and job.state == "failed" and job.flag == flag)
        return gr.update(visible=True) if wanted else gr.update(visible=False, value="")

    def _tick(self, job_id, seen, request: gr.Request):
        # A question that was on its way while people chose another job must not bring the old one back. But a tab that
        # goes on asking for another one has lost the answer that told it: answers overtake each other. What is chosen
        # is written by people's own clicks alone: a slow tick must not undo one that came while it was under way.
        nothing_new = [gr.skip()] * len(self.outputs)
        with self._lock:
            told, missed = self._current.get(request.session_hash, (job_id, 0))
            if told != job_id:
                self._current[request.session_hash] = (told, (missed + 1) % 2)
        if told != job_id:
            return self._values(told) if missed else nothing_new
        # Replacing what did not change would take the focus and the selection away from people.
        if self._state(self._desk.jobs.get(job_id)) == seen:
            return nothing_new
        return gr.update(choices=self._choices()), *self._values(job_id)[1:]

    def _choices(self):
        return [
            (
                f"{job.title}, {job.created.replace('T', ' ')[:16]}"
                + ("" if job.state == "done" else f" ({look.STATES[job.state].lower()})"),
                job.id,
            )
            for job in self._desk.jobs.all(self._kind)
        ]

    def _state(self, job):
        others = [(other.id, other.state) for other in self._desk.jobs.all(self._kind)]
        return repr((job and (job.id, job.state, job.progress, len(job.said)), others))

    def _markup(self, job):
        if job.state == "done":
            try:
                return self._render(job)
            except (UserError, OSError, KeyError, TypeError, ValueError):
                return look.failed(f"The files of this job are gone or damaged; they lay in {job.folder}")
        if job.state in ACTIVE:
            return _running(job)
        if job.state == "failed":
            return look.failed(job.message)
        return look.notice(
            "info",
            f"{look.STATES[job.state]}. Nothing is lost: what was done is kept, and “Go on” "
            "takes it up where it stopped.",
            role="status",
        )


def _running(job):
    label, done, total = job.progress
    limits = {"max": total, "value": done} if total else {}
    return join(
        element(
            "p", of_progress(label or look.STATES[job.state], done, total)
        ),  # no live region: it changes all the time
        element("progress", aria_label=f"progress of {job.title}", **limits),
        element(
            "p",
            "You may close this page: the work goes on as long as the program runs, and can be found again here.",
            class_="soft",
        ),
    )

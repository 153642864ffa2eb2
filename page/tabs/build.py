"""The page itself: its head and its four tabs.

Public: build.
"""

import gradio as gr

from kit.markup import element
from page import look
from page.tabs import audit, check, evidence, protect

HEAD = "Prove, from the outside, that your images were used to train a model. Everything stays on this computer."


def build(desk, found):
    """All of the page as `gradio.Blocks`."""
    with gr.Blocks(title="MembershipTracker", analytics_enabled=False, delete_cache=(600, 24 * 3600)) as blocks:
        gr.HTML(look.shown(element("h1", "MembershipTracker"), element("p", HEAD, class_="soft")))
        with gr.Tabs():
            with gr.Tab("Protect", id="protect"):
                marked = protect.build(desk)
            with gr.Tab("Check", id="check") as check_tab:
                checked, known, records = check.build(desk)
            with gr.Tab("Evidence", id="evidence"):
                replayed = evidence.build(desk)
            with gr.Tab("Audit", id="audit") as audit_tab:
                choice = audit.build(found)

        def first(request: gr.Request):
            return (
                *marked.first(request),
                *checked.first(request),
                *replayed.first(request),
                records(None),
                gr.update(choices=found.choices()),
            )

        # A reload finds everything again: the state of the page is on the disk, not in the tab.
        blocks.load(first, None, [*marked.outputs, *checked.outputs, *replayed.outputs, known, choice], **look.QUIETLY)
        check_tab.select(records, known, known, **look.QUIETLY)
        audit_tab.select(lambda: gr.update(choices=found.choices()), None, choice, **look.QUIETLY)
    return blocks

"""Words and colours of the page: how states, verdicts, lists and downloads look.

Public: CSS, HEAD, theme, shown, notice, failed, problems, weaknesses, facts, folded, download_link, data_uri, jpeg,
figure, STATES, ASKED, QUIETLY.
"""

import base64
import io
from urllib.parse import quote

import gradio as gr
from PIL import Image

from kit.errors import UserError
from kit.markup import Raw, base_style, element, join
from page.words import of_error, plain

# How the page asks its server: in the answer of the request itself. Gradio's queue opens and closes a stream for each
# question, and an answer that comes between two streams is lost: a click that waits for ever, a tick that is the last.
ASKED = {"api_visibility": "private", "queue": False}
QUIETLY = {**ASKED, "show_progress": "hidden"}

STATES = {
    "waiting": "Waiting for its turn",
    "running": "Running",
    "done": "Done",
    "failed": "Could not be done",
    "cancelled": "Cancelled",
    "interrupted": "Interrupted",
}

# Below .mt alone, because Gradio's own components are beside it: the base in Gradio's colours, then what is the page's.
CSS = base_style(".mt")
CSS += """
.mt { --ink: var(--body-text-color); --soft: var(--body-text-color-subdued); --line: var(--border-color-primary);
      --tint: var(--background-fill-secondary); --link: var(--link-text-color);
      --pair: 17rem; --card: 8.5rem; --edge: 4rem; line-height: 1.55; overflow-wrap: anywhere; color: var(--ink); }
.mt h2 { font-size: 1.1rem; font-weight: 700; margin: 1.2rem 0 .4rem; }
.mt h3 { font-size: 1rem; font-weight: 700; margin: 1.2rem 0 .4rem; }
.mt ul, .mt ol { padding-left: 1.3rem; list-style: disc; }
.mt ol { list-style: decimal; }
.mt a { text-decoration: underline; }
.mt .box { border: 1px solid var(--line); border-left-width: .6rem; border-radius: .4rem; background: var(--tint);
           padding: .7rem 1rem; margin: .8rem 0; }
.mt .bad { border-left-color: #b42318; } .mt .good { border-left-color: #1a6b3c; }
.mt .warn { border-left-color: #b25e09; } .mt .info { border-left-color: #0b5cad; }
.mt .verdict { font-size: 1.15rem; }
.mt .button { display: inline-block; border: 1px solid var(--line); border-radius: .4rem; padding: .55rem 1rem;
              margin: .25rem .5rem .25rem 0; font-weight: 600; text-decoration: none;
              background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color); }
.mt figure { margin: .5rem 0; }
.mt figure.plot img { background: #ffffff; }
.mt .pair img { width: 100%; max-height: 70vh; object-fit: contain; }
.mt th, .mt td { padding: .35rem .9rem .35rem 0 !important; } /* Gradio's own comes later */
.mt tr.near { background: var(--tint); }
.mt code { font-size: .9em; word-break: break-all; user-select: all; }
.mt p.empty { border: 1px dashed var(--line); border-radius: .4rem; max-width: none; min-height: 19rem; padding: 1rem;
             display: grid; place-items: center; text-align: center; color: var(--soft); }
.mt progress { width: 100%; height: 1.2rem; }
.mt iframe { width: 100%; height: 80vh; border: 1px solid var(--line); border-radius: .4rem; }
a:focus-visible, button:focus-visible { outline: 3px solid #0b5cad; outline-offset: 2px; }
/* A file field inside a button, which screen readers can't tell apart; the cross and the field itself do the same. */
button.icon-button:has(input[type=file]) { display: none; }
button[role=tab].selected { color: #0b5cad !important; }
.dark button[role=tab].selected { color: #8ec1ff !important; }
button { transition: none !important; }
/* A long name ends before the arrow. */
input[aria-autocomplete=list] { margin-right: 2rem; text-overflow: ellipsis; }
@media (max-width: 34rem) { .mt p.empty { min-height: 6rem; } .gradio-container main { padding: .5rem !important; } }
"""


# A picture of the page's own. Arrows move between tabs, as screen readers tell.
HEAD = """<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'%20
viewBox='0 0 3 3'%3E%3Cpath fill='%230b5cad' d='M0 0h3v.6H0zM0 1.2h3v.6H0zM0 2.4h3V3H0z'/%3E%3C/svg%3E">
<script>
document.addEventListener("keydown", event => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key], tab = event.target;
  if (!step || !tab.matches || !tab.matches("[role=tab]")) return;
  const tabs = [...tab.closest("[role=tablist]").querySelectorAll("[role=tab]")];
  const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
  next.focus();
  next.click();
  event.preventDefault();
});
</script>"""


def theme():
    """System fonts alone (nothing is fetched from elsewhere), and colours with the contrast that WCAG AA asks for."""
    look = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    soft = {
        "body_text_color_subdued": "#4b5563",
        "block_info_text_color": "#4b5563",
        "block_label_text_color": "#374151",
        "block_title_text_color": "#1f2937",
        "input_placeholder_color": "#4b5563",
    }
    dark = {
        "body_text_color_subdued_dark": "#c3c8d0",
        "block_info_text_color_dark": "#c3c8d0",
        "block_label_text_color_dark": "#d5d9df",
        "block_title_text_color_dark": "#e5e7eb",
        "input_placeholder_color_dark": "#c3c8d0",
    }
    blue = {
        "button_primary_background_fill": "#0b5cad",
        "button_primary_background_fill_hover": "#094b8e",
        "button_primary_text_color": "#ffffff",
    }
    links = {"link_text_color": "#0b5cad", "link_text_color_dark": "#8ec1ff"}
    return look.set(**soft, **dark, **links, **blue, **{f"{name}_dark": value for name, value in blue.items()})


def shown(*parts):
    """The parts as one piece of the page."""
    return element("div", join(*(part for part in parts if part)), class_="mt")


def notice(kind, *parts, **attributes):
    """A box; kind: good, bad, warn or info."""
    return element(
        "div",
        *(part if isinstance(part, Raw) else element("p", part) for part in parts),
        class_=f"box {kind}",
        **attributes,
    )


def failed(message):
    """What the command line says as "error: ...": a UserError, or a text."""
    text = of_error(message) if isinstance(message, UserError) else plain(str(message))
    return notice("bad", text, role="alert")


def problems(title, rows):
    """A list of (name, reason), or nothing."""
    if not rows:
        return ""
    items = [element("li", element("strong", name), ": ", reason) for name, reason in rows[:200]]
    more = element("p", f"... and {len(rows) - 200} more, all in result.json.") if len(rows) > 200 else ""
    return notice("warn", element("p", title), element("ul", *items), more)


def weaknesses(sentences):
    """What a verdict rests on beside the answers, to be shown first; nothing, where nothing is left to be believed."""
    if not sentences:
        return ""
    items = [element("li", plain(sentence)) for sentence in sentences]
    return notice("warn", element("p", element("strong", "What this rests on")), element("ul", *items))


def folded(summary, *parts):
    """What only some want to see, behind a click."""
    return element("details", element("summary", summary), *parts)


def facts(pairs):
    """A list of names and values; a value may be markup."""
    return element("dl", *(Raw(element("dt", name) + element("dd", value)) for name, value in pairs))


def download_link(job, name, text):
    return element("a", text, href=f"files/{quote(job.id)}/{quote(name)}", download=name, class_="button")


def data_uri(content, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def jpeg(pixels, quality=88):
    """uint8 (H, W, 3) as the bytes of a JPEG for the screen."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=quality, subsampling=0)
    return file.getvalue()


def figure(content, description, caption="", kind="png", class_=""):
    """A picture (bytes) with what a screen reader says of it."""
    # With its size, the page keeps its place before it is decoded, and no button moves away under a pointer.
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
        width, height = picture.size
    image = element("img", src=data_uri(content, kind), alt=description, width=width, height=height).replace(
        "></img>", ">"
    )
    return element("figure", Raw(image), element("figcaption", caption) if caption else "", class_=class_)

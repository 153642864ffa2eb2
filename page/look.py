"""Words and colours of the page: how states, verdicts, lists and downloads look.

Public: CSS, HEAD, theme, shown, notice, failed, problems, facts, download_link, data_uri, jpeg, figure,
STATES.
"""

import base64
import io
from urllib.parse import quote

import gradio as gr
from PIL import Image

from kit.errors import UserError
from kit.markup import Raw, element, join
from page.words import of_error, plain

STATES = {
    "waiting": "Waiting for its turn",
    "running": "Running",
    "done": "Done",
    "failed": "Could not be done",
    "cancelled": "Cancelled",
    "interrupted": "Interrupted",
}

CSS = """
.mt { line-height: 1.55; overflow-wrap: anywhere; color: var(--body-text-color); }
.mt h3 { font-size: 1rem; font-weight: 700; margin: 1.2rem 0 .4rem; }
.mt h2 { font-size: 1.1rem; font-weight: 700; margin: 1.2rem 0 .4rem; }
.mt p, .mt ul, .mt ol { margin: .5rem 0; max-width: 46rem; }
.mt ul, .mt ol { padding-left: 1.3rem; list-style: disc; }
.mt ol { list-style: decimal; }
.mt .soft, .mt figcaption, .mt caption { color: var(--body-text-color-subdued); }
.mt a { color: var(--link-text-color); text-decoration: underline; }
.mt .box { border: 1px solid var(--border-color-primary); border-left-width: .6rem; border-radius: .4rem;
           background: var(--background-fill-secondary); padding: .7rem 1rem; margin: .8rem 0; }
.mt .bad { border-left-color: #b42318; } .mt .good { border-left-color: #1a6b3c; }
.mt .warn { border-left-color: #b25e09; } .mt .info { border-left-color: #0b5cad; }
.mt .verdict { font-size: 1.15rem; }
.mt .button { display: inline-block; border: 1px solid var(--border-color-primary); border-radius: .4rem;
              padding: .55rem 1rem; margin: .25rem .5rem .25rem 0; font-weight: 600; text-decoration: none;
              background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color); }
.mt .pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: 1rem; }
.mt figure { margin: .5rem 0; min-width: 0; } .mt figure img { max-width: 100%; height: auto; border-radius: .3rem; }
.mt figure.plot img { background: #ffffff; }
.mt .pair img { width: 100%; max-height: 70vh; object-fit: contain; }
.mt dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .25rem 1.2rem; margin: .6rem 0; }
.mt dt { color: var(--body-text-color-subdued); } .mt dd { margin: 0; min-width: 0; }
.mt .scroll { overflow-x: auto; margin: .8rem 0; }
.mt table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
.mt caption { text-align: left; padding-bottom: .4rem; }
.mt caption span { display: block; max-width: min(46rem, calc(100vw - 4rem)); }
.mt th, .mt td { padding: .35rem .9rem .35rem 0 !important; text-align: left; vertical-align: top;
                 overflow-wrap: normal; border: 0 solid var(--border-color-primary); border-bottom-width: 1px; }
.mt thead th { border-bottom-width: 2px; } .mt tr.near { background: var(--background-fill-secondary); }
.mt code { font-size: .9em; word-break: break-all; }
.mt progress { width: 100%; height: 1.2rem; }
.mt .cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .8rem; padding: 0;
             list-style: none; max-width: none; }
.mt .cards li { border: 1px solid var(--border-color-primary); border-radius: .4rem; padding: .6rem; margin: 0;
                font-size: .85rem; background: var(--background-fill-secondary); }
.mt .cards img { width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated; margin-bottom: .4rem; }
.mt .cards strong, .mt .cards span { display: block; }
.mt iframe { width: 100%; height: 80vh; border: 1px solid var(--border-color-primary); border-radius: .4rem; }
.mt :focus-visible, a:focus-visible, button:focus-visible { outline: 3px solid #0b5cad; outline-offset: 2px; }
/* A file field inside a button, which screen readers can't tell apart; the cross and the field itself do the same. */
button.icon-button:has(input[type=file]) { display: none; }
button[role=tab].selected { color: #0b5cad !important; }
.dark button[role=tab].selected { color: #8ec1ff !important; }
button { transition: none !important; }
@media (max-width: 34rem) { .mt dl { grid-template-columns: 1fr; gap: 0; } .mt dd { margin-bottom: .5rem; }
  .gradio-container main { padding: .5rem !important; } }
"""


# Arrows move between tabs, as screen readers tell people.
HEAD = """<script>
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

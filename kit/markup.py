"""HTML without a template language: every value is escaped where it enters, and only `Raw` is taken as it is.

Public: Raw, escaped, element, join, table, picture, small_image, document, base_style, CSS.
"""

import base64
import html
import re


class Raw(str):
    """Markup that was made here; everything else is text and is escaped."""


def escaped(value):
    """Any value as markup: `Raw` as it is, everything else escaped."""
    return value if isinstance(value, Raw) else Raw(html.escape(str(value)))


def join(*parts):
    """The parts as one piece of markup, a line each."""
    return Raw("\n".join(escaped(part) for part in parts))


def element(tag, *parts, **attributes):
    """<tag attributes>parts</tag>; `class_` and `for_` lose their underscore, others turn _ into -."""
    text = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for name, value in attributes.items()
    )
    return Raw(f"<{tag}{text}>{''.join(escaped(part) for part in parts)}</{tag}>")


def table(caption, head, rows):
    """A table whose first column names the row; it scrolls by itself where the page is narrow."""
    lines = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    ]
    inside = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", element("tr", *(element("th", name, scope="col") for name in head))),
        element("tbody", *lines),
    )
    return element("div", inside, class_="scroll", tabindex=0, role="region", aria_label=caption)


def picture(light, dark, description, caption):
    """A figure with a PNG (bytes) for each colour scheme, inside the page."""
    sources = [base64.b64encode(content).decode() for content in (light, dark)]
    image = Raw(
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{sources[1]}">'
        f'<img src="data:image/png;base64,{sources[0]}" alt="{html.escape(description)}"></picture>'
    )
    return element("figure", image, element("figcaption", caption))


def small_image(content, description):
    """A PNG (bytes) for a card."""
    return Raw(
        f'<img src="data:image/png;base64,{base64.b64encode(content).decode()}" alt="{html.escape(description)}">'
    )


def document(title, body):
    """A whole page that fetches nothing from elsewhere: text; body: markup."""
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{html.escape(title)}</title><style>{CSS}</style>'
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


# What `element`, `table` and `picture` make looks like, whoever shows it. Colours and the width of small things are
# variables: --ink, --soft, --line, --tint, --link; --pair, --card, --edge (of the page, beside a caption).
BASE = """
p, ul, ol, dl { max-width: 46rem; margin: .6rem 0; }
li { margin: .3rem 0; }
a { color: var(--link); }
.soft, figcaption, caption, dt { color: var(--soft); }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .25rem 1.2rem; }
dd { margin: 0; min-width: 0; }
.scroll { overflow-x: auto; margin: .8rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 0 0 .4rem; font-size: .9rem; }
caption span { display: block; position: sticky; left: 0; max-width: min(46rem, calc(100vw - var(--edge, 2rem))); }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; vertical-align: top; overflow-wrap: normal;
         border: 0 solid var(--line); border-bottom-width: 1px; }
thead th { border-bottom-width: 2px; }
figure { margin: 1rem 0; min-width: 0; }
figure img { max-width: 100%; height: auto; display: block; border-radius: .3rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(var(--pair, 20rem), 100%), 1fr)); gap: 1rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(var(--card, 9.5rem), 1fr)); gap: .9rem;
         list-style: none; padding: 0; max-width: none; }
.cards li { background: var(--tint); border: 1px solid var(--line); border-radius: .4rem; padding: .6rem; margin: 0;
            font-size: .85rem; line-height: 1.4; }
.cards img { width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated; display: block;
             margin-bottom: .4rem; }
.cards strong, .cards span { display: block; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
"""
NARROW = """
dl { grid-template-columns: 1fr; gap: 0; }
dd { margin-bottom: .5rem; }
"""


def base_style(scope=""):
    """The style sheet that all pages begin with; scope: a selector such as ".mt", below which alone it holds."""

    def below(rules):
        def selectors(found):
            return "\n" + ", ".join(f"{scope} {one.strip()}".strip() for one in found[1].split(",")) + " {"

        return re.sub(r"([^{}]+){", selectors, rules)

    return f"{below(BASE)}@media (max-width: 34rem) {{{below(NARROW)}}}\n"


# Of a document of its own.
CSS = f"""
:root {{ --paper: #ffffff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --tint: #f3f5f7; --link: #0b5cad;
        --high: #b42318; --moderate: #865300; --low: #1a6b3c; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #161b22; --ink: #e6e8eb; --soft: #a9b4bf; --line: #3a424c; --tint: #1f262e; --link: #7db8ff; }}
}}
{base_style()}"""
CSS += """
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
       font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
.verdict { border: 1px solid var(--line); border-left-width: .6rem; border-radius: .4rem; background: var(--tint);
           padding: .9rem 1.1rem; margin: 1.2rem 0; }
.verdict p { margin: .4rem 0; }
.verdict.high { border-left-color: var(--high); }
.verdict.moderate { border-left-color: var(--moderate); }
.verdict.low { border-left-color: var(--low); }
.level { display: inline-block; color: #ffffff; font-weight: 700; border-radius: .3rem; padding: .15rem .6rem; }
.high .level { background: var(--high); }
.moderate .level { background: var(--moderate); }
.low .level { background: var(--low); }
.worked { font-size: 1.1rem; }
nav ul { columns: 2 16rem; padding-left: 1.2rem; }
nav li { margin: 0 0 .3rem; break-inside: avoid; }
table { min-width: 60%; }
td { white-space: nowrap; }
td small { display: block; color: var(--soft); }
tbody th { font-weight: 600; min-width: 7.5rem; }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: .4rem; padding: .8rem; overflow-x: auto;
      font-size: .8rem; line-height: 1.4; }
@media (max-width: 34rem) { h1 { font-size: 1.4rem; } }
@media print { nav, summary { display: none; } .scroll { overflow: visible; } h2 { break-after: avoid; } }
"""

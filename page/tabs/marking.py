"""How photos are marked, for the tab Protect: the fields, a preview of one photo, and what a mark costs.

Public: fields, following, chosen_settings, preview, visible, measured, costs, VISIBLE, FOLLOWING, BUTTON, NO_PREVIEW.
"""

from functools import lru_cache

import gradio as gr
import numpy as np
from PIL import Image

from kit.markup import element
from kit.names import VISIBILITIES
from page import look
from page.jobs import reason
from page.tabs import inputs, power
from provenance import protect
from provenance.photos import UnreadablePhoto, read_photo
from utils import derive_key

PREVIEW_SIDE = 640  # of the shorter side; about what a screen shows
MARK = tuple(VISIBILITIES["clear"])  # what a visibility stands for
VISIBLE = ("visibility", *MARK)  # settings that change the preview, in the order of `preview`
FOLLOWING = (*MARK, "metadata", "holdout")  # fields that a visibility changes, in the order of `following`
PLAIN = [
    ("Plain: stripes can be seen. The paper's mark", "clear"),
    ("Faint: hardly seen. It found about as many in experiments", "faint"),
    ("None: photos stay as they are. The secret is which half of them is published", "none"),
]
METADATA = [
    ("Drop it: pixels alone are published", "drop"),
    ("Keep it: the very files are published, with date, camera and place, whatever the file format below", "keep"),
]
BUTTON = {True: "Mark the photos", False: "Draw the half to publish"}  # with a mark, and without
HOLD_OUTS = [("Publish half of them, keep the other half back (strongest proof)", 0.5), ("Publish all of them", 0.0)]
NOISES = [("Perlin (the paper's)", "perlin"), ("Gabor", "gabor"), ("uniform", "uniform"), ("none", "none")]
BEACONS = [
    ("drand: takes about a minute; nobody can say that you chose", "drand"),
    ("None: the proof then holds if you are honest", "none"),
]
EXAMPLE = (
    "Your own stripes and noise follow from a secret key that is drawn when you press the button; here you see an "
    "example. It is {}."
)
UNCHANGED = "Nothing changes: photos are published as they are, and the secret is which half of them it was."
NO_PREVIEW = look.shown(element("p", "One of your photos, before and after, is shown here.", class_="empty"))


def _slider(low, high, value, **settings):
    """A slider whose number field may be empty for a moment, while somebody types another number."""
    slider = gr.Slider(low, high, value, **settings)
    # Not a subclass: gradio writes a file beside the module of each.
    strict = slider.preprocess
    slider.preprocess = lambda payload: strict(value if payload is None else payload)
    return slider


def fields():
    """How photos are marked, and what is fixed with them: {name of a setting: component}."""
    found = {
        "visibility": gr.Radio(
            PLAIN,
            value="clear",
            label="Visibility of the mark",
            info="A plainer mark changes your photos more, and found hardly more. Without one, only photos held back "
            "can prove anything, and an audit looks at each photo 18 times.",
            elem_id="protect-visibility",
        ),
        "img_blending_ratio": _slider(
            0.3,
            1,
            0.7,
            step=0.05,
            label="Blending ratio",
            elem_id="protect-ratio",
            info="How much of the photo remains; 1: no stripes. Lower is more visible and safer.",
        ),
        "noise_norm": _slider(
            0,
            32,
            8,
            step=1,
            label="Noise norm",
            elem_id="protect-norm",
            info="How strong the noise is, of 255 levels; 0: no noise.",
        ),
        "metadata": gr.Radio(METADATA, value="drop", label="Metadata", visible=False, elem_id="protect-metadata"),
        "holdout": gr.Radio(HOLD_OUTS, value=0.5, label="Hold-out"),
        "beacon": gr.Radio(
            BEACONS,
            value="drand",
            label="Public randomness",
            info="What draws your secret pattern, and the half that is published.",
            elem_id="protect-beacon",
        ),
    }
    with gr.Accordion("More choices", open=False):
        found["label"] = gr.Textbox(
            "auto",
            label="Class of the photos",
            info="As a model will call it, if you know. auto: what it says most often.",
            max_lines=1,
        )
        found["timestamp"] = gr.Textbox(
            label="Time-stamp address",
            info="Of a service (RFC 3161) that dates your commitment. Empty: none.",
            placeholder="https://timestamp.example/tsr",
            max_lines=1,
        )
        found["noise_injection_type"] = gr.Dropdown(NOISES, value="perlin", label="Noise")
        found["plain_arm"] = gr.Checkbox(
            False,
            label="Ask about the photos as they are, too",
            info="A second test, which an owner who knows and removes marks does not escape. Both have half of the "
            "allowed error. Needs photos that are marked, and some that are held back.",
            elem_id="protect-plain-arm",
        )
        found["format"] = gr.Radio([("PNG (lossless)", "png"), ("JPEG", "jpeg")], value="png", label="File format")
        found["quality"] = _slider(50, 100, 95, step=1, label="JPEG quality")
        found |= inputs.reference_fields(
            "protect",
            "Its SHA-256 is fixed with the photos, for nobody to choose one that likes the result; the audit needs the "
            "very file then, so keep it. Empty: none.",
        )
    return found


def following(visibility):
    """New values of FOLLOWING's fields for a visibility: those that it stands for, and none that would do nothing."""
    marked = visibility != "none"
    return (
        *(gr.update(value=value, visible=marked) for value in VISIBILITIES[visibility].values()),
        gr.update(visible=not marked),
        gr.update(interactive=True) if marked else gr.update(value=0.5, interactive=False),
    )


def chosen_settings(chosen):
    """What `protect.resolve_settings` takes, out of the fields or of a job's details (early ones have no visibility):
    without the fields that mean nothing beside the others, whatever stands there.
    """
    ignored = {"metadata"}
    if chosen.get("visibility") == "none":
        ignored = {*MARK, "format"} if chosen.get("metadata") == "keep" else {*MARK}
    return {name: value for name, value in chosen.items() if name not in ignored}


@lru_cache(maxsize=8)
def _screen_photo(path, _changed):
    """A photo at the size of the screen: uint8 (H, W, 3)."""
    image = Image.fromarray(read_photo(path))
    return np.array(protect.shrunk(image, PREVIEW_SIDE, Image.Resampling.BILINEAR))


def preview(draft, name, *chosen):
    """The photo, its marked copy and their difference, with a key for the preview alone. chosen: values of VISIBLE."""
    if draft is None or not name:
        return NO_PREVIEW
    path = draft["folder"] / name
    try:
        settings, bank = protect.resolve_settings(chosen_settings(dict(zip(VISIBLE, chosen, strict=True))))
        photo = _screen_photo(str(path), path.stat().st_mtime_ns)
    except UnreadablePhoto as problem:
        return look.shown(look.problems("This file can't be marked and would be left out:", [(name, str(problem))]))
    except Exception as error:
        return look.shown(look.failed(reason(error)))
    marked = protect.mark_photo(photo, derive_key("preview"), 0, settings.marking(bank))
    apart = np.minimum(np.maximum(photo, marked) - np.minimum(photo, marked), 25) * 10
    psnr, ssim = protect.quality(photo, marked)
    pictures = [
        look.figure(look.jpeg(pixels), f"{name}: {what}", what, "jpeg")
        for pixels, what in ((photo, "before"), (marked, "after"), (apart, "difference, ten times"))
    ]
    return look.shown(
        element("div", *pictures, class_="pair"),
        element("p", UNCHANGED if settings.unmarked else EXAMPLE.format(visible(psnr)), class_="soft"),
        look.folded("In figures", look.facts(measured([psnr], [ssim]))),
    )


def visible(psnr):
    """How a mark looks to people; psnr: in dB, None where it changed nothing."""
    if psnr is None or psnr >= 40:
        return "barely visible"
    return f"{'slightly' if psnr >= 30 else 'clearly'} visible, on skies and dark areas most"


def measured(psnr, ssim):
    """Names and values, for `look.facts`, of what photos measured; None where there is nothing to measure."""
    return [
        (
            name,
            f"{np.mean(values):.2f}{unit} on average, lowest {min(values):.2f}{unit}"
            if len(values) > 1
            else f"{values[0]:.2f}{unit}",
        )
        for name, values, unit in (
            ("PSNR", [value for value in psnr if value is not None], " dB"),
            ("SSIM", [value for value in ssim if value is not None], ""),
        )
        if values
    ]


def costs(visibility, ratio, norm):
    """(summary, tables) of what a mark costs in detection power; none is none, wherever its fields stand."""
    if visibility == "none":
        ratio, norm = (VISIBILITIES["none"][name] for name in ("img_blending_ratio", "noise_norm"))
    return look.shown(power.summary(ratio, norm)), look.shown(
        power.marking_table(ratio, norm),
        power.photos_table(),
        power.noise_table(),
        power.format_table(),
        power.holdout_table(),
    )

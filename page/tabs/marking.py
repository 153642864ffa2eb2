"""How photos are marked, for the tab Protect: the fields, a preview of one photo, and what a mark costs.

Public: fields, preview, visible, measured, costs, VISIBLE, NO_PREVIEW.
"""

from functools import lru_cache

import gradio as gr
import numpy as np
from PIL import Image

from kit.markup import element
from page import look
from page.jobs import reason
from page.tabs import power
from provenance import protect
from provenance.photos import UnreadablePhoto, read_photo
from utils import derive_key

PREVIEW_SIDE = 640  # of the shorter side; about what a screen shows
VISIBLE = ("img_blending_ratio", "noise_norm", "noise_injection_type")  # settings that change the preview
HOLD_OUTS = [("Publish half of them, keep the other half back (strongest proof)", 0.5), ("Publish all of them", 0.0)]
NOISES = [("Perlin (the paper's)", "perlin"), ("Gabor", "gabor"), ("uniform", "uniform"), ("none", "none")]
BEACONS = [
    ("drand: takes about a minute; nobody can say that you chose", "drand"),
    ("None: the proof then holds if you are honest", "none"),
]
NO_PREVIEW = look.shown(element("p", "One of your photos, before and after, is shown here.", class_="empty"))


def _slider(low, high, value, **settings):
    """A slider whose number field may be empty for a moment, while somebody types another number."""
    slider = gr.Slider(low, high, value, **settings)
    # Not a subclass: gradio writes a file beside the module of each.
    strict = slider.preprocess
    slider.preprocess = lambda payload: strict(value if payload is None else payload)
    return slider


def fields():
    """How photos are marked: {name of a setting: component}."""
    found = {
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
        found["format"] = gr.Radio([("PNG (lossless)", "png"), ("JPEG", "jpeg")], value="png", label="File format")
        found["quality"] = _slider(50, 100, 95, step=1, label="JPEG quality")
    return found


@lru_cache(maxsize=8)
def _screen_photo(path, _changed):
    """A photo at the size of the screen: uint8 (H, W, 3)."""
    image = Image.fromarray(read_photo(path))
    return np.array(protect.shrunk(image, PREVIEW_SIDE, Image.Resampling.BILINEAR))


def preview(draft, name, ratio, norm, noise):
    """The photo, its marked copy and their difference, with a key for the preview alone."""
    if draft is None or not name:
        return NO_PREVIEW
    path = draft["folder"] / name
    try:
        settings, bank = protect.resolve_settings(
            {"img_blending_ratio": ratio, "noise_norm": norm, "noise_injection_type": noise}
        )
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
        element(
            "p",
            "Your own stripes and noise follow from a secret key that is drawn when you press "
            f"the button; here you see an example. It is {visible(psnr)}.",
            class_="soft",
        ),
        look.folded("In figures", look.facts(measured([psnr], [ssim]))),
    )


def visible(psnr):
    """How a mark looks to people; psnr: in dB, None where nothing changed."""
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


def costs(ratio, norm):
    return look.shown(
        power.marking_table(ratio, norm),
        power.photos_table(),
        power.noise_table(),
        power.format_table(),
        power.holdout_table(),
    )

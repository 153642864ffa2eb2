"""Names that a command line offers, of things whose modules take a second to import.

Public: NOISE_TYPES, INTERPOLATIONS, VISIBILITIES, AS_IT_IS, MOST_VIEWS, SIGNALS.
"""

# Of --noise_injection_type and `utils.Marking`.
NOISE_TYPES = ("perlin", "uniform", "uniform_continuous", "gabor", "none")
# Of --interpolation and `suspects.suspect.Preprocessing`.
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
# Of --visibility: how plain the marks are. What is published under "none" is not changed at all: the secret is which
# half of the photos it was. results/visibility-* have what each costs and what it can show.
VISIBILITIES = {
    "clear": {"img_blending_ratio": 0.7, "noise_injection_type": "perlin", "noise_norm": 8.0},
    "faint": {"img_blending_ratio": 0.95, "noise_injection_type": "perlin", "noise_norm": 2.0},
    "none": {"img_blending_ratio": 1.0, "noise_injection_type": "none", "noise_norm": 0.0},
}
# The format of photos that are published as the files that they were, metadata included.
AS_IT_IS = "as it is"
# Of --query_augmentations: see suspects/views.py.
MOST_VIEWS = 18
# Of --signal: what a diffusion model is asked, see suspects/denoising.py.
SIGNALS = ("error", "sima", "pia", "secmi")

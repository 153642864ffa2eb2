"""Names that a command line offers, of things whose modules take a second to import.

Public: NOISE_TYPES, INTERPOLATIONS.
"""

# Of --noise_injection_type and `utils.Marking`.
NOISE_TYPES = ("perlin", "uniform", "uniform_continuous", "gabor", "none")
# Of --interpolation and `suspects.suspect.Preprocessing`.
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")

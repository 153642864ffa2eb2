"""Names that a command line offers, of things whose modules take a second to import.

Public: NOISE_TYPES.
"""

# Of --noise_injection_type and `utils.Marking`.
NOISE_TYPES = ("perlin", "uniform", "gabor", "none")

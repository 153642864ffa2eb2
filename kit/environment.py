"""What a result says about the machine and the program that made it.

Public: VERSION, hardware_name, software_versions.
"""

import importlib.metadata
import platform
import sys
from pathlib import Path

VERSION = "0.2.0"  # that of pyproject.toml


def hardware_name(device):
    """The name of the processor behind a torch device, for the record."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{(models or [platform.processor() or platform.machine()])[0]}, {torch.get_num_threads()} threads"


def software_versions(*packages):
    """{name: version} of this program, Python and what decides pixels and answers; `packages`: further ones, where
    they are installed."""
    found = {"membershiptracker": VERSION, "python": platform.python_version()}
    for name in ("torch", "numpy", "pillow", *packages):
        try:
            # What a module says of itself names the build, too: 2.14.1+cu130.
            loaded = getattr(sys.modules.get(name), "__version__", None)
            found[name] = str(loaded or importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found

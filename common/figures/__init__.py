"""Figures: one look for all, and a module for each kind of experiment."""

import sys

from common.cli import free_matplotlib

try:
    import matplotlib  # noqa: F401
except (ValueError, OSError):  # outside of the scripts: an inherited backend or a matplotlibrc is broken
    for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        del sys.modules[name]  # half of it is there
    free_matplotlib()

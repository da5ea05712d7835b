"""How plots look, and where matplotlib keeps its list of fonts meanwhile."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STYLE = {
    "svg.fonttype": "none",  # text stays text, to be searched and read aloud
    "svg.hashsalt": "preflight",  # the same result gives the same file
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # a dollar in a name is a dollar
}


@contextmanager
def plot_style() -> Iterator[None]:
    """Settings under which a picture looks the same wherever it is drawn; a user's own matplotlibrc is left out."""
    with _font_cache():
        import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes, and as itself where text stays text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


@contextmanager
def _font_cache() -> Iterator[None]:
    """Gives matplotlib, which looks for fonts when it is first imported, a folder to keep what it finds.

    In a home that cannot be written (a container) it would make a temporary one of its own, and leave it behind.
    """
    if "MPLCONFIGDIR" in os.environ or "matplotlib" in sys.modules or _has_home():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="preflight-") as folder:
        os.environ["MPLCONFIGDIR"] = folder
        try:
            import matplotlib.font_manager  # noqa: F401 - reads and writes the folder now

            yield
        finally:
            del os.environ["MPLCONFIGDIR"]


def _has_home() -> bool:
    for variable, default in (("XDG_CONFIG_HOME", "~/.config"), ("XDG_CACHE_HOME", "~/.cache")):
        folder = Path(os.path.expanduser(os.environ.get(variable) or default)) / "matplotlib"
        try:
            if not folder.is_absolute():
                return False
            folder.mkdir(parents=True, exist_ok=True)  # as matplotlib does
        except OSError:
            return False
        if not os.access(folder, os.W_OK):
            return False
    return True

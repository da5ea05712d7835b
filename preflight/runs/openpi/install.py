"""Finding and importing openpi, the user's checkout or fork, with a sentence for whatever is wrong with it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from preflight.blame import one_line, user_line
from preflight.errors import UsageError

# The openpi that this module was written against.
KNOWN = "openpi of June 2026"

# Checks run side by side, and some of openpi's switches are the whole process's: to describe its inputs, which a model
# also does while it is made, it turns its type checks off and on again, and a second thread in the middle of that would
# find them on.
ONE_AT_A_TIME = threading.RLock()

_INSTALL = (
    "run preflight where openpi runs: in a checkout, `uv sync`, then `uv pip install robot-preflight` and `uv run "
    "preflight …`; or name the checkout with --openpi DIR"
)


def is_installed() -> bool:
    """Whether openpi can be found; nothing of it is imported but its empty package."""
    try:
        return importlib.util.find_spec("openpi.training") is not None
    except (ImportError, ValueError):
        return False


def use_checkout(folder: Path) -> None:
    """Puts a checkout in front of whatever openpi is installed, for this process and for those that it starts.

    Args:
        folder: The checkout: it holds `src/openpi`.

    Raises:
        UsageError: It is no checkout.
    """
    source = folder.expanduser().absolute() / "src"
    if not (source / "openpi" / "training" / "config.py").is_file():
        inner = folder.name == "src" or (folder / "openpi").is_dir() or (folder / "training").is_dir()
        raise UsageError(
            f"--openpi {folder}: no openpi checkout, it has no src/openpi/training/config.py",
            "name the folder that holds src/, scripts/ and pyproject.toml" + (", one or two above it" if inner else ""),
        )
    # openpi-client is a package of its own in the same checkout; the installed one will do where there is none.
    paths = [str(path) for path in (source, folder.absolute() / "packages" / "openpi-client" / "src") if path.is_dir()]
    sys.path[:0] = [path for path in paths if path not in sys.path]
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in paths]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *inherited])
    importlib.invalidate_caches()


def openpi(module: str, *names: str) -> Any:
    """Imports one of openpi's modules, or names from it.

    Args:
        module: Below `openpi`, as "training.config".
        names: Public names in it.

    Returns:
        The module without names, the one object with one, a tuple with several.

    Raises:
        UsageError: openpi is missing or half installed, is another version than known, or raises when it is imported.
    """
    loaded = _imported(f"openpi.{module}")
    found = []
    for name in names:
        if not hasattr(loaded, name):
            raise UsageError(
                f"openpi.{module} ({loaded.__file__}) has no {name!r}: this openpi is not the one that preflight knows",
                f"preflight was written against {KNOWN}; compare that file with it, or tell us its commit",
            )
        found.append(getattr(loaded, name))
    return loaded if not names else found[0] if len(names) == 1 else tuple(found)


def _imported(name: str) -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # openpi's and its dependencies': under `python -W error` none would load
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise _missing(name, error) from error
    except UsageError:
        raise
    except Exception as error:
        # A file that cannot be read as Python has no line of its own in the traceback.
        where = f"{error.filename}:{error.lineno}" if isinstance(error, SyntaxError) else user_line(error)
        raise UsageError(
            f"openpi raises when {name} is imported: {one_line(error)}" + (f"\n  at {where}" if where else ""),
            "a config that is built there at import time fails: mend that line",
        ) from error


def _missing(name: str, error: ModuleNotFoundError) -> UsageError:
    missing = error.name or ""
    if missing == "openpi" or not is_installed():
        return UsageError("openpi is not installed in this environment", _INSTALL)
    where = package_folder()
    if missing.startswith("openpi."):
        return UsageError(
            f"openpi at {where} has no module {missing}: it is incomplete, or not the openpi that preflight knows",
            f"preflight was written against {KNOWN}; install the checkout again with `uv sync`",
        )
    return UsageError(
        f"openpi at {where} is only half installed: importing {name} needs {missing!r}, which is not here",
        "install what openpi needs into this environment, with its own versions: `uv sync` in the checkout",
    )


def package_folder() -> Path | None:
    """The folder of the package `openpi`."""
    spec = importlib.util.find_spec("openpi")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def checkout() -> Path | None:
    """The checkout that openpi is imported from, by its `scripts/train.py`; None where it was installed without one."""
    package = package_folder()
    if package is None or len(package.parents) < 2:
        return None
    folder = package.parents[1]
    return folder if (folder / "scripts" / "train.py").is_file() else None


def import_script(path: Path) -> ModuleType:
    """Imports a script by its path, as if by `import`: what stands under `__main__` does not run.

    Args:
        path: The script.

    Raises:
        Exception: Whatever it raises.
    """
    name = f"_preflight_user_{path.stem}"
    if name in sys.modules and sys.modules[name].__file__ == str(path):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Before it runs: dataclasses and type checkers look their module up.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module

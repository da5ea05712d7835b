"""GPUs that a run can be planned for, whether or not one is here: the known ones, and a user's own from a file."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preflight import suggest
from preflight.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuSpec:
    """A GPU as its maker describes it; what each field means, with its unit, is in `gpus.toml`."""

    name: str  # as given to --target
    title: str
    memory_mib: int
    bf16_tflops: float
    bandwidth_gb_per_s: float
    source: str
    nvml_names: tuple[str, ...] = ()
    # Only for XLA to compile for it; a file may leave them out.
    compute_capability: str | None = None
    num_sms: int | None = None
    l2_cache_kib: int | None = None
    boost_clock_mhz: int | None = None
    compile_source: str | None = None

    @property
    def memory_bytes(self) -> int:
        """All of the device's memory."""
        return self.memory_mib << 20

    @property
    def bf16_flops_per_s(self) -> float:
        """Dense peak."""
        return self.bf16_tflops * 1e12

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """Of the device memory."""
        return self.bandwidth_gb_per_s * 1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What a run is judged for: one GPU, or several of a kind that share each batch."""

    spec: GpuSpec
    count: int = 1
    text: str  # as given to --target

    def __str__(self) -> str:
        return f"{self.count} x {self.spec.title}" if self.count > 1 else self.spec.title


_NUMBERS = ("memory_mib", "bf16_tflops", "bandwidth_gb_per_s", "num_sms", "l2_cache_kib", "boost_clock_mhz")
_FIELDS = {field.name: field for field in dataclasses.fields(GpuSpec) if field.name != "name"}


def _known() -> dict[str, GpuSpec]:
    tables = tomllib.loads(Path(__file__).with_name("gpus.toml").read_text(encoding="utf-8"))
    return {name: spec_from(table, name=name, where="gpus.toml") for name, table in tables.items()}


def spec_from(table: Mapping[str, Any], *, name: str, where: str) -> GpuSpec:
    """Makes a GPU's description from a TOML table.

    Args:
        table: The fields of `GpuSpec` without its name.
        name: What to call it.
        where: The file, for messages.

    Raises:
        UsageError: A key is unknown or missing, or a value is out of range.
    """
    for key in table:
        if key not in _FIELDS:
            near = suggest.nearest(key, _FIELDS, cutoff=0.7)
            meant = f"; did you mean {near!r}?" if near else ""
            raise UsageError(f"{where}: unknown key {key!r}{meant}", f"its keys: {', '.join(_FIELDS)}")
    missing = [key for key, f in _FIELDS.items() if f.default is dataclasses.MISSING and key not in table]
    if missing:
        raise UsageError(f"{where}: {missing[0]} is missing", f"its keys: {', '.join(_FIELDS)}")
    for key in _NUMBERS:
        value = table.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
            raise UsageError(f"{where}: {key} must be a number above 0, not {value!r}")
        if value == float("inf"):
            raise UsageError(f"{where}: {key} must be finite")
        if isinstance(value, float) and _FIELDS[key].type.startswith("int"):
            raise UsageError(f"{where}: {key} must be a whole number, not {value!r}")
    for key in ("title", "source", "compute_capability", "compile_source"):
        if not isinstance(table.get(key, ""), str):
            raise UsageError(f"{where}: {key} must be text, not {table[key]!r}")
    capability = table.get("compute_capability", "9.0")
    if not re.fullmatch(r"\d{1,2}\.\d", capability):
        raise UsageError(f'{where}: compute_capability {capability!r} is not of the form "9.0"')
    names = table.get("nvml_names", [])
    if not isinstance(names, list) or not all(isinstance(text, str) for text in names):
        raise UsageError(f"{where}: nvml_names must be a list of texts, not {names!r}")
    return GpuSpec(name=name, **{**table, "nvml_names": tuple(names)})


GPUS: dict[str, GpuSpec] = _known()


def parse_target(text: str) -> Target:
    """The target that `--target` means.

    Args:
        text: A key of `GPUS` (case, spaces and underscores do not matter) or a TOML file with one GPU's description;
            before it `8x` for eight of them.

    Raises:
        UsageError: It is not known, with those that are; or the file is no such description.
    """
    match = re.fullmatch(r"(?:(\d{1,4})\s*x\s*)?(\S.*?)\s*", text)
    count, name = (int(match[1] or 1), match[2]) if match else (1, text)
    if count < 1:
        raise UsageError(f"--target {text!r}: no GPU at all", "for example 8xh100-80gb")
    spec = _from_file(Path(name)) if name.endswith(".toml") else gpu(name)
    return Target(spec=spec, count=count, text=text)


def gpu(name: str) -> GpuSpec:
    """The known GPU of that name.

    Raises:
        UsageError: It is not known; the message lists those that are.
    """
    key = name.strip().lower().replace(" ", "-").replace("_", "-")
    if key in GPUS:
        return GPUS[key]
    flat = {known.replace("-", ""): known for known in GPUS}
    if key.replace("-", "") in flat:
        return GPUS[flat[key.replace("-", "")]]
    near = suggest.nearest(key.replace("-", ""), flat)
    # "a100" is near two; a name that leaves the size open is answered with all that begin with it.
    beginning = [known for known in GPUS if key and known.startswith(key)]
    meant = beginning or ([flat[near]] if near else [])
    own = "another GPU: --target FILE.toml, see `preflight explain memory.device`"
    raise UsageError(
        f"Unknown GPU {name!r}; known are {', '.join(sorted(GPUS))}.",
        hint=f"Did you mean {' or '.join(meant)}?" if meant else own,
    )


def known_as(nvml_name: str) -> GpuSpec | None:
    """The description of a GPU by NVML's name for it; None where that is not known: no figure rather than a guess."""
    return next((spec for spec in GPUS.values() if nvml_name in spec.nvml_names), None)


def _from_file(path: Path) -> GpuSpec:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--target {path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--target {path} is not valid TOML: {error}") from None
    return spec_from(table, name=path.stem, where=str(path))

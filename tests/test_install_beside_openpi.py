"""preflight joins openpi's environment without moving a pin: every requirement admits openpi's version of it."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = (ROOT / "constraints-openpi.txt").read_text().splitlines()
PINS = dict(line.split("==") for line in LINES if not line.startswith("#"))
REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra),
]


def names(requirements):
    return {Requirement(requirement).name for requirement in requirements}


def movers(requirements, pins):
    """The requirements that openpi's version of a package does not meet."""
    return [
        requirement
        for requirement, wanted in ((text, Requirement(text)) for text in requirements)
        if wanted.name in pins and Version(pins[wanted.name]) not in wanted.specifier
    ]


def test_no_requirement_moves_a_pin():
    assert movers(REQUIREMENTS, PINS) == []
    assert movers([f"robot-preflight{PROJECT['requires-python']}"], {"robot-preflight": "3.11"}) == []


def test_a_raised_bound_would_be_seen():
    raised = ["jax>=0.5.3", "jax[cuda12]>=0.5.4", "numpy>=2", "typer>=99"]
    assert movers(raised, PINS) == ["jax[cuda12]>=0.5.4", "numpy>=2"]


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("jax", "0.5.3"),
        ("jaxlib", "0.5.3"),
        ("flax", "0.10.2"),
        ("lerobot", "0.1.0"),
        ("numpy", "1.26.4"),
        ("orbax-checkpoint", "0.11.13"),
        ("torch", "2.7.1"),
    ],
)
def test_the_pins_are_openpis(name, version):
    assert PINS[name] == version


def test_what_runs_is_pinned_but_for_what_openpi_has_not():
    assert names(PROJECT["dependencies"]) - PINS.keys() == {"matplotlib", "nvidia-ml-py", "typer"}


def test_the_pins_are_names_and_versions_in_order():
    lines = [line for line in LINES if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+", line) for line in lines)
    assert [line.split("==")[0] for line in lines] == sorted(PINS)
    assert not any("://" in line for line in LINES)

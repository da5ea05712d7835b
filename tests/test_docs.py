"""The documentation cannot rot: its generated pages are compared with the code, its examples with the files."""

import dataclasses
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from checks import CHECKLIST
from preflight.config.builtin import BUILTIN_CONFIGS
from preflight.config.project import find_project
from preflight.config.schema import DataConfig
from preflight.config.watch_rules import RULES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    subprocess.run([sys.executable, ROOT / "docs/generate.py", folder], check=True)
    return folder


OTHER_TYPER = pytest.mark.skipif(
    f"typer=={version('typer')}" not in (ROOT / "constraints.txt").read_text().splitlines(),
    reason="each version of typer words --help its own way; the page is that of constraints.txt's",
)


@pytest.mark.parametrize("name", [pytest.param("commands.md", marks=OTHER_TYPER), "checks.md", "watch.md"])
def test_generated_pages_are_up_to_date(generated, name):
    assert (ROOT / "docs" / name).read_text() == (generated / name).read_text(), "run `make docs`"


def test_the_readme_names_only_what_exists():
    ids = {check.id for check in CHECKLIST}
    categories = {id_.partition(".")[0] for id_ in ids}
    # Dotted names like `memory.device`; config keys like `data.root` share the first word with a category.
    named = set(re.findall(rf"`((?:{'|'.join(categories)})\.[a-z-]+)`", README))
    keys = {f"data.{field.name}" for field in dataclasses.fields(DataConfig)}
    assert named <= ids | keys
    assert set(re.findall(r"\bpi0_lighter_cup_\w+", README)) <= BUILTIN_CONFIGS.keys()
    for target in re.findall(r"`make ([a-z-]+)`", README):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_watchs_example_is_one(tmp_path):
    [example] = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/watch.md").read_text(), re.DOTALL)
    (tmp_path / "pyproject.toml").write_text(example)
    rules = find_project(tmp_path).watch.rules
    assert RULES.keys() - rules.keys() == {"loss.range"}
    assert (rules["grad.max"]["high"], rules["grad.max"].severity, rules["hang"]["seconds"]) == (400, "stop", 900)


def test_the_run_file_in_the_readme_is_the_example():
    blocks = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    example = tomllib.loads((ROOT / "examples/g1.toml").read_text())
    assert example in [tomllib.loads(block) for block in blocks]

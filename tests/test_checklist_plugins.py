import itertools

import pytest

from preflight.checklist import load_plugins
from preflight.errors import UsageError

NUMBER = itertools.count()

GOOD = """
from preflight.checklist import Check, passed

def make(id_):
    return Check(id=id_, title="From a plugin", level="quick", run=lambda context: passed("ok"))

ONE = make("gripper.calibrated")
MANY = [make("arm.homed"), make("arm.reach")]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a distribution with entry points on the path, as pip would leave it."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name, source, *entries):
        module = f"plugin_module_{next(NUMBER)}"
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{entry} = {module}:{attribute}" for entry, attribute in entries]
        (info / "entry_points.txt").write_text("\n".join(["[preflight.checks]", *lines, ""]))
        return module

    return install


def test_checks_and_sequences_of_checks_are_loaded_in_a_stable_order(install):
    install("z-robots", GOOD, ("gripper", "ONE"))
    install("a-robots", GOOD, ("arm", "MANY"))
    assert [check.id for check in load_plugins()] == ["arm.homed", "arm.reach", "gripper.calibrated"]


@pytest.mark.parametrize(
    ("source", "attribute", "message"),
    [
        ("import not_there_at_all", "ONE", "cannot be loaded: ModuleNotFoundError: No module named 'not_there_at_all'"),
        (GOOD, "GONE", "cannot be loaded: AttributeError: "),
        ("raise SystemExit('no licence')", "ONE", "cannot be loaded: SystemExit: no licence"),
        (
            GOOD.replace("quick", "deep"),
            "ONE",
            "cannot be loaded: ValueError: gripper.calibrated: unknown level",
        ),
        (GOOD, "make", "is a function, not a Check or a sequence of them"),
        ("MANY = [1]", "MANY", "holds a int, which is not a Check"),
    ],
)
def test_a_broken_plugin_names_its_distribution(install, source, attribute, message):
    module = install("broken-robots", source, ("checks", attribute))
    with pytest.raises(UsageError) as caught:
        load_plugins()
    named = f"the plugin 'checks' ({module}:{attribute}) of the distribution broken-robots "
    assert caught.value.message.startswith(named + message)
    assert caught.value.hint == "Mend or uninstall it: pip uninstall broken-robots"

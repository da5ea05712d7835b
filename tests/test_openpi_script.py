"""The user's own scripts/train.py, traced: openpi's as it is, a fork's with mistakes, and scripts that are none."""

import openpi_fork
import pytest
from healthy import HEALTHY, outcome_of
from openpi_fork import load

from checks.context import CheckContext
from checks.step_script import look_at_script
from checks.trace import state_paths, state_problems
from preflight.runs.openpi import run as openpi_run

pytestmark = openpi_fork.MARKS

# SEED.md, "Update Statistics": the distance between the average and the parameters, whose leaves are arrays.
MISTAKE = """    if state.ema_decay is not None:
        apart = jax.tree.map(lambda x, y: x.value - y.value, new_state.ema_params, new_params)
"""
BEFORE = "    # Filter out params that aren't kernels.\n"

# A script in which one thing is wrong, and which is traced in no time.
PLAIN = """
import jax
import jax.numpy as jnp


def init_train_state(config, rng, mesh, *, resume):
    assert resume, "it would load weights"
    return {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}, None


def train_step(config, rng, state, batch):
    observation, actions = batch
    return state, {"loss": jnp.mean(actions), "state": jnp.mean(observation.state)}


if __name__ == "__main__":
    raise SystemExit("it ran")
"""


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    with openpi_fork.opened(tmp_path_factory) as opened:
        yield opened


@pytest.fixture
def script(user, tmp_path, monkeypatch):
    """Puts a training script of that text in the place of the checkout's; returns its path."""

    def put(text):
        path = tmp_path / "checkout" / "scripts" / "train.py"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        monkeypatch.setattr(openpi_run, "checkout", lambda: tmp_path / "checkout")
        return path

    return put


def line_of(path, words):
    return next(n for n, line in enumerate(path.read_text().splitlines(), 1) if words in line)


@pytest.mark.slow
@pytest.mark.parametrize("decay", ["0.5", "none"])
def test_openpis_own_script(user, tmp_path, decay):
    step = load(tmp_path, f"ema_decay={decay}").script_step()
    assert step.path == user.fork / "scripts" / "train.py"
    assert {name: leaf.shape for name, leaf in step.metrics.items()} == {"loss": (), "grad_norm": (), "param_norm": ()}
    assert state_problems(step.before, step.after) == []
    averaged = [path for path in state_paths(step.before) if path.startswith("ema_params/")]
    assert len(averaged) == (50 if decay == "0.5" else 0)


@pytest.mark.slow
def test_the_mistake_of_the_first_checklist_is_found_with_its_line(user, tmp_path, script):
    text = (user.fork / "scripts" / "train.py").read_text()
    assert text.count(BEFORE) == 1
    path = script(text.replace(BEFORE, MISTAKE + BEFORE))
    outcome = outcome_of("step.contract", CheckContext(run=load(tmp_path), probes=HEALTHY))
    assert outcome.status == "fail"
    assert outcome.summary.startswith("the script's own train step cannot be traced as configured: AttributeError: ")
    # jax quotes the name in some versions.
    assert "has no attribute value (jax.tree.map over NNX" in outcome.summary.replace("'", "")
    line = line_of(path, "x.value - y.value")
    assert outcome.evidence[0].startswith(f"{path}:{line}: apart = jax.tree.map(lambda x, y: x.value - y.value")
    assert outcome.measured["problems"] == 1  # without the average the step is sound


def look(tmp_path):
    return look_at_script(CheckContext(run=load(tmp_path), probes=HEALTHY))


def test_a_script_is_traced_with_the_average_on_and_off(tmp_path, script):
    path = script(PLAIN)
    report = look(tmp_path)
    assert (report.path, report.problems, report.metrics) == (path, (), ("loss", "state"))
    assert report.branches == ("as configured", "ema_decay=none")


@pytest.mark.parametrize(
    ("ours", "theirs", "problem"),
    [
        (
            '"state": jnp.mean(observation.state)',
            '"state": observation.state',
            "the metric state is float32[4,32], not a",
        ),
        ('"state": jnp.mean(observation.state)', '"state": "three"', "is not a valid JAX type"),
        ('return state, {"loss"', 'return {}, {"loss"', "the step loses w from the state"),
        (
            "return state, {",
            'return {"w": state["w"].astype(jnp.bfloat16)}, {',
            "turns w from float32[3] into bfloat16[3]",
        ),
        ("return state, {", 'return {**state, "v": state["w"]}, {', "the step adds v to the state"),
        (
            "return state, {",
            "return state, jnp.mean(actions), {",
            "train_step gives a tuple of 3 in the place of (state, metrics)",
        ),
    ],
)
def test_what_a_step_returns(tmp_path, script, ours, theirs, problem):
    assert PLAIN.count(ours) == 1
    script(PLAIN.replace(ours, theirs))
    report = look(tmp_path)
    assert problem in " ".join(report.problems)
    assert "as configured: " in report.problems[0]


def test_a_script_that_raises_when_it_is_imported(tmp_path, script):
    path = script("import jax\n\nTABLE = {}\nTABLE['missing']\n")
    report = look(tmp_path)
    assert report.path is None
    assert report.problems[0].endswith("cannot be traced as configured: KeyError: 'missing'")
    assert report.lines[0] == f"{path}:4: TABLE['missing']"


def test_a_script_that_is_no_python(tmp_path, script):
    path = script("def train_step(:\n")
    report = look(tmp_path)
    assert "SyntaxError" in report.problems[0]
    assert str(path) in " ".join([*report.problems, *report.lines]) or "train.py" in report.problems[0]


@pytest.mark.parametrize("name", ["init_train_state", "train_step"])
def test_a_script_without_one_of_its_functions(tmp_path, script, name):
    path = script(PLAIN.replace(f"def {name}(", f"def my_{name}("))
    report = look(tmp_path)
    assert report.problems[0].endswith(f"cannot be traced as configured: AttributeError: {path} defines no {name}")


def test_an_installed_openpi_has_no_script(tmp_path, user, monkeypatch):
    monkeypatch.setattr(openpi_run, "checkout", lambda: None)
    assert load(tmp_path).script_step() is None
    assert look(tmp_path) is None

"""`[tool.preflight.watch]`: rules switched off or changed; what is mistyped is named, with what is valid."""

import contextlib
import math

import pytest
from command import preflight
from hypothesis import given
from hypothesis import strategies as st

from preflight.config.project import find_project
from preflight.config.watch import read_watch
from preflight.config.watch_rules import RULES
from preflight.errors import EXIT_USAGE, UsageError


def project(folder, text, name="preflight.toml"):
    (folder / name).write_text(text)
    return find_project(folder)


def test_without_a_table_every_rule_is_on_and_as_it_is(tmp_path):
    assert find_project(tmp_path).watch.rules == RULES
    assert project(tmp_path, 'config = "x"').watch.rules == RULES


@pytest.mark.parametrize("name", ["preflight.toml", "pyproject.toml"])
def test_rules_are_switched_off_and_changed_in_either_file(tmp_path, name):
    prefix = "" if name == "preflight.toml" else "tool.preflight."
    watch = project(
        tmp_path,
        f"""
[{prefix}watch]
"grad.max" = false
"loss.finite" = true
"grad.norm" = {{ high = 20, severity = "stop" }}
hang = {{ seconds = 30 }}

[{prefix}watch.slow.data]
share = 0.5
""",
        name,
    ).watch.rules
    assert watch.keys() == RULES.keys() - {"grad.max"}
    assert (watch["grad.norm"]["high"], watch["grad.norm"].severity) == (20.0, "stop")
    assert watch["grad.norm"]["low"] == RULES["grad.norm"]["low"]
    assert watch["hang"]["seconds"] == 30
    assert watch["slow.data"]["share"] == 0.5
    assert "50 % of the time" in watch["slow.data"].condition
    changed = {id_ for id_, rule in watch.items() if rule != RULES[id_]}
    assert changed == {"grad.norm", "hang", "slow.data"}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("watch = 3", "watch must be a table, not 3", None),
        ('watch = {"grad.mx" = false}', "unknown rule 'grad.mx'; did you mean 'grad.max'?", "valid: disk.filling"),
        ("watch.grad.mx = false", "unknown rule 'grad.mx'; did you mean 'grad.max'?", "valid: disk.filling"),
        ("watch.grad = false", "unknown rule 'grad'", "grad.max"),
        ('watch."grad.max" = 200', 'watch."grad.max" must be false, true or a table, not 200', "{ high = 100 }"),
        ('watch."loss.finite" = "warn"', "must be false, true or a table", '{ severity = "warn" }'),
        ('watch."grad.max" = {hgh = 3}', "unknown key 'hgh'; did you mean 'high'?", "after, high, severity, share, w"),
        ('watch."grad.max" = {high = "x"}', "high must be a number, not 'x'", "largest absolute gradient; 100 by"),
        ('watch."grad.max" = {high = true}', "high must be a number, not True", None),
        ('watch."grad.max" = {high = nan}', "high must be a number, not nan", None),
        ('watch."grad.max" = {share = 5}', "share must be above 0 and at most 1, not 5", "of the window's steps"),
        ('watch."grad.max" = {window = 0}', "window must be above 1, not 0", None),
        ('watch."grad.max" = {severity = "fatal"}', "unknown severity 'fatal'", "valid: note, stop, warn"),
        ('watch."grad.max" = {severity = 3}', "unknown severity '3'", "valid: note, stop, warn"),
        ('watch."grad.norm" = {low = 30}', "low must be below high, but 30 is not below 10", None),
    ],
)
def test_a_mistake_is_named(tmp_path, text, message, hint):
    with pytest.raises(UsageError) as caught:
        project(tmp_path, text)
    assert caught.value.exit_code == EXIT_USAGE
    assert message in caught.value.message
    assert caught.value.message.startswith(str(tmp_path / "preflight.toml"))
    if hint is not None:
        assert hint in caught.value.hint


def test_the_command_refuses_a_mistake_with_one_sentence_and_a_hint(tmp_path):
    (tmp_path / "preflight.toml").write_text('[watch]\n"grad.mx" = false\n')
    done = preflight("check", "--only", "env.hosts", cwd=tmp_path)
    assert done.returncode == EXIT_USAGE
    assert "watch: unknown rule 'grad.mx'; did you mean 'grad.max'?" in done.stderr
    assert "Traceback" not in done.stderr


@given(st.sampled_from(sorted(RULES)), st.dictionaries(st.text(max_size=8), st.integers() | st.floats() | st.text()))
def test_whatever_a_rule_is_given_is_taken_or_refused_with_a_sentence(id_, values):
    valid = values.keys() <= {"severity", *RULES[id_].limits} and "severity" not in values
    with contextlib.nullcontext() if valid and not values else contextlib.suppress(UsageError):
        rules = read_watch("x", {id_: values}).rules
        assert valid
        assert rules.keys() == RULES.keys()
        assert all(math.isfinite(limit.value) for limit in rules[id_].limits.values())

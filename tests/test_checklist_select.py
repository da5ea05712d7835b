import pytest

from preflight.checklist import Check, find_check, parse_ignores, passed, run_checks, select
from preflight.errors import UsageError


def check(id_, level="quick", requires=(), title="A title"):
    return Check(id=id_, title=title, level=level, requires=requires, run=lambda _: passed("ok"))


CHECKS = [
    check("env.apis"),
    check("env.open-files"),
    check("data.present"),
    check("data.sample", "standard", ("data.present",)),
    check("data.videos", "full", ("data.present",)),
    check("grad.has-aux", "standard", ("env.apis", "data.sample")),
]


def ids(selection):
    return [check.id for check in selection.checks]


@pytest.mark.parametrize(
    ("level", "count", "last"),
    [("quick", 3, "data.present"), ("standard", 5, "grad.has-aux"), ("full", 6, "grad.has-aux")],
)
def test_a_level_includes_those_before_it(level, count, last):
    chosen = ids(select(CHECKS, level=level))
    assert len(chosen) == count
    assert chosen[-1] == last


def test_only_takes_several_globs_and_keeps_the_order_of_the_list():
    selection = select(CHECKS, level="standard", only=["data.*", "env.apis"])
    assert ids(selection) == ["env.apis", "data.present", "data.sample"]
    assert selection.required_by == {}


def test_a_glob_stays_within_the_level_but_a_full_id_does_not():
    assert "data.videos" not in ids(select(CHECKS, level="standard", only=["data.*"]))
    assert ids(select(CHECKS, level="quick", only=["data.videos"])) == ["data.present", "data.videos"]


def test_requirements_are_pulled_in_all_the_way_and_say_for_whom():
    selection = select(CHECKS, level="standard", only=["grad.*"])
    assert ids(selection) == ["env.apis", "data.present", "data.sample", "grad.has-aux"]
    assert selection.required_by == {
        "env.apis": ("grad.has-aux",),
        "data.sample": ("grad.has-aux",),
        "data.present": ("data.sample",),
    }


def test_what_is_skipped_stays_visible_and_blocks_nobody():
    selection = select(CHECKS, level="standard", only=["data.*"], skip=["data.p*"])
    assert selection.left_out == {"data.present": "left out by --skip data.p*"}
    results = run_checks(selection.checks, None, left_out=selection.left_out)
    assert [(r.check.id, r.status, r.outcome.summary) for r in results] == [
        ("data.present", "skip", "left out by --skip data.p*"),
        ("data.sample", "pass", "ok"),
    ]


def test_a_skipped_check_pulls_nothing_in():
    selection = select(CHECKS, only=["env.open-files", "grad.has-aux"], skip=["grad.*"])
    assert ids(selection) == ["env.open-files", "grad.has-aux"]


@pytest.mark.parametrize("option", ["only", "skip"])
def test_a_pattern_that_matches_nothing_is_named_with_the_valid_ids(option):
    with pytest.raises(UsageError) as caught:
        select(CHECKS, **{option: ["data.vidoes"]})
    assert caught.value.message == f"--{option} data.vidoes matches no check"
    assert caught.value.hint == (
        "Did you mean data.videos? The checks are env.apis, env.open-files, data.present, data.sample, data.videos, "
        "grad.has-aux."
    )


def test_nothing_is_suggested_that_is_not_near():
    many = [*CHECKS, *(check(f"extra.number-{i}") for i in range(20))]
    with pytest.raises(UsageError) as caught:
        select(many, only=["teapot"])
    assert caught.value.hint == "`preflight list-checks` lists them all."
    with pytest.raises(UsageError) as caught:
        select(many, only=["data.q*"])
    assert caught.value.hint == "The checks there are data.present, data.sample, data.videos."


def test_a_category_is_pointed_to_its_glob():
    with pytest.raises(UsageError) as caught:
        select(CHECKS, only=["data"])
    assert caught.value.hint == "data is a category; all its checks are 'data.*'."


def test_several_in_one_are_told_apart():
    with pytest.raises(UsageError) as caught:
        select(CHECKS, only=["data.*, grad.*"])
    assert caught.value.hint == "One id or glob each: --only data.* --only grad.*"


def test_an_empty_choice_says_which_level_has_it():
    with pytest.raises(UsageError) as caught:
        select(CHECKS, level="quick", only=["grad.*"])
    assert caught.value.message == "no check that --only grad.* matches belongs to level quick"
    assert caught.value.hint == "Add --level standard."
    with pytest.raises(UsageError, match="no check is left to run"):
        select(CHECKS, skip=["*"])


def test_unknown_level():
    with pytest.raises(UsageError) as caught:
        select(CHECKS, level="deep")
    assert (caught.value.message, caught.value.hint) == (
        "unknown level 'deep'",
        "The levels are quick, standard, full.",
    )


def test_a_duplicate_id_names_both():
    with pytest.raises(UsageError) as caught:
        select([*CHECKS, check("data.present", title="Another one")])
    assert caught.value.message == (
        "two checks are called data.present: 'A title' (from test_checklist_select) and "
        "'Another one' (from test_checklist_select)"
    )


def test_a_requirement_that_does_not_exist():
    lost = check("data.lost", requires=("data.nowhere",))
    with pytest.raises(UsageError, match=r"data\.lost requires data\.nowhere, and no check in the list has that id"):
        select([lost])


def test_ignores_are_ids_with_reasons():
    items = ["env.apis=old pin", "data.videos = known = see 12", "env.apis=newer reason"]
    assert parse_ignores(items, CHECKS) == {"env.apis": "newer reason", "data.videos": "known = see 12"}


@pytest.mark.parametrize("item", ["env.apis", "env.apis=", "env.apis=  "])
def test_an_ignore_without_a_reason_is_refused(item):
    with pytest.raises(UsageError, match=r"--ignore env\.apis gives no reason"):
        parse_ignores([item], CHECKS)


@pytest.mark.parametrize("id_", ["env.api", "env.*"])
def test_an_ignore_of_an_unknown_id_is_refused(id_):
    with pytest.raises(UsageError) as caught:
        parse_ignores([f"{id_}=because"], CHECKS)
    assert caught.value.message == f"--ignore {id_} matches no check"
    assert "env.apis" in caught.value.hint


def test_find_check():
    assert find_check("data.videos", CHECKS) is CHECKS[4]
    with pytest.raises(UsageError, match=r"data\.vidoes matches no check"):
        find_check("data.vidoes", CHECKS)

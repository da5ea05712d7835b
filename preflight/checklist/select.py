"""Which checks of the list are run: by level, by `--only` and `--skip`, and with what they require."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from preflight.checklist.check import LEVELS, Check
from preflight.checklist.requirements import index_by_id, missing_requirement
from preflight.errors import UsageError

# Up to this many ids are listed in full in an error; beyond, only near ones and those of the same category.
_FEW = 12
# difflib's ratio above which a name is "really near": a typing slip or two in an id, not another word.
_NEAR = 0.8


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The checks of one run.

    Attributes:
        checks: In the order of the full list, with those pulled in by a requirement and those left out by `--skip`.
        required_by: For each check that is here only because others require it, the ids of those others.
        left_out: For each check left out, the reason. The runner reports it as a skip and does not run it.
    """

    checks: tuple[Check[Any], ...]
    required_by: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, str]


def select(
    checks: Sequence[Check[Any]], *, level: str = "standard", only: Sequence[str] = (), skip: Sequence[str] = ()
) -> Selection:
    """Choose the checks to run.

    Args:
        checks: The full list.
        level: Checks of this level and of those before it are run.
        only: Ids or globs; nothing else is run. An id written in full is run whatever its level; a glob stays within
            the level.
        skip: Ids or globs to leave out. They stay visible as skips. What requires them is run all the same, since the
            user vouches for them; if there is nothing to look at, that check will say so itself.

    Raises:
        UsageError: A pattern matches no check, the level is unknown, a requirement is missing, two checks share an id,
            or nothing is left to run.
    """
    by_id = index_by_id(checks)
    if level not in LEVELS:
        raise UsageError(f"unknown level {level!r}", hint=f"The levels are {', '.join(LEVELS)}.")
    for option, patterns in (("--only", only), ("--skip", skip)):
        for pattern in patterns:
            if any(fnmatchcase(id_, pattern) for id_ in by_id):
                continue
            if len(several := pattern.replace(",", " ").split()) > 1:
                repeated = " ".join(f"{option} {one}" for one in several)
                raise UsageError(f"{option} {pattern!r} matches no check", hint=f"One id or glob each: {repeated}")
            raise _no_match(f"{option} {pattern}", pattern, by_id)

    within = {check.id for check in checks if _at_most(check, level)}
    chosen = {id_ for id_ in by_id if id_ in only or (id_ in within and (not only or _match(id_, only) is not None))}

    left_out: dict[str, str] = {}
    required_by: dict[str, tuple[str, ...]] = {}
    queue = [check.id for check in checks if check.id in chosen]
    for id_ in queue:  # grows while it is walked
        if (unwanted := _match(id_, skip)) is not None:
            left_out[id_] = f"left out by --skip {unwanted}"
            continue
        for required in by_id[id_].requires:
            if required not in by_id:
                raise missing_requirement(by_id[id_], required)
            if required in chosen:
                continue
            if required not in required_by:
                queue.append(required)
            required_by[required] = (*required_by.get(required, ()), id_)

    if len(left_out) == len(queue):
        raise _nothing_left(checks, level=level, only=only, skip=skip)
    return Selection(
        checks=tuple(check for check in checks if check.id in chosen or check.id in required_by),
        required_by=required_by,
        left_out=left_out,
    )


def parse_ignores(items: Iterable[str], checks: Iterable[Check[Any]]) -> dict[str, str]:
    """Read `--ignore ID=REASON` options.

    Args:
        items: The options as written; where an id comes twice, the later reason counts.
        checks: The full list of checks.

    Returns:
        The reason by check id.

    Raises:
        UsageError: An id is unknown, or there is no reason. Globs are not taken: each ignore is one decision.
    """
    by_id = index_by_id(checks)
    ignores: dict[str, str] = {}
    for item in items:
        id_, _, reason = (part.strip() for part in item.partition("="))
        if id_ not in by_id:
            raise _no_match(f"--ignore {id_}", id_, by_id)
        if not reason:
            raise UsageError(
                f"--ignore {id_} gives no reason",
                hint=f'Say why, for whoever reads the report: --ignore {id_}="known, see issue 12"',
            )
        ignores[id_] = reason
    return ignores


def find_check(id_: str, checks: Iterable[Check[Any]]) -> Check[Any]:
    """The check of that id.

    Raises:
        UsageError: No check has the id; the hint suggests near ones.
    """
    by_id = index_by_id(checks)
    if id_ not in by_id:
        raise _no_match(id_, id_, by_id)
    return by_id[id_]


def _at_most(check: Check[Any], level: str) -> bool:
    return LEVELS.index(check.level) <= LEVELS.index(level)


def _match(id_: str, patterns: Sequence[str]) -> str | None:
    return next((pattern for pattern in patterns if fnmatchcase(id_, pattern)), None)


def _no_match(subject: str, pattern: str, by_id: Mapping[str, Check[Any]]) -> UsageError:
    return UsageError(f"{subject} matches no check", hint=_suggestion(pattern, by_id))


def _suggestion(pattern: str, by_id: Mapping[str, Check[Any]]) -> str:
    from difflib import get_close_matches

    ids = list(by_id)
    if any(check.category == pattern for check in by_id.values()):
        return f"{pattern} is a category; all its checks are '{pattern}.*'."
    hints = []
    if near := get_close_matches(pattern, ids, n=3, cutoff=_NEAR):
        hints.append(f"Did you mean {' or '.join(near)}?")
    siblings = [id_ for id_ in ids if id_.partition(".")[0] == pattern.partition(".")[0]]
    if len(ids) <= _FEW:
        hints.append(f"The checks are {', '.join(ids)}.")
    elif siblings and not near:
        hints.append(f"The checks there are {', '.join(siblings)}.")
    elif not near:
        hints.append("`preflight list-checks` lists them all.")
    return " ".join(hints)


def _nothing_left(checks: Sequence[Check[Any]], *, level: str, only: Sequence[str], skip: Sequence[str]) -> UsageError:
    asked = [check for check in checks if not only or _match(check.id, only) is not None]
    asked = [check for check in asked if _match(check.id, skip) is None]
    if not asked:
        return UsageError("no check is left to run", hint="Drop one of the --only and --skip options.")
    lowest = min((check.level for check in asked), key=LEVELS.index)
    named = f"that --only {' --only '.join(only)} matches" if only else "in the list"
    return UsageError(f"no check {named} belongs to level {level}", hint=f"Add --level {lowest}.")

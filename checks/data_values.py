"""`data.values`: nothing in the recorded state and actions is odd."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from checks.context import CheckContext
from checks.data_columns import episodes_text, frame_text, scanned
from preflight.checklist import Check, Hint, Outcome, passed, warned

if TYPE_CHECKING:
    from preflight.data.column_scan import ColumnScan, Scan

_SHOWN = 8  # lines of evidence
_HAND = re.compile(r"gripper|hand|finger|claw", re.IGNORECASE)
_GRIPPER = re.compile(r"gripper", re.IGNORECASE)
_MOVES = 0.2  # a hand that moves: radians, or a fifth of the way from open to closed
# A gripper between 0 and 1 in some episodes and over ten times as far in others: two units in one dataset.
_OTHER_UNIT = 10.0
_COPIED = (
    "the recorder wrote the state in the place of the command: record the commands, or shift the state by some frames "
    "where the robot follows it closely"
)


def _values(context: CheckContext) -> Outcome:
    if context.run.source() is None:
        return passed("samples are made up without a dataset: no value was recorded")
    scan = scanned(context)
    if not scan.columns:
        return passed("the run asks for no column of measured values")
    findings = [*_copied(context, scan), *_still(scan), *_frozen(context, scan), *_jumps(context, scan), *_hands(scan)]
    constant = {key: [column.labels[i] for i in column.constant.nonzero()[0]] for key, column in scan.columns.items()}
    frames, dims = _frames(context), sum(len(column.labels) for column in scan.columns.values())
    measured = {
        "frames": frames,
        "columns": list(scan.columns),
        "constant": [label for labels in constant.values() for label in labels],
        "jumps": sum("jumps from" in text for text, _ in findings),
        "equal": [list(pair) for pair in scan.equal],
    }
    if findings:
        more = f"; and {len(findings) - 1} more finding(s)" if len(findings) > 1 else ""
        lines = tuple(text for text, _ in findings[:_SHOWN])
        if len(findings) > _SHOWN:
            lines += (f"and {len(findings) - _SHOWN} more",)
        return warned(findings[0][0] + more, measured=measured, evidence=lines, hint=Hint(text=findings[0][1]))
    summary = f"{dims} dimensions of {' and '.join(scan.columns)} in all {frames:,} frames: no jump, no copy"
    still = [label for labels in constant.values() for label in labels]
    if still:
        summary += f"; {len(still)} never move: {', '.join(still[:_SHOWN])}" + (" …" if len(still) > _SHOWN else "")
    return passed(summary, measured=measured)


def _frames(context: CheckContext) -> int:
    from preflight.data.metadata import read_info

    root = context.run.source()
    assert root is not None
    return read_info(root).total_frames


def _parts(scan: Scan) -> tuple[list[ColumnScan], list[ColumnScan]]:
    """The columns of actions, and the others."""
    actions = [column for column in scan.columns.values() if "action" in column.key]
    return actions, [column for column in scan.columns.values() if "action" not in column.key]


def _copied(context: CheckContext, scan: Scan) -> list[tuple[str, str]]:
    actions, states = ({column.key for column in part} for part in _parts(scan))
    found = []
    for pair in scan.equal_episodes:
        action, state = sorted(pair, key=lambda key: key in states)
        if action not in actions or state not in states or scan.columns[action].constant.all():
            continue
        if pair in scan.equal:
            where = "in every frame"
        elif (positions := scan.copied(pair).tolist()) and not _is_hand(scan.columns[action]):
            where = f"in every frame of {episodes_text(context, positions)}, but not in others"
        else:
            continue
        found.append((f"{action} is equal to {state} {where}: a policy that learns it stands still", _COPIED))
    return found


def _is_hand(column: ColumnScan) -> bool:
    """Whether a column is nothing but a hand, which many an episode does not use."""
    return all(_HAND.search(name or column.key) for name in column.names)


def _frozen(context: CheckContext, scan: Scan) -> list[tuple[str, str]]:
    hint = "the recorder hung, or the robot was not switched on: look at these episodes, and drop them if it was so"
    found = []
    for column in scan.columns.values():
        if (positions := scan.frozen(column.key).tolist()) and not _is_hand(column):
            dims = f"none of the {len(column.labels)} dimensions of {column.key}"
            where = episodes_text(context, positions)
            found.append((f"{dims} moves in {where}, though they do in others", hint))
    return found


def _still(scan: Scan) -> list[tuple[str, str]]:
    return [
        (
            f"none of the {len(column.labels)} dimensions of {column.key} ever moves",
            "the recorder wrote nothing: look at the recording, or choose another column",
        )
        for column in _parts(scan)[0]
        if column.constant.all()
    ]


def _jumps(context: CheckContext, scan: Scan) -> list[tuple[str, str]]:
    found = [
        (abs(jump.after - jump.before) / jump.typical, column.labels[jump.dim], jump)
        for column in scan.columns.values()
        for jump in column.jumps
        if not _HAND.search(column.names[jump.dim])  # they open and close at once
    ]
    found.sort(key=lambda entry: -entry[0])
    hint = "look at that episode: a sensor's glitch, an angle that wraps, or frames left out; repair it or drop it"
    lines = [
        f"{label} jumps from {jump.before:.4g} to {jump.after:.4g} at {frame_text(context, jump.frame)}, "
        f"{times:,.0f} times as far as it goes in a frame otherwise"
        for times, label, jump in found[:_SHOWN]
    ]
    lines += [f"{label} jumps from {jump.before:.4g} to {jump.after:.4g}" for _, label, jump in found[_SHOWN:]]
    return [(line, hint) for line in lines]


def _hands(scan: Scan) -> list[tuple[str, str]]:
    actions, states = _parts(scan)
    moving = {
        name: column.labels[dim]
        for column in states
        for dim, name in enumerate(column.names)
        if _HAND.search(name) and column.high[dim] - column.low[dim] > _MOVES
    }
    found = [
        (
            f"{column.labels[dim]} never moves, though {moving[name]} does: the command was not recorded",
            "a policy that learns it never closes that hand: record its command, or take it from the state",
        )
        for column in actions
        for dim, name in enumerate(column.names)
        if name in moving and column.constant[dim]
    ]
    for column in scan.columns.values():
        for dim, name in enumerate(column.names):
            if not _GRIPPER.search(name):
                continue
            low, high = column.episode_low[:, dim], column.episode_high[:, dim]
            within = (low >= -0.1) & (low < 0.1) & (high > 0.9) & (high <= 1.1)
            beyond = high - low > _OTHER_UNIT
            if within.any() and beyond.any() and (within | beyond).mean() > 0.5:
                first = int(beyond.argmax())
                text = (
                    f"{column.labels[dim]} goes from 0 to 1 in {int(within.sum())} episode(s) and up to "
                    f"{high[first]:.4g} in {int(beyond.sum())}, the first of them episode {first}"
                )
                found.append((text, "two units in one dataset: bring all episodes to one"))
    return found


CHECK = Check(
    id="data.values",
    title="The recorded values look like motion",
    level="standard",
    severity="warn",
    requires=("data.timestamps", "data.features"),
    failures=("F05", "F06"),
    timeout_s=600,
    run=_values,
    doc="Goes through the columns of state and actions in all frames, file by file. It warns of a step between two "
    "neighbouring frames that is over 20 times as far as the dimension's own and over a quarter of its range, with "
    "nothing alongside that would make it a motion; of actions that are the state itself, or never move; of "
    "single episodes in which actions are the state, or a column stands still that moves in others; of a hand "
    "whose command stands still while the hand moves; and of a gripper in two units. Dimensions that never move are "
    "named where it passes. NaN and infinity are data.norm-stats' to report.",
)

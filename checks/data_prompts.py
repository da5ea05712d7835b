"""`data.prompts`: every frame has a prompt, and the model's tokens hold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from checks.context import CheckContext, with_settings
from preflight.checklist import Check, Hint, Outcome, failed, passed, warned
from preflight.data.metadata import DatasetInfo, read_info

if TYPE_CHECKING:
    from preflight.data.episodes import Episodes
    from preflight.runs.protocol import Prompt


def _prompts(context: CheckContext) -> Outcome:
    from preflight.data.episodes import read_episodes
    from preflight.data.raw_values import read_task_indices

    run = context.run
    root = run.source()
    if root is None:
        return passed("samples are made up without a dataset: it has no tasks")
    info = read_info(root)
    episodes = read_episodes(info)
    prompts = run.prompts()
    # A task that no frame has is never read.
    used = read_task_indices(info, episodes) or tuple(prompts)
    measured = {"tasks_used": len(used), "tasks": sum(bool(task) for task in episodes.tasks)}
    if gaps := _gaps(used, prompts, info, episodes):
        return failed(
            f"frames have task_index {', '.join(map(str, gaps[:10]))}, which none of the dataset's "
            f"{measured['tasks']} task(s) has",
            measured=measured | {"gaps": gaps[:100]},
            # LeRobot's own reader looks the task up even where its text is not used.
            hint=Hint(
                text="repair the dataset's meta/tasks file"
                + (", or set data.prompt for all frames" if "data.prompt" in run.facts.settings else "")
            ),
        )
    if without := [index for index in used if prompts[index].text is None]:
        return failed(
            f"Prompt is required: the model is told nothing with {_tasks(without, episodes)}",
            measured=measured | {"without_prompt": len(without)},
            hint=Hint(
                text="take the prompt from the dataset's tasks (openpi: base_config=DataConfig(prompt_from_task=True)) "
                "or set one for all frames (openpi: default_prompt; natively: data.prompt)"
            ),
        )
    if empty := [index for index in used if not (prompts[index].text or "").strip()]:
        return warned(
            f"the prompt of {_tasks(empty, episodes)} is empty: the model learns to act without being told what to do",
            measured=measured | {"empty": len(empty)},
            hint=Hint(
                text="write the tasks' texts into the dataset's meta/tasks file, or set one prompt for all frames"
            ),
        )
    counts = {index: prompts[index].num_tokens for index in used}
    return _length(context, prompts, counts, measured)


def _gaps(used: tuple[int, ...], prompts: Mapping[int, Prompt], info: DatasetInfo, episodes: Episodes) -> list[int]:
    """Indices of frames without an entry among the tasks, unless the run gives them a prompt all the same."""
    unexplained = [index for index in used if index not in prompts or not prompts[index].text]
    if not unexplained:
        return []
    listed = _listed(info, episodes)
    return [index for index in unexplained if index not in prompts or index not in listed]


def _listed(info: DatasetInfo, episodes: Episodes) -> set[int]:
    """The indices that the tasks' file has, be their text empty."""
    if info.one_file_per_episode:
        from preflight.data.files import read_json_lines

        return {row["task_index"] for row in read_json_lines(info.root / "meta" / "tasks.jsonl")}
    return {index for index, task in enumerate(episodes.tasks) if task}


def _length(
    context: CheckContext, prompts: Mapping[int, Prompt], counts: Mapping[int, int], measured: Mapping[str, int]
) -> Outcome:
    room = context.run.facts.max_token_len
    longest = max(counts, key=lambda index: counts[index])
    need = counts[longest]
    measured = {**measured, "longest_tokens": need, "max_token_len": room}
    if too_long := sorted((index for index in counts if counts[index] > room), key=lambda index: -counts[index]):
        key = next((name for name in context.run.facts.settings if name.endswith("max_token_len")), None)
        more = f"; too long are {len(too_long)} of {len(counts)} prompts" if len(counts) > 1 else ""
        return warned(
            f"the prompt of task {longest}, {_short(prompts[longest].text)}, takes {need} tokens and the model reads "
            f"{room}: it is cut{more}",
            measured={**measured, "too_long": len(too_long)},
            evidence=tuple(f"task {i}: {counts[i]} tokens: {_short(prompts[i].text)}" for i in too_long[:10]),
            hint=Hint(
                text="give the model room for it, which costs memory and time in every step, or shorten the text",
                commands=with_settings(context, f"{key}={need}") if key else (),
            ),
        )
    shown = f"{len(counts)} task(s), the longest takes {need} of {room} tokens"
    return passed(f"{shown}: {_short(prompts[longest].text)}", measured=measured)


def _tasks(indices: list[int], episodes: Episodes) -> str:
    named = [f"task {index}" for index in indices[:3]]
    text = episodes.tasks[indices[0]] if 0 <= indices[0] < len(episodes.tasks) else ""
    if text:
        named[0] += f" ({_short(text)})"
    return ", ".join(named) + (f" and {len(indices) - 3} more" if len(indices) > 3 else "")


def _short(text: str | None) -> str:
    text = text or ""
    return repr(text if len(text) <= 60 else f"{text[:57]}…")


CHECK = Check(
    id="data.prompts",
    title="Every frame has a prompt that is read whole",
    level="standard",
    severity="fail",
    requires=("data.timestamps", "data.features"),
    failures=("F34", "F35", "F36"),
    timeout_s=120,
    run=_prompts,
    doc="Takes the task_index of all frames from the parquet files and looks each up among the dataset's tasks; then "
    "makes the prompt of each task as the run makes it and counts its tokens before anything is cut, for pi0.5 with a "
    "state in it. A missing prompt otherwise stops the first batch, a long one is cut without an error.",
)

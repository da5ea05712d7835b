"""What several commands ask for."""

from __future__ import annotations

import io
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, TextIO

import typer

from preflight.config.builtin import DEFAULT_CONFIG
from preflight.config.project import Project, find_project
from preflight.errors import UsageError
from preflight.whole_file import require_writable, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from preflight.runs import Run
    from preflight.telemetry.targets import Target

ConfigArgument = Annotated[
    Optional[str],  # noqa: UP045  typer before 0.13 reads no `str | None`
    typer.Argument(
        metavar="[CONFIG]",
        help=f"A built-in config or a TOML run file; without it the project file's, else {DEFAULT_CONFIG}.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a config field, e.g. --set batch_size=8.")
]
TargetOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--target",
        metavar="GPU",
        help="Judge for this GPU, e.g. h100-80gb, 8xh100-80gb or my_gpu.toml, instead of what is here.",
        show_default=False,
    ),
]
StackOption = Annotated[str, typer.Option("--stack", metavar="NAME", help="auto, native or openpi.")]
OpenpiOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--openpi",
        metavar="DIR",
        help="Use the openpi checkout in this folder instead of the installed one.",
        show_default=False,
    ),
]


def output_option(help: str) -> Any:  # noqa: A002
    """`--output FILE`, of an `Optional[Path]`.

    Args:
        help: What is written there, and when.
    """
    return typer.Option("--output", metavar="FILE", help=help, show_default=False)


def open_run(config: str | None, stack: str, assignments: list[str], openpi: Path | None = None) -> tuple[Run, Project]:
    """The run that the command line means, and the project it stands in."""
    from preflight.cli.progress import demo_progress
    from preflight.runs import load_run
    from preflight.telemetry.devices import quiet_idle_plugin

    quiet_idle_plugin()
    project = find_project(Path.cwd())
    name = config or project.config or DEFAULT_CONFIG
    if stack == "auto" and project.stack is not None:
        stack = project.stack
    run = load_run(name, stack=stack, assignments=assignments, on_demo=demo_progress(), checkout=openpi)
    return run, project


def one_of(option: str, value: str, valid: tuple[str, ...]) -> str:
    """The value, if it is valid.

    Raises:
        UsageError: It is not; lists those that are.
    """
    if value not in valid:
        from preflight.suggest import unknown

        message, hint = unknown(f"value for {option}", value, valid)
        raise UsageError(message, hint)
    return value


def judged_for(target: str | None) -> Target | None:
    """What `--target` means.

    Raises:
        UsageError: No known GPU, or no description of one.
    """
    if target is None:
        return None
    from preflight.telemetry.targets import parse_target

    return parse_target(target)


@contextmanager
def output_file(path: Path | None) -> Iterator[TextIO | None]:
    """The text of `--output`'s file, which is tried before anything is measured: a wrong path should cost no minute.

    Raises:
        UsageError: It cannot be written.
    """
    if path is None:
        yield None
        return
    require_writable("--output", path)
    # Written in one go at the end: what an interrupted command would leave is not taken for its result.
    buffer = io.StringIO()
    yield buffer
    write_output(path, buffer.getvalue())


def write_output(path: Path, text: str) -> None:
    """Writes `--output`'s file in one step.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise UsageError(f"--output {path} cannot be written: {error.strerror or error}") from None

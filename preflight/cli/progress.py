"""Progress on stderr: a bar on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def demo_progress() -> Callable[[int, int], None]:
    """Says once that the demo dataset is being made, and how far it is."""
    said = False

    def on_frames(done: int, total: int) -> None:
        nonlocal said
        if sys.stderr.isatty():
            print(f"\rmaking the demo dataset (once): {done} of {total} frames ", end="", file=sys.stderr, flush=True)  # noqa: T201
            if done >= total:
                print(file=sys.stderr)  # noqa: T201
        elif not said:
            print("making the demo dataset (once) …", file=sys.stderr)  # noqa: T201
        said = True

    return on_frames


@contextmanager
def frames_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while frames are gone through; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        # Some versions of rich end even a bar that is disabled with an empty line.
        yield lambda done, total: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    # What is written to stderr meanwhile goes above the bar.
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("frames", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class TrainProgress:
    """A progress bar below the log lines; only the lines where stderr is no terminal.

    Args:
        total: Steps of the whole run.
    """

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("compiling the first step", total=total)

    def __enter__(self) -> TrainProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Prints a line of the log to stdout; on a terminal, above the bar."""
        if not self._bar.disable and sys.stdout.isatty():
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)  # noqa: T201

    def advance(self, step: int) -> None:
        """Moves the bar to a finished step."""
        self._bar.update(self._task, completed=step + 1, description="training")

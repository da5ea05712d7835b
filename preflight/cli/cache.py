"""`preflight cache`: the frame cache on disk, made before a run, looked at and removed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from preflight.cli.options import ConfigArgument, OpenpiOption, SetOption, StackOption, open_run
from preflight.cli.progress import frames_progress
from preflight.errors import EXIT_CLEARED, EXIT_NOT_CLEARED, DataError, PreflightError, UsageError

if TYPE_CHECKING:
    from preflight.data.frame_cache import FrameCache
    from preflight.runs import Run


def cache(
    config: ConfigArgument = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Show what the run's cache is and all that lies in its folder.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every frame with its checksum; nothing is made.")
    ] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Remove all caches of the run's cameras.")] = False,
    stack: StackOption = "auto",
    openpi: OpenpiOption = None,
    set_: SetOption = [],  # noqa: B006
) -> int:
    """Decode a run's frames once, at the size that the model sees, into one file a camera.

    Runs with data.cache=disk read them there; one that finds none makes it at its start. The folder is data.cache_dir,
    else frames/ in preflight's cache ($PREFLIGHT_CACHE). Interrupted or killed, it goes on where it was the next time.
    Exit codes: 0 the cache is whole, 2 usage or config, 3 it is not or cannot be made, 130 interrupted.
    """
    if list_ + verify + delete > 1:
        raise UsageError("--list, --verify and --delete are asked for together", "give one of them")
    from bench.worker_limits import size_text

    run, _ = open_run(config, stack, set_, openpi)
    frames = _cache_of(run)
    if list_:
        return _list(frames)
    if verify:
        return _verify(frames)
    if delete:
        return _delete(frames)
    with frames_progress() as progress:
        frames.build(say, progress)
    for one in frames.states():
        sys.stdout.write(f"{one.camera}: {size_text(one.num_bytes)} in {one.place}\n")
    if frames.kind != "disk":
        sys.stdout.write("Read by runs with --set data.cache=disk.\n")
    return 0


def prepare_frames(run: Run) -> None:
    """Makes the frame cache that a run asks for, where it is not there yet; says so, with a bar.

    Raises:
        PreflightError: It cannot be made.
    """
    if run.facts.settings.get("data.cache", "off") == "off":
        return
    with frames_progress() as progress:
        _cache_of(run).prepare(say, progress)


def say(line: str) -> None:
    """Tells something on stderr, above a bar where one is shown."""
    from rich.console import Console

    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


def _cache_of(run: Run) -> FrameCache:
    if run.source() is None:
        raise UsageError("the run makes up its samples without a dataset: there are no frames to keep")
    found = getattr(run.dataset(), "frame_cache", None)
    if found is None:
        raise UsageError(
            f"{run.facts.name} is a config of the {run.facts.stack} stack, whose own reader makes its samples",
            "the frame cache is the native reader's: --stack native",
        )
    if not found.keys:
        raise UsageError("the run uses no camera: there are no frames to keep", "name one in [data.cameras]")
    return found


def _list(frames: FrameCache) -> int:
    from bench.worker_limits import size_text
    from preflight.data.frame_store import stored_in

    states = frames.states()
    for one in states:
        why = f": {one.why}" if one.why else ""
        sys.stdout.write(f"{one.camera}: {one.state}{why}, {size_text(one.num_bytes)} in {one.place}\n")
    here = stored_in(frames.folder)
    count = "1 cache" if len(here) == 1 else f"{len(here)} caches"
    sys.stdout.write(f"\n{frames.folder}: {count}, {size_text(sum(one.num_bytes for one in here))}\n")
    own = {one.place for one in states}
    for stored in here:
        identity = stored.description["identity"]
        words = [identity.get("camera"), identity.get("resize"), f"{identity.get('frames'):,} frames"]
        words += [] if stored.whole else ["unfinished"]
        words += ["of this run"] if stored.folder in own else []
        sys.stdout.write(f"  {size_text(stored.num_bytes):>9}  {stored.description['dataset']}: {', '.join(words)}\n")
    return 0


def _verify(frames: FrameCache) -> int:
    from preflight.data.frame_store import verify_all

    code = EXIT_CLEARED
    for one in frames.states():
        why = f": {one.why}" if one.why else ""
        if one.state == "ready":
            try:
                verify_all(one.place)
            except DataError as error:
                why = f": {error.message}"
            else:
                sys.stdout.write(f"{one.camera}: every frame has its checksum\n")
                continue
        sys.stdout.write(f"{one.camera}: {one.state if one.state != 'ready' else 'damaged'}{why}\n")
        code = EXIT_NOT_CLEARED
    return code


def _delete(frames: FrameCache) -> int:
    from bench.worker_limits import size_text

    try:
        removed = frames.delete()
    except OSError as error:
        raise PreflightError(
            f"{error.filename or frames.folder} cannot be removed: {error.strerror or error}"
        ) from error
    for folder, num_bytes in removed:
        sys.stdout.write(f"removed {folder} ({size_text(num_bytes)})\n")
    if not removed:
        sys.stdout.write(f"nothing of this run's cameras is in {frames.folder}\n")
    return 0

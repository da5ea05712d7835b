"""`python -m bench.feed`: preflight's loader, LeRobot's, openpi's and the decoder's own limit, on the same datasets.

The rows are measured in rounds, one slice of each a round, and each round begins with another row, so that a machine
that drifts favours none; ratios are paired by round. A slice is `bench.loader_slice`'s: the first batches, all that can
have been prefetched, are left out, and throughput is that of blocks of whole turns (`bench.statistics`). The dataset's
files are read once before, so that the page cache is warm.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from bench.feed_rounds import measure_rounds, require_rows
from bench.feed_table import feed_json, render_feed
from preflight.errors import PreflightError, UsageError

_EXAMPLE = Path(__file__).parent.parent / "examples" / "data" / "g1"
_DEMO_RESOLUTION = (480, 640)


def demo_480() -> Path:
    """The demo dataset with its three cameras at 480x640, made on first use and kept beside the small one."""
    from preflight.data.demo import demo_dataset_root, write_demo_dataset

    root = demo_dataset_root()
    root = root.with_name(f"{root.name}-480x640")
    if not (root / "meta" / "info.json").is_file():
        sys.stderr.write(f"Making the demo dataset at 480x640 in {root}: about a minute\n")
        write_demo_dataset(root, resolution=_DEMO_RESOLUTION)
    return root


def main(arguments: list[str] | None = None) -> int:
    """Prints a table for each dataset, or one JSON object; 0 if preflight's own rows were measured, else 3."""
    options = _options(arguments)
    try:
        require_rows(options.only)
        roots = [options.dataset] if options.no_demo else [options.dataset, demo_480()]
        found = []
        for root in roots:
            with tempfile.TemporaryDirectory(prefix="preflight-feed-", dir=options.folder) as folder:
                feed = measure_rounds(
                    root,
                    Path(folder),
                    keys=options.only,
                    num_workers=options.workers,
                    batch_size=options.batch_size,
                    rounds=options.rounds,
                    seconds=options.max_seconds / options.rounds,
                    say=lambda line: sys.stderr.write(f"{line}\n"),
                )
            found.append(feed)
            if options.format == "text":
                print(render_feed(feed), flush=True)
        if options.format == "json":
            print(json.dumps(feed_json(found), indent=2))
    except UsageError as error:
        sys.stderr.write(f"{error.message}\n" + (f"  hint: {error.hint}\n" if error.hint else ""))
        return 2
    except PreflightError as error:
        sys.stderr.write(f"{error.message}\n" + (f"  hint: {error.hint}\n" if error.hint else ""))
        return 3
    return 0 if all(feed.own_measured for feed in found) else 3


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.feed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", type=Path, default=_EXAMPLE, metavar="DIR", help="in place of the example's G1")
    parser.add_argument("--no-demo", action="store_true", help="leave out the three-camera demo data at 480x640")
    parser.add_argument("--only", action="append", metavar="ROW", help="only this row; may be given several times")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N")
    parser.add_argument("--rounds", type=int, default=None, metavar="N", help="5; with --quick 2")
    parser.add_argument(
        "--max-seconds", type=float, default=None, metavar="S", help="of each row over all rounds: 30; with --quick 4"
    )
    parser.add_argument("--quick", action="store_true", help="a short look: its intervals are wide")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="for the frame cache, removed in the end; else the system's"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds if options.rounds is not None else 2 if options.quick else 5
    options.max_seconds = options.max_seconds if options.max_seconds is not None else 4.0 if options.quick else 30.0
    for name in ("workers", "batch_size", "rounds", "max_seconds"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be more than 0, not {getattr(options, name):g}")
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

"""`storage.dataset-cache`: how much the reader's copy of a dataset takes, and whether it fits."""

import dataclasses
import importlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from healthy import EXAMPLE, context

from checks.storage_dataset_cache import CHECK, _arrow_bytes
from preflight.checklist import run_checks

V30 = Path(EXAMPLE).parent / "data" / "g1"
V21 = Path(__file__).parent / "data" / "g1_v21"
GIB = 2**30


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "not yet" / "datasets"


def openpis(cache, root=V21, free=GIB, **changes):
    """A run that LeRobot's own reader reads for."""
    probes = {"environ": {"HF_DATASETS_CACHE": str(cache)}, "disk_free": lambda path: free}
    checked = context(f"data.root={root}", probes=probes, **changes)
    checked.run.facts = dataclasses.replace(checked.run.facts, decodes_all_cameras=True)
    return checked


def result_of(checked):
    (result,) = run_checks([dataclasses.replace(CHECK, requires=())], checked)
    return result


def copied(root, folder):
    """Bytes of the copy that the datasets library makes, offline."""
    datasets = importlib.import_module("datasets")
    datasets.disable_progress_bars()
    made = datasets.load_dataset("parquet", data_dir=str(root / "data"), split="train", cache_dir=str(folder))
    assert len(made) == sum(pq.read_metadata(path).num_rows for path in (root / "data").rglob("*.parquet"))
    return sum(path.stat().st_size for path in Path(folder).rglob("*.arrow"))


def test_the_native_reader_makes_no_copy():
    result = result_of(context())
    assert result.status == "pass"
    assert result.outcome.summary == "the native reader reads the parquet files as they lie: no copy is made"


def test_samples_that_are_made_up_have_none(cache):
    checked = openpis(cache)
    checked.run.source = lambda: None
    assert result_of(checked).outcome.summary == "samples are made up without a dataset: no copy is made"


@pytest.mark.parametrize("free", [120_000, 130_000])
def test_the_copy_is_compared_with_the_free_space(free, cache):
    result = result_of(openpis(cache, free=free))
    summary = f"LeRobot's reader copies the parquet data into {cache}, about 118.7 KiB (2 of 2 files were looked at), "
    assert result.outcome.summary.startswith(summary)
    assert not cache.parent.exists()
    if free == 130_000:
        assert result.status == "pass"
        assert result.outcome.summary.removeprefix(summary) == "where 127.0 KiB are free"
    else:
        assert result.status == "warn"
        assert result.outcome.summary.removeprefix(summary) == (
            "where 117.2 KiB are free; unless an earlier run has made the copy, which cannot be seen"
        )
        assert result.outcome.hint.commands == ("export HF_DATASETS_CACHE=DIR",)


def test_the_cache_lies_where_the_library_has_it(tmp_path):
    for environ, folder in (
        ({"HF_DATASETS_CACHE": "/c", "HF_HOME": "/hf"}, "/c"),
        ({"HF_HOME": "/hf", "XDG_CACHE_HOME": "/x"}, "/hf/datasets"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/datasets"),
        ({}, str(Path.home() / ".cache/huggingface/datasets")),
    ):
        checked = openpis("unused")
        checked = dataclasses.replace(checked, probes=dataclasses.replace(checked.probes, environ=environ))
        assert result_of(checked).outcome.measured["folder"] == folder


def test_a_file_in_the_caches_place(tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = result_of(openpis(tmp_path / "file" / "datasets"))
    assert result.status == "warn"
    assert result.outcome.summary.endswith(f", and {tmp_path / 'file'} is a file")


def test_files_that_cannot_be_read_are_passed_over(tmp_path, cache):
    root = Path(shutil.copytree(V21, tmp_path / "g1"))
    first, second = sorted((root / "data").rglob("*.parquet"))
    first.write_bytes(first.read_bytes()[:1000])
    result = result_of(openpis(cache, root))
    assert "about 118.7 KiB (1 of 2 files were looked at)" in result.outcome.summary
    second.write_bytes(b"")
    result = result_of(openpis(cache, root))
    assert result.status == "skip"
    assert result.outcome.summary.startswith(f"no parquet file in {root / 'data'} could be read")


def test_of_many_files_a_part_is_looked_at_and_all_at_level_full(tmp_path, cache):
    root = Path(shutil.copytree(V21, tmp_path / "g1"))
    source = root / "data" / "chunk-000" / "episode_000000.parquet"
    for index in range(2, 150):
        source.with_name(f"episode_{index:06d}.parquet").hardlink_to(source)
    (root / "meta" / "info.json").write_text(
        (root / "meta" / "info.json").read_text().replace('"total_frames": 498', f'"total_frames": {498 + 148 * 221}')
    )
    seen = []
    part = result_of(openpis(cache, root))
    whole = result_of(openpis(cache, root, level="full", progress=lambda what, done, total: seen.append((done, total))))
    assert part.outcome.measured["files"] == 75
    assert "(75 of 150 files were looked at)" in part.outcome.summary
    assert whole.outcome.measured["files"] == 150
    assert seen[-1] == (150, 150)
    assert part.outcome.measured["copy_gib"] == pytest.approx(whole.outcome.measured["copy_gib"], rel=0.01)


def test_the_estimate_is_what_the_library_writes(tmp_path, monkeypatch):
    """On real numbers, on recurring ones, which parquet has in few bytes, and on pictures."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    rng = np.random.default_rng(0)
    recurring, pictures = tmp_path / "recurring", tmp_path / "pictures"
    rows = 2000
    numbers = {
        "observation.state": pa.array([[0.5] * 2] * rows, pa.list_(pa.float32())),
        "index": pa.array(range(rows)),
        "task_index": pa.array([0] * rows),
        "next.done": pa.array([False] * rows),
    }
    shots = [{"bytes": rng.bytes(3000), "path": f"frame_{index:06d}.png"} for index in range(rows)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for root, columns in ((recurring, numbers), (pictures, {**numbers, "camera": pa.array(shots, kind)})):
        (root / "data").mkdir(parents=True)
        pq.write_table(pa.table(columns), root / "data" / "0.parquet")
    for root, tolerance in ((V21, 0.05), (recurring, 0.1), (pictures, 0.05)):
        expected = copied(root, tmp_path / f"cache of {root.name}")
        estimate = sum(_arrow_bytes(path)[1] for path in (root / "data").rglob("*.parquet"))
        assert estimate == pytest.approx(expected, rel=tolerance), root.name

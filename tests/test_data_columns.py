import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preflight.data.columns import read_columns
from preflight.data.episodes import read_episodes
from preflight.data.metadata import read_info
from preflight.errors import DataError

REPOSITORY = Path(__file__).parent.parent
V30 = REPOSITORY / "examples" / "data" / "g1"
V21 = REPOSITORY / "tests" / "data" / "g1_v21"
FLOAT = np.dtype(np.float32)


def read(root, **dtypes):
    info = read_info(root)
    return read_columns(info, read_episodes(info), dtypes)


@pytest.fixture
def v30(tmp_path):
    return Path(shutil.copytree(V30, tmp_path / "set"))


@pytest.fixture
def v21(tmp_path):
    return Path(shutil.copytree(V21, tmp_path / "set"))


def replace_column(path, name, values):
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, values), path)


def refusal(root, **dtypes):
    with pytest.raises(DataError) as error:
        read(root, **dtypes)
    return error.value


def test_both_formats_give_what_pyarrow_reads_row_by_row():
    rows = pq.read_table(V30 / "data" / "chunk-000" / "file-000.parquet").to_pylist()
    for root in (V30, V21):
        dtypes = {
            "observation.state": FLOAT,
            "action": FLOAT,
            "timestamp": np.dtype(np.float64),
            "index": np.dtype(int),
        }
        columns = read(root, **dtypes)
        assert list(columns) == list(dtypes)
        for key, dtype in dtypes.items():
            expected = np.array([row[key] for row in rows], dtype=dtype).reshape(498, -1)
            assert columns[key].dtype == dtype
            assert columns[key].flags.c_contiguous
            np.testing.assert_array_equal(columns[key], expected)
        assert columns["action"].shape == (498, 26)


def test_unknown_column_names_the_nearest():
    error = refusal(V30, actions=FLOAT)
    assert error.message == f"'actions' is not in the dataset {V30}"
    assert error.hint.startswith("Did you mean action? The dataset has: observation.state, action, ")
    assert refusal(V30, velocity=FLOAT).hint.startswith("The dataset has: observation.state, ")
    assert refusal(V30, state=FLOAT).hint.startswith("Did you mean observation.state? ")


def test_a_camera_is_no_column():
    key = "observation.images.cam_high"
    assert refusal(V30, **{key: FLOAT}).message == f"{key!r} is of dtype video, not a column of numbers"


def test_column_missing_from_one_file(v21):
    path = v21 / "data" / "chunk-000" / "episode_000001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.rename_columns([{"action": "actions"}.get(n, n) for n in table.column_names]), path)
    error = refusal(v21, action=FLOAT)
    assert error.message == f"{path}: no column 'action'"
    assert error.hint.startswith("Did you mean actions? The file has: ")


def test_ragged_rows_are_placed(v30):
    path = v30 / "data" / "chunk-000" / "file-000.parquet"
    values = pq.read_table(path)["action"].to_pylist()
    values[300] = values[300][:25]
    replace_column(path, "action", pa.array(values, pa.list_(pa.float32())))
    message = f"{path}, row 300: 'action' has 25 values, but info.json gives it the shape [26]"
    assert refusal(v30, action=FLOAT).message == message


def test_missing_values_are_refused(v30):
    path = v30 / "data" / "chunk-000" / "file-000.parquet"
    values = pq.read_table(path)["action"].to_pylist()
    values[3] = None
    replace_column(path, "action", pa.array(values, pa.list_(pa.float32())))
    assert refusal(v30, action=FLOAT).message == f"{path}: column 'action' has 1 missing value(s)"


def test_a_scalar_where_a_vector_should_be(v30):
    path = v30 / "data" / "chunk-000" / "file-000.parquet"
    replace_column(path, "action", pa.array(np.zeros(498, np.float32)))
    message = f"{path}: 'action' has one value a row, but info.json gives it the shape [26]"
    assert refusal(v30, action=FLOAT).message == message
    replace_column(path, "timestamp", pa.array(["a"] * 498))
    assert refusal(v30, timestamp=FLOAT).message == f"{path}: column 'timestamp' holds string, not numbers"


def test_matrices_are_flattened(v30):
    path = v30 / "meta" / "info.json"
    raw = json.loads(path.read_text())
    raw["features"]["action"]["shape"] = [2, 13]
    path.write_text(json.dumps(raw))
    expected = read(V30, action=FLOAT)["action"]
    data = v30 / "data" / "chunk-000" / "file-000.parquet"
    nested = pa.array(expected.reshape(498, 2, 13).tolist(), pa.list_(pa.list_(pa.float32())))
    replace_column(data, "action", nested)
    np.testing.assert_array_equal(read(v30, action=FLOAT)["action"], expected)
    broken = nested.to_pylist()
    broken[100][1] = broken[100][1][:-1]
    replace_column(data, "action", pa.array(broken, nested.type))
    assert refusal(v30, action=FLOAT).message.startswith(f"{data}, row 100: 'action' has 12 values")


def test_row_count_that_does_not_match(v21):
    path = v21 / "data" / "chunk-000" / "episode_000001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 270), path)
    assert refusal(v21, action=FLOAT).message == f"{path} has 270 rows, but its 1 episode(s) have 277 frames"


def test_rows_of_another_episode(v21):
    path = v21 / "data" / "chunk-000" / "episode_000001.parquet"
    replace_column(path, "episode_index", pa.array(np.zeros(277, np.int64)))
    assert refusal(v21, action=FLOAT).message == f"{path}, row 0: episode_index is 0, expected 1"


@pytest.mark.parametrize("root", [V30, V21], ids=["v30", "v21"])
def test_damaged_files(root, tmp_path):
    root = Path(shutil.copytree(root, tmp_path / "set"))
    path = read_info(root).data_file(0, 0)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    error = refusal(root, action=FLOAT)
    assert error.message.startswith(f"{path} cannot be read as parquet ({len(content) // 2} bytes): ")
    assert error.hint == "The file is damaged: fetch the dataset again."
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert refusal(root, action=FLOAT).message == f"{path} is a Git LFS pointer, not the content"
    path.unlink()
    assert refusal(root, action=FLOAT).message == f"{path} is missing"


def test_more_rows_than_frames_are_not_read(v30):
    path = v30 / "data" / "chunk-000" / "file-000.parquet"
    pq.write_table(pa.table({name: pa.nulls(10_000_000) for name in ("action", "episode_index")}), path)
    message = f"{path} has 10000000 rows, but its 2 episode(s) have 498 frames"
    assert refusal(v30, action=FLOAT).message == message


def test_what_is_no_number_is_not_read_as_one(v30):
    path = v30 / "data" / "chunk-000" / "file-000.parquet"
    values = np.zeros(498)
    values[7] = np.nan
    replace_column(path, "task_index", pa.array(values))
    message = f"{path}: column 'task_index' holds NaN or infinity where whole numbers are read"
    assert refusal(v30, task_index=np.dtype(np.int64)).message == message
    replace_column(path, "task_index", pa.array(values + 1e300))
    assert np.isinf(read(v30, task_index=FLOAT)["task_index"]).sum() == 497


def test_memory_that_is_not_there():
    def allocate(shape, dtype):
        raise MemoryError

    info = read_info(V30)
    with pytest.raises(DataError, match="a column of 498 frames takes 0 GiB of memory"):
        read_columns(info, read_episodes(info), {"action": FLOAT}, allocate=allocate)

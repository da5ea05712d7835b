"""Whatever the bytes and values of a dataset's files are, the readers answer or refuse: no other error, no warning."""

import copy
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from preflight.data.columns import read_columns
from preflight.data.episodes import read_episodes
from preflight.data.integrity import find_problems
from preflight.data.metadata import read_info
from preflight.errors import DataError

REPOSITORY = Path(__file__).parent.parent
SETS = {"v30": REPOSITORY / "examples" / "data" / "g1", "v21": REPOSITORY / "tests" / "data" / "g1_v21"}
JSON = ["v30/meta/info.json", "v30/meta/stats.json", "v21/meta/info.json"]
JSON_LINES = [f"v21/meta/{name}.jsonl" for name in ("episodes", "tasks", "episodes_stats")]
EPISODES = "v30/meta/episodes/chunk-000/file-000.parquet"
TASKS = "v30/meta/tasks.parquet"
PARQUET = [EPISODES, TASKS, "v30/data/chunk-000/file-000.parquet", "v21/data/chunk-000/episode_000001.parquet"]

# The same examples each time; more, and others, for a search by hand.
SEARCH = int(os.environ.get("PREFLIGHT_FUZZ_EXAMPLES", "0"))


def bounded(max_examples):
    return settings(
        max_examples=SEARCH or max_examples,
        derandomize=not SEARCH,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    for name, root in SETS.items():
        shutil.copytree(root, folder / name, ignore=shutil.ignore_patterns("*.mp4"))
        for video in root.rglob("*.mp4"):
            copied = folder / name / video.relative_to(root)
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_bytes(b"\0" * 2000)  # the content of videos is not looked at here
    return folder


def answer_or_refuse(path, folder, content):
    """Puts a content in a file's place for the time of reading the dataset in all ways."""
    root, file = folder / path.split("/")[0], folder / path
    good = file.read_bytes()
    try:
        file.write_bytes(content)
        for said in (*said_by(find_all, root), *said_by(read_all, root)):
            said.encode()  # or it could not be printed
            assert said
            assert len(said) < 2000
    finally:
        file.write_bytes(good)


def said_by(read, root):
    try:
        return read(root) or []
    except DataError as error:
        return [error.message]


def find_all(root):
    return [problem.message for problem in find_problems(read_info(root), lerobot_reads=True)]


def read_all(root):
    info = read_info(root)
    episodes = read_episodes(info)
    dtypes = {"action": np.float32, "timestamp": np.float64, "index": np.int64, "task_index": np.int64}
    columns = read_columns(info, episodes, {key: np.dtype(dtype) for key, dtype in dtypes.items()})
    assert {len(values) for values in columns.values()} == {info.total_frames}


def spots(most):
    """Where to change a file: near its ends, where formats keep what matters, or anywhere."""
    return st.one_of(st.integers(0, 64), st.integers(-600, -1), st.integers(0, most))


edits = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "remove", "insert", "zero"]),
        spots(200_000),
        st.binary(min_size=1, max_size=9),
        st.integers(1, 400),
    ),
    min_size=1,
    max_size=4,
)


def edited(content, edits):
    content = bytearray(content)
    for kind, spot, new, count in edits:
        at = spot % (len(content) + 1)
        if kind == "set":
            content[at : at + len(new)] = new
        elif kind == "cut":
            del content[at:]
        elif kind == "remove":
            del content[at : at + count]
        elif kind == "insert":
            content[at:at] = new
        else:
            content[at : at + count] = bytes(len(content[at : at + count]))
    return bytes(content)


@pytest.mark.parametrize("path", [*JSON, *JSON_LINES])
@bounded(8)
@given(edits=edits)
def test_bytes_of_json(path, folder, edits):
    answer_or_refuse(path, folder, edited((folder / path).read_bytes(), edits))


@pytest.mark.parametrize("path", PARQUET)
@bounded(15)
@given(edits=edits)
def test_bytes_of_parquet(path, folder, edits):
    answer_or_refuse(path, folder, edited((folder / path).read_bytes(), edits))


numbers = st.one_of(
    st.integers(-2, 3),
    st.sampled_from([10**18, 2**31, 2**63 - 1, 2**63, -(2**63), 10**400, True, False]),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e308, 5e-324, 0.5, -0.0]),
)
texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["\ud800", "\0", "../..", "/", "{episode_index:999d}", "{x}", "\x1b[2J", "a" * 5000, "v2.0", "v3.0"]
    ),
    st.sampled_from(
        ["0:1", "1:0", "0:9", "float64", "string", "image", "video", "bool", "{episode_index}", "0:\u0661"]
    ),
)
values = st.recursive(
    st.one_of(st.none(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=5,
)


def places(value, at=()):
    yield at
    for key in value if isinstance(value, dict) else range(min(len(value), 3)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def changed(value, at, new, *, remove):
    if not at:
        return new
    value = copy.deepcopy(value)
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    if remove:
        del inner[at[-1]]
    else:
        inner[at[-1]] = new
    return value


def drawn_change(data, value):
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.sampled_from(list(places(value))))
        value = changed(value, at, data.draw(values), remove=data.draw(st.booleans()) and bool(at))
    return value


@pytest.mark.parametrize("path", JSON)
@bounded(20)
@given(data=st.data())
def test_values_of_json(path, folder, data):
    value = drawn_change(data, json.loads((folder / path).read_text()))
    answer_or_refuse(path, folder, json.dumps(value).encode())


@pytest.mark.parametrize("path", JSON_LINES)
@bounded(15)
@given(data=st.data())
def test_values_of_json_lines(path, folder, data):
    rows = [json.loads(line) for line in (folder / path).read_text().splitlines()]
    rows = drawn_change(data, rows)
    lines = [json.dumps(row) for row in rows] if isinstance(rows, list) else [json.dumps(rows)]
    answer_or_refuse(path, folder, "\n".join(lines).encode())


@pytest.mark.parametrize("path", [EPISODES, TASKS])
@bounded(15)
@given(data=st.data())
def test_values_of_parquet(path, folder, data):
    import pyarrow as pa

    table = pq.read_table(folder / path)
    names = [name for name in table.column_names if not name.startswith("stats/")]
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(names))
        new = data.draw(st.lists(values, min_size=table.num_rows, max_size=table.num_rows))
        type_ = data.draw(st.sampled_from([None, pa.float64(), pa.float16(), pa.uint64(), pa.int8(), pa.string()]))
        try:
            column = pa.array(new, type_)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            continue  # no parquet file can hold these
        table = table.set_column(table.schema.get_field_index(name), name, column)
    buffer = pa.BufferOutputStream()
    try:
        pq.write_table(table, buffer)
    except pa.ArrowException:
        return
    answer_or_refuse(path, folder, buffer.getvalue().to_pybytes())

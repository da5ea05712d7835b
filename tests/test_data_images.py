import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from preflight.config.schema import DataConfig, ModelConfig
from preflight.data.dataset import SampleDataset
from preflight.data.images import decode_picture, iterate_values, read_images
from preflight.errors import DataError

V30 = Path(__file__).parent.parent / "examples" / "data" / "g1"
CAMERA = "observation.images.wrist"


def picture(i):
    """8 x 6, a value that tells frames and channels apart."""
    return np.stack([np.full((6, 8), (i * k) % 251, np.uint8) for k in (1, 3, 7)], axis=-1)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="png")
    return buffer.getvalue()


def column(contents):
    return pa.array(
        [{"bytes": c, "path": None} for c in contents], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )


@pytest.fixture
def root(tmp_path):
    """The example dataset with a camera whose pictures lie in the parquet file, 100 rows a group as LeRobot writes."""
    root = Path(shutil.copytree(V30, tmp_path / "set"))
    info = root / "meta" / "info.json"
    raw = json.loads(info.read_text())
    raw["features"][CAMERA] = {"dtype": "image", "shape": [6, 8, 3], "names": ["height", "width", "channel"]}
    info.write_text(json.dumps(raw))
    path = root / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(path).append_column(CAMERA, column([png(picture(i)) for i in range(498)]))
    pq.write_table(table, path, row_group_size=100)
    return root


def test_each_row_has_its_picture(root):
    path = root / "data" / "chunk-000" / "file-000.parquet"
    for row in (0, 1, 15, 16, 99, 100, 101, 250, 497, 3):
        np.testing.assert_array_equal(read_images(path, CAMERA, [row])[row], picture(row))


def test_a_dataset_reads_them_by_frame(root):
    dataset = SampleDataset(DataConfig(root=root, cameras={"left_wrist_0_rgb": CAMERA}), ModelConfig())
    assert dataset.info.image_keys == (CAMERA,)
    for frame in (0, 220, 221, 497):
        np.testing.assert_array_equal(dataset.camera_frame(frame, CAMERA), picture(frame))
    sample = dataset[300]
    assert {slot: bool(mask) for slot, mask in sample["image_mask"].items()} == {
        "base_0_rgb": False,
        "left_wrist_0_rgb": True,
        "right_wrist_0_rgb": False,
    }
    expected = np.zeros((224, 224, 3), np.uint8)
    expected[28:196] = picture(300)[0, 0]
    np.testing.assert_array_equal(sample["image"]["left_wrist_0_rgb"], expected)


def test_damaged_pictures_are_placed(tmp_path):
    path = tmp_path / "file.parquet"
    grey = png(np.full((6, 8), 9, np.uint8))
    pq.write_table(pa.table({"cam": column([grey, grey[:40], None, b"no picture"])}), path)
    assert read_images(path, "cam", [0])[0].shape == (6, 8, 3)
    for row, message in (
        (1, f"{path}, row 1: the picture in 'cam' cannot be decoded ("),
        (2, f"{path}, row 2: column 'cam' holds no picture"),
        (3, f"{path}, row 3: the picture in 'cam' cannot be decoded (cannot identify image file"),
        (4, f"{path} has 4 rows, no row 4"),
    ):
        with pytest.raises(DataError) as error:
            read_images(path, "cam", [row])
        assert error.value.message.startswith(message)
    with pytest.raises(DataError, match=r"row 0: column 'dog' cannot be read"):
        read_images(path, "dog", [0])


@pytest.mark.parametrize(("kind", "mode", "written_as"), [(np.uint16, "I;16", "png"), (np.float32, "F", "tiff")])
def test_depth_pictures_are_refused_rather_than_saturated(tmp_path, kind, mode, written_as):
    path, buffer = tmp_path / "file.parquet", io.BytesIO()
    Image.fromarray(np.full((6, 8), 1500, kind)).save(buffer, format=written_as)
    pq.write_table(pa.table({"depth": column([buffer.getvalue()])}), path)
    with pytest.raises(DataError) as error:
        read_images(path, "depth", [0])
    assert error.value.message == (
        f"{path}, row 0: the picture in 'depth' has more than 8 bits a channel (mode {mode}), like a depth picture, "
        "which cannot be shown to the model"
    )
    assert "Drop this camera" in error.value.hint


def test_rows_in_sequence_are_those_that_are_read_alone(root):
    path = root / "data" / "chunk-000" / "file-000.parquet"
    for rows in (range(95, 220), range(3), range(490, 498), range(100, 200)):
        values = list(iterate_values(path, CAMERA, rows))
        assert [row for row, _ in values] == list(rows)
        for row, value in values:
            np.testing.assert_array_equal(decode_picture(value, path, CAMERA, row).pixels, picture(row))
    with pytest.raises(DataError, match="has 498 rows, no row 499"):
        list(iterate_values(path, CAMERA, range(490, 500)))

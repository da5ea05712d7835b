from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from preflight.data.resize import resize_after_decoding, resize_in_scaler, resize_with_pad

REPOSITORY = Path(__file__).parent.parent
CAMERA = "observation.images.cam_high"
JOINED = REPOSITORY / f"examples/data/g1/videos/{CAMERA}/chunk-000/file-000.mp4"


def psnr(left, right):
    return 10 * np.log10(255**2 / ((left.astype(np.float64) - right.astype(np.float64)) ** 2).mean())


@pytest.fixture(scope="module")
def frames():
    """Real frames from all over both episodes."""
    with av.open(str(JOINED)) as container:
        return [frame for i, frame in enumerate(container.decode(video=0)) if i % 30 == 7]


def test_the_scaler_is_near_openpis_pixels(frames):
    reformatter = VideoReformatter()
    for frame in frames:
        exact = resize_after_decoding(frame, reformatter)
        np.testing.assert_array_equal(exact, resize_with_pad(frame.to_ndarray(format="rgb24")))
        scaled = resize_in_scaler(frame, reformatter)
        assert (scaled.shape, scaled.dtype) == ((224, 224, 3), np.uint8)
        # Of the picture alone: the black above and below would flatter it.
        assert psnr(scaled[28:196], exact[28:196]) >= 40
        assert not scaled[:28].any()
        assert not scaled[196:].any()
    assert len(frames) == 17


def test_the_scaler_gives_the_same_bytes_whatever_came_before(frames):
    used = VideoReformatter()
    resize_in_scaler(frames[5].reformat(width=100, height=300), used)
    for frame in frames[:3]:
        np.testing.assert_array_equal(resize_in_scaler(frame, used), resize_in_scaler(frame, VideoReformatter()))


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (224, 224), (90, 160), (101, 77), (1080, 1920)])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "gray", "yuv420p10le"])
def test_sizes_and_paddings_are_those_of_openpi(frames, shape, pixels):
    frame = frames[0].reformat(width=shape[1], height=shape[0], format=pixels)
    exact = resize_after_decoding(frame, VideoReformatter())
    scaled = resize_in_scaler(frame, VideoReformatter())
    shown = exact.any(axis=2)
    if shape == (224, 224):
        np.testing.assert_array_equal(scaled, exact)
        return
    assert psnr(scaled, exact) >= 35
    # The same rows and columns are the picture: none of it is as black as the padding.
    rows, columns = (np.flatnonzero(shown.any(axis=axis)) for axis in (1, 0))
    inner = np.zeros_like(shown)
    inner[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    assert not scaled[~inner].any()
    assert scaled[inner].any(axis=1).mean() > 0.99

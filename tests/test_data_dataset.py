import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from preflight.config.schema import IMAGE_SLOTS, DataConfig, ModelConfig
from preflight.data.actions import delta_mask
from preflight.data.dataset import SampleDataset
from preflight.data.loader import BatchLoader
from preflight.data.normalize import save, unnormalize
from preflight.data.resize import resize_with_pad
from preflight.data.sampler import batch_indices
from preflight.data.tokenizer import decode, tokenize
from preflight.errors import DataError, PreflightError, UsageError

REPOSITORY = Path(__file__).parent.parent
V30 = REPOSITORY / "examples" / "data" / "g1"
V21 = REPOSITORY / "tests" / "data" / "g1_v21"
CAMERA = "observation.images.cam_high"
FRAMES = (0, 1, 100, 220, 221, 222, 400, 497)


def configured(root=V30, **changes):
    return DataConfig(**{"root": root, "cameras": {"base_0_rgb": CAMERA}} | changes)


def refusal(kind, config, **model):
    with pytest.raises(kind) as error:
        SampleDataset(config, ModelConfig(**model))
    return error.value


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        if isinstance(value, dict):
            assert_same(value, right[key])
        else:
            assert np.asarray(value).dtype == np.asarray(right[key]).dtype
            np.testing.assert_array_equal(value, right[key])


@pytest.fixture(scope="module")
def dataset():
    return SampleDataset(configured(), ModelConfig())


@pytest.fixture
def v30(tmp_path):
    return Path(shutil.copytree(V30, tmp_path / "set"))


def test_a_sample_has_the_models_shapes(dataset):
    assert len(dataset) == 498
    sample = dataset[17]
    assert list(sample) == ["image", "image_mask", "state", "tokenized_prompt", "tokenized_prompt_mask", "actions"]
    assert tuple(sample["image"]) == tuple(sample["image_mask"]) == IMAGE_SLOTS
    for slot in IMAGE_SLOTS:
        assert (sample["image"][slot].shape, sample["image"][slot].dtype) == ((224, 224, 3), np.uint8)
        assert (sample["image_mask"][slot].shape, sample["image_mask"][slot].dtype) == ((), np.bool_)
    for key, shape, dtype in (
        ("state", (32,), np.float32),
        ("actions", (50, 32), np.float32),
        ("tokenized_prompt", (48,), np.int32),
        ("tokenized_prompt_mask", (48,), np.bool_),
    ):
        assert (sample[key].shape, sample[key].dtype) == (shape, dtype), key


def test_images_are_the_videos_frames_in_order(dataset):
    exact = SampleDataset(configured(resize="pil"), ModelConfig())
    with av.open(str(V30 / f"videos/{CAMERA}/chunk-000/file-000.mp4")) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in FRAMES:
                sample = dataset[index]
                expected = frame.to_ndarray(format="rgb24")
                np.testing.assert_array_equal(dataset.camera_frame(index, CAMERA), expected)
                square = resize_with_pad(expected)
                np.testing.assert_array_equal(exact[index]["image"]["base_0_rgb"], square)
                near = np.square(sample["image"]["base_0_rgb"].astype(float) - square).mean()
                assert 10 * np.log10(255**2 / near) >= 35
                assert sample["image_mask"]["base_0_rgb"]
                assert not sample["image_mask"]["left_wrist_0_rgb"]
                assert sample["image"]["right_wrist_0_rgb"].sum() == 0
    assert index == 497


def test_both_formats_give_the_same_samples(dataset):
    other = SampleDataset(configured(V21), ModelConfig())
    for index in FRAMES:
        assert_same(dataset[index], other[index])


@pytest.mark.parametrize("resize", ["swscale", "pil"])
def test_samples_made_together_are_those_made_alone(resize):
    slots = {"base_0_rgb": CAMERA, "right_wrist_0_rgb": CAMERA}
    dataset = SampleDataset(configured(resize=resize, cameras=slots), ModelConfig())
    for indices in (batch_indices(498, 16, 0, 0).tolist(), [220, 221, 5, 5, 4, 497], [0], []):
        samples = dataset.__getitems__(indices)
        assert len(samples) == len(indices)
        for index, sample in zip(indices, samples, strict=True):
            assert_same(sample, dataset[index])
    with pytest.raises(IndexError, match="^sample 498 of a dataset with 498 samples$"):
        dataset.__getitems__([3, 498])


def test_a_video_that_changed_after_the_dataset_was_opened_is_refused(v30):
    dataset = SampleDataset(configured(v30), ModelConfig())
    path = v30 / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    os.utime(path, ns=(10**18, 10**18))
    with pytest.raises(DataError) as error:
        pickle.loads(pickle.dumps(dataset))[7]
    assert error.value.message == (
        f"{path} was written to again since the run opened its dataset: its frames may no longer be those of its "
        "episodes"
    )
    assert_same(SampleDataset(configured(v30), ModelConfig())[7], SampleDataset(configured(), ModelConfig())[7])


def test_the_shuffle_window_gives_the_loader_its_order(dataset):
    assert dataset.batch_order(4, 0) is None
    windowed = SampleDataset(configured(shuffle_window=1, cameras={}), ModelConfig())
    order = windowed.batch_order(4, 0)
    first = [windowed.episodes.of_frame(int(i)) for k in range(50) for i in order(k)]
    assert len(set(first)) == 1
    with BatchLoader(windowed, batch_size=4, num_workers=0, seed=0, start_batch=3) as loader:
        np.testing.assert_array_equal(next(loader)["state"], [windowed[int(i)]["state"] for i in order(3)])
    with pytest.raises(UsageError, match="^data.shuffle_window must be at least 1 episode, got 0$"):
        SampleDataset(configured(shuffle_window=0, cameras={}), ModelConfig())


@pytest.mark.parametrize("norm", ["zscore", "quantile"])
@pytest.mark.parametrize("delta", [(), (7, -6, 7, -6), (3,)])
def test_state_and_actions_come_back_from_a_sample(norm, delta):
    model = ModelConfig(action_horizon=20)
    dataset = SampleDataset(configured(norm=norm, delta_actions=delta, cameras={}), model)
    state, actions = dataset.column("state"), dataset.column("actions")
    mask = np.pad(delta_mask(delta), (0, 26 - len(delta_mask(delta))))
    for index in (0, 5, 205, 220, 490):
        sample = dataset[index]
        end = 221 if index < 221 else 498
        np.testing.assert_allclose(
            unnormalize(sample["state"][:26], dataset.stats["state"], norm), state[index], atol=1e-4
        )
        chunk = unnormalize(sample["actions"][:, :26], dataset.stats["actions"], norm)
        expected = actions[[min(index + k, end - 1) for k in range(20)]] - np.where(mask, state[index], 0)
        np.testing.assert_allclose(chunk, expected, atol=1e-4)
        assert not sample["state"][26:].any()
        assert not sample["actions"][:, 26:].any()


def test_samples_are_normalised_over_the_whole_dataset():
    dataset = SampleDataset(configured(delta_actions=(26,), cameras={}), ModelConfig(action_horizon=5))
    samples = [dataset[i] for i in range(len(dataset))]
    for values, name in (
        (np.stack([s["state"] for s in samples]), "state"),
        (np.concatenate([s["actions"] for s in samples]), "actions"),
    ):
        moving = dataset.stats[name].std > 1e-4  # of a dimension at rest only the epsilon is left
        assert moving.sum() > 10
        np.testing.assert_allclose(values[:, :26].mean(0, dtype=np.float64)[moving], 0, atol=1e-3)
        np.testing.assert_allclose(values[:, :26].std(0, dtype=np.float64)[moving], 1, atol=2e-2)


def test_prompts_are_the_tasks_or_the_configured_one(dataset):
    task = "Pick up the yellow bottle on the table."
    assert dataset.prompts == (task,)
    tokens, mask = tokenize(task, 48)
    np.testing.assert_array_equal(dataset[3]["tokenized_prompt"], tokens)
    np.testing.assert_array_equal(dataset[3]["tokenized_prompt_mask"], mask)
    other = SampleDataset(configured(prompt="wave", cameras={}), ModelConfig(max_token_len=10))
    assert other.prompts == ("wave",)
    np.testing.assert_array_equal(other[3]["tokenized_prompt"], tokenize("wave", 10)[0])


def test_pi05_reads_the_state_in_its_prompt():
    dataset = SampleDataset(configured(cameras={}), ModelConfig(pi05=True))
    assert dataset.norm == "quantile"
    for index in (0, 300):
        sample = dataset[index]
        assert sample["tokenized_prompt"].shape == sample["tokenized_prompt_mask"].shape == (200,)
        text = decode(sample["tokenized_prompt"])
        # The normalised state without its padding.
        state = " ".join(str(sum(x >= k / 128 for k in range(-128, 128)) - 1) for x in sample["state"][:26].tolist())
        assert text == f"Task: Pick up the yellow bottle on the table., State: {state};\nAction: "
    np.testing.assert_allclose(
        unnormalize(dataset[7]["state"][:26], dataset.stats["state"], "quantile"), dataset.column("state")[7], atol=1e-4
    )
    assert SampleDataset(configured(cameras={}, norm="zscore"), ModelConfig(pi05=True)).norm == "zscore"
    assert SampleDataset(configured(cameras={}), ModelConfig()).norm == "zscore"


def test_a_prompt_that_is_too_long_loses_its_task_and_never_the_state(caplog):
    short = SampleDataset(configured(cameras={}), ModelConfig(pi05=True, max_token_len=140))
    whole = SampleDataset(configured(cameras={}), ModelConfig(pi05=True))
    (record,) = caplog.records
    assert record.message == (
        "the prompt 'Pick up the yellow bottle on the table.' takes 142 tokens with the state and its end is cut: "
        "model.max_token_len is 140"
    )
    text, full = (decode(dataset[3]["tokenized_prompt"]) for dataset in (short, whole))
    assert text == full.replace("table., State", "table, State").replace("the table,", "the,")
    error = refusal(DataError, configured(cameras={}), pi05=True, max_token_len=120)
    assert error.message == (
        "the prompt's 120 tokens have no room for the state's 26 dimensions, which pi0.5 reads in it"
    )
    assert error.hint == "Set model.max_token_len to at least 142: what it takes with the longest task."
    caplog.clear()
    SampleDataset(configured(cameras={}), ModelConfig(max_token_len=8))
    assert "takes 15 tokens and its end is cut: model.max_token_len is 8" in caplog.text


def test_a_frame_of_an_unknown_task_is_refused(v30):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = v30 / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(path)
    column = table.schema.get_field_index("task_index")
    pq.write_table(table.set_column(column, "task_index", pa.array([0] * 497 + [4])), path)
    message = refusal(DataError, configured(v30)).message
    assert message == f"{v30}: frames have task_index 4, which none of its 1 task(s) has"
    assert len(SampleDataset(configured(v30, prompt="wave"), ModelConfig())) == 498


def test_stats_from_a_file(tmp_path, dataset):
    path = tmp_path / "norm_stats.json"
    doubled = dataclasses.replace(dataset.stats["state"], std=dataset.stats["state"].std * 2)
    save({**dataset.stats, "state": doubled}, path)
    loaded = SampleDataset(configured(norm_stats=path, cameras={}), ModelConfig())
    np.testing.assert_array_equal(loaded[9]["actions"], dataset[9]["actions"])
    np.testing.assert_allclose(loaded[9]["state"], dataset[9]["state"] / 2, rtol=0.05)
    raw = json.loads(path.read_text())
    raw["norm_stats"]["state"] = {k: v[:25] for k, v in raw["norm_stats"]["state"].items()}
    path.write_text(json.dumps(raw))
    message = refusal(DataError, configured(norm_stats=path)).message
    assert message == f"{path}: the statistics of 'state' have 25 dimensions, the dataset's state has 26"
    for entry in raw["norm_stats"].values():
        del entry["q01"], entry["q99"]
    path.write_text(json.dumps(raw))
    assert refusal(DataError, configured(norm_stats=path, norm="quantile")).message == f"{path} has no quantiles"


def test_wrong_configs_are_refused():
    error = refusal(UsageError, configured(cameras={"base": CAMERA}))
    assert error.message == "data.cameras has no slot 'base'"
    assert error.hint == "The model's slots are: base_0_rgb, left_wrist_0_rgb, right_wrist_0_rgb"
    error = refusal(DataError, configured(cameras={"base_0_rgb": "cam_high"}))
    assert error.message == f"camera 'cam_high' is not in the dataset {V30}"
    assert error.hint == f"Did you mean {CAMERA}? Its cameras: {CAMERA}"
    error = refusal(DataError, configured(actions="actions"))
    assert error.message == f"'actions' is not in the dataset {V30}"
    assert "Did you mean action?" in error.hint
    error = refusal(DataError, configured(), action_dim=24)
    assert error.message == "'observation.state' has 26 dimensions, more than the model's action_dim 24"
    assert error.hint == "Set model.action_dim to at least 26, or choose other columns."
    error = refusal(UsageError, configured(delta_actions=(20, -7)))
    assert error.message.startswith("data.delta_actions covers 27 dimensions, but 'observation.state' has 26")


def test_there_is_no_sample_outside_the_dataset(dataset):
    for index in (-1, 498):
        with pytest.raises(IndexError, match=f"^sample {index} of a dataset with 498 samples$"):
            dataset[index]


def test_pickled_it_is_small_and_the_columns_are_shared(dataset):
    sent = pickle.dumps(dataset)
    assert len(sent) < 20_000 < dataset.column("state").nbytes
    received = pickle.loads(sent)
    assert_same(received[42], dataset[42])
    assert not received.column("state").flags.writeable
    kept = float(dataset.column("state")[0, 0])
    try:
        dataset.column("state")[0, 0] = 123
        assert received.column("state")[0, 0] == 123
    finally:
        dataset.column("state")[0, 0] = kept


def test_a_pickle_that_outlives_its_process_says_so(tmp_path):
    script = (
        "import sys, pickle, pathlib\n"
        "from preflight.data.shared_array import SharedArray\n"
        "pathlib.Path(sys.argv[1]).write_bytes(pickle.dumps(SharedArray((2,), 'f4')))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "p")], check=True)
    with pytest.raises(PreflightError, match=r"columns cannot be mapped from process \d+ \(No such file"):
        pickle.loads((tmp_path / "p").read_bytes())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaded_batches_are_the_samples(dataset, num_workers):
    with BatchLoader(dataset, batch_size=4, num_workers=num_workers, seed=5) as loader:
        for k in range(3):
            batch = next(loader)
            for row, index in enumerate(batch_indices(498, 4, 5, k).tolist()):
                sample = dataset[index]
                assert batch.keys() == sample.keys()
                for key in ("state", "actions", "tokenized_prompt", "tokenized_prompt_mask"):
                    np.testing.assert_array_equal(batch[key][row], sample[key])
                for slot in IMAGE_SLOTS:
                    np.testing.assert_array_equal(batch["image"][slot][row], sample["image"][slot])
                    assert batch["image_mask"][slot][row] == sample["image_mask"][slot]


@pytest.mark.parametrize("damage", ["missing", "cut", "lfs"])
def test_a_damaged_video_is_named_with_the_sample(v30, damage):
    path = v30 / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":  # the index lies in front: the file opens, and early frames are there
        path.write_bytes(content[:1_000_000])
    if damage == "lfs":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    expected = {
        "missing": f"{path} is missing",
        "cut": f"{path}: no frame at 16.5667 s, the video ends before it",
        "lfs": f"{path} is a Git LFS pointer, not the content",
    }[damage]
    broken = SampleDataset(configured(v30), ModelConfig())
    with pytest.raises(DataError) as error:
        broken[497]
    assert error.value.message == expected
    start = next(k for k in range(100) if batch_indices(498, 4, 0, k)[0] > 300)
    first = int(batch_indices(498, 4, 0, start)[0])
    loader = BatchLoader(broken, batch_size=4, num_workers=1, start_batch=start)
    with loader, pytest.raises(DataError) as error:
        next(loader)
    assert error.value.message.startswith(f"sample {first} cannot be loaded: {path}")
    assert error.value.hint is not None


LEROBOT = f"""
import importlib, sys, numpy as np
from pathlib import Path
LeRobotDataset = importlib.import_module(sys.argv[1] + ".lerobot_dataset").LeRobotDataset
deltas = {{"action": [k / 30 for k in range(20)]}}
dataset = LeRobotDataset("local/g1", root=Path(sys.argv[2]), delta_timestamps=deltas, video_backend="pyav")
meta = dataset.meta
dataset._query_videos = lambda *_: {{}}  # its decoders need FFmpeg's libraries
items = [dataset[i] for i in range(len(dataset))]
if hasattr(dataset, "episode_data_index"):  # format v2.1: a file for each episode
    bounds = dataset.episode_data_index
    lengths = [meta.episodes[e]["length"] for e in range(2)]
    episodes = (lengths, bounds["from"], bounds["to"], np.zeros(2))
else:
    names = ("length", "dataset_from_index", "dataset_to_index", "videos/{CAMERA}/from_timestamp")
    episodes = [meta.episodes[name] for name in names]
np.savez(
    sys.argv[3],
    fps=meta.fps, total_frames=meta.total_frames, video_keys=meta.video_keys,
    **dict(zip(("length", "from_index", "to_index", "from_timestamp"), episodes, strict=True)),
    video=[str(meta.get_video_file_path(e, "{CAMERA}")) for e in range(2)],
    state=np.stack([i["observation.state"] for i in items]),
    chunk=np.stack([i["action"] for i in items]),
    timestamp=[float(i["timestamp"]) for i in items],
    task=[i["task"] for i in items],
)
"""


@pytest.mark.slow
def test_lerobot_reads_the_same(lerobot, tmp_path):
    root = V21 if lerobot == "lerobot.common.datasets" else V30
    command = [sys.executable, "-c", LEROBOT, lerobot, str(root), str(tmp_path / "o.npz")]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HOME": str(tmp_path / "hf")})
    assert ran.returncode == 0, ran.stderr
    theirs = np.load(tmp_path / "o.npz")
    ours = SampleDataset(configured(root), ModelConfig(action_horizon=20))
    info, episodes = ours.info, ours.episodes
    assert (info.fps, info.total_frames, list(info.video_keys)) == (theirs["fps"], 498, theirs["video_keys"].tolist())
    for field in ("length", "from_index", "to_index"):
        np.testing.assert_array_equal(getattr(episodes, field), theirs[field])
    videos = episodes.videos[CAMERA]
    np.testing.assert_array_equal(videos.from_timestamp, theirs["from_timestamp"])
    files = [info.video_file(CAMERA, int(c), int(f)) for c, f in zip(videos.chunk, videos.file, strict=True)]
    assert [str(file.relative_to(root)) for file in files] == theirs["video"].tolist()
    np.testing.assert_array_equal(ours.column("state"), theirs["state"])
    np.testing.assert_array_equal(ours._columns["timestamp"].array[:, 0], theirs["timestamp"])
    assert set(theirs["task"].tolist()) == set(ours.prompts)
    stats = ours.stats["actions"]
    no_camera = SampleDataset(configured(root, cameras={}), ModelConfig(action_horizon=20))
    chunks = np.stack([no_camera[i]["actions"][:, :26] for i in range(498)])
    expected = ((theirs["chunk"] - stats.mean) / (stats.std + 1e-6)).astype(np.float32)
    np.testing.assert_array_equal(chunks, expected)
    np.testing.assert_allclose(stats.mean, theirs["chunk"].reshape(-1, 26).mean(0, dtype=np.float64), rtol=1e-9)

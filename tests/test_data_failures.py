"""Each known failure of data, put into a copy of a real recording: one check speaks, and it names the place."""

import dataclasses
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from healthy import context, spoken
from recoded import V21, V30, edit_info, encode, in_milliframes, pictures, small_copy, v21_video
from test_checks_data import replace_column

from checks import data, storage_dataset_cache
from preflight.checklist import run_checks
from preflight.data.files import LFS_MAGIC
from preflight.data.hub import HubDataset
from preflight.data.normalize import save

CHECKS = (*data.CHECKS, storage_dataset_cache.CHECK)
LEROBOT = {"formats": ("v2.0", "v2.1"), "decodes_all_cameras": True, "stack": "openpi"}
ON_HUB = HubDataset(
    exists=True, token=False, files=120, size_bytes=3 * 2**30, revisions=["main", "v2.1"], gated=False, private=False
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_copy(V21, tmp_path_factory.mktemp("small") / "g1")


@pytest.fixture
def v21(small, tmp_path):
    return Path(shutil.copytree(small, tmp_path / "g1"))


def results_of(root, *assignments, facts=None, **probes):
    named = () if root is None else (f"data.root={root}",)
    checked = context(*named, *assignments, probes=probes)
    checked.run.facts = dataclasses.replace(checked.run.facts, **(facts or {}))
    return {result.check.id: result for result in run_checks(CHECKS, checked, max_parallel=2)}


def statistics(root, folder, change):
    stats = context(f"data.root={root}").run.statistics().stats
    save(change(stats), folder / "norm_stats.json")
    return f"data.norm_stats={folder / 'norm_stats.json'}"


def with_state(stats, **fields):
    return {**stats, "state": dataclasses.replace(stats["state"], **fields)}


def parquet(root, episode=1):
    return root / "data" / "chunk-000" / f"episode_{episode:06d}.parquet"


# What each does to a copy of the recording; what it gives back goes to `results_of`.


def missing_statistics(root, folder):
    return [f"data.norm_stats={folder / 'none.json'}"], {}


def a_narrow_joint(root, folder):
    def narrow(stats):
        std = stats["state"].std.copy()
        std[4] = 1e-7
        return with_state(stats, std=std)

    return [statistics(root, folder, narrow)], {}


def stale_statistics(root, folder):
    return [statistics(root, folder, lambda stats: with_state(stats, mean=stats["state"].mean + 40))], {}


def a_format_of_later(root, folder):
    return [f"data.root={V30}"], {"facts": LEROBOT}


def a_missing_video(root, folder):
    v21_video(root, 1).unlink()


def a_missing_parquet_file(root, folder):
    parquet(root).unlink()


def a_missing_dataset(root, folder):
    return ["data.root=none", "data.repo_id=lab/nowhere"], {"hub": lambda repo_id: "no network in a test"}


def a_missing_tag(root, folder):
    untagged = dataclasses.replace(ON_HUB, revisions=["main"])
    return ["data.root=none", "data.repo_id=lab/g1"], {"hub": lambda repo_id: untagged, "facts": LEROBOT}


def thousands_of_files(root, folder):
    many = dataclasses.replace(ON_HUB, files=40_000)
    return ["data.root=none", "data.repo_id=lab/g1"], {"hub": lambda repo_id: many}


def timestamps_off_the_grid(root, folder):
    replace_column(root, "timestamp", lambda values: values.__setitem__(7, values[7] + 0.01))


def drifting_pictures(root, folder):
    frames = pictures(1)
    encode(v21_video(root, 1), frames, times=[round(1.002 * t) for t in in_milliframes(frames)])


def a_short_video(root, folder):
    encode(v21_video(root, 1), pictures(1)[:-5])


def lengths_that_do_not_add_up(root, folder):
    path = root / "meta" / "episodes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["length"] -= 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def a_stray_file(root, folder):
    shutil.copy(parquet(root), parquet(root, 7))
    return [], {"facts": LEROBOT, "environ": {"HF_DATASETS_CACHE": str(folder)}}


def a_pointer(root, folder):
    v21_video(root, 1).write_bytes(LFS_MAGIC + b"v1\noid sha256:4d7a\nsize 12345\n")


def a_torn_video(root, folder):
    path = v21_video(root, 1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def an_unknown_codec(root, folder):
    v21_video(root, 1).write_bytes(v21_video(V21, 1).read_bytes().replace(b"av01", b"zzzz"))


def long_groups_of_pictures(root, folder):
    encode(v21_video(root, 1), pictures(1), g="250")


def an_unused_camera(root, folder):
    camera, other = v21_video(root, 1).parent, "observation.images.wrist"
    shutil.copytree(camera, camera.parent / other)

    def add(info):
        info["features"][other] = info["features"][camera.name]
        info["total_videos"] *= 2

    edit_info(root, add)
    return [], {"facts": LEROBOT, "environ": {"HF_DATASETS_CACHE": str(folder)}}


def no_room_for_the_copy(root, folder):
    return [], {"facts": LEROBOT, "environ": {"HF_DATASETS_CACHE": str(folder)}, "disk_free": lambda path: 1000}


def another_key(root, folder):
    return ["data.actions=actions"], {}


def too_many_dimensions(root, folder):
    return ["model.action_dim=16"], {}


def a_long_prompt(root, folder):
    return ["model.max_token_len=8"], {}


def a_task_without_text(root, folder):
    table = pq.read_table(parquet(root))
    pq.write_table(
        table.set_column(table.schema.get_field_index("task_index"), "task_index", [[5] * len(table)]), parquet(root)
    )


CASES = [
    ("F04", missing_statistics, "data.norm-stats", "none.json"),
    ("F05", a_narrow_joint, "data.norm-stats", "kLeftWristRoll"),
    ("F06", stale_statistics, "data.norm-stats", "norm_stats.json"),
    ("F07", missing_statistics, "data.norm-stats", "preflight norm-stats"),
    ("F13", a_format_of_later, "data.version", "v3.0"),
    ("F14", a_missing_video, "data.metadata", "cam_high/episode_000001.mp4"),
    ("F14", a_missing_parquet_file, "data.metadata", "chunk-000/episode_000001.parquet"),
    ("F15", a_missing_dataset, "data.present", "lab/nowhere"),
    ("F16", a_missing_tag, "data.present", "no version tag"),
    ("F17", timestamps_off_the_grid, "data.timestamps", "episode_000000.parquet, episode 0, frame 7"),
    ("F18", drifting_pictures, "data.videos", "episode_000001.mp4"),
    ("F19", a_short_video, "data.videos", "episode_000001.mp4"),
    ("F20", lengths_that_do_not_add_up, "data.metadata", "episodes.jsonl"),
    ("F20", a_stray_file, "data.metadata", "episode_000007.parquet"),
    ("F21", a_pointer, "data.metadata", "episode_000001.mp4 is a Git LFS pointer"),
    ("F21", a_torn_video, "data.videos", "episode_000001.mp4"),
    ("F22", an_unknown_codec, "data.videos", "has no decoder for its codec"),
    ("F23", long_groups_of_pictures, "data.videos", "episode_000001.mp4 has 250 frames from one key frame"),
    ("F24", an_unused_camera, "data.features", "observation.images.wrist"),
    ("F25", no_room_for_the_copy, "storage.dataset-cache", "1000 bytes"),
    ("F30", another_key, "data.features", "Did you mean action?"),
    ("F31", too_many_dimensions, "data.sample", "action_dim 16"),
    ("F35", a_long_prompt, "data.prompts", "takes 15 tokens and the model reads 8"),
    ("F36", a_task_without_text, "data.prompts", "task_index 5"),
    ("F50", thousands_of_files, "data.present", "HTTP 429"),
]


@pytest.mark.parametrize(("failure", "damage", "id_", "named"), CASES, ids=[f"{c[0]}-{c[1].__name__}" for c in CASES])
def test_one_check_speaks_and_names_the_place(v21, tmp_path, failure, damage, id_, named):
    assignments, changes = damage(v21, tmp_path) or ([], {})
    results = results_of(v21, *assignments, **changes)
    assert spoken(results) == {id_}, {i: results[i].outcome.summary for i in spoken(results)}
    outcome, check = results[id_].outcome, results[id_].check
    assert failure in check.failures
    hint = outcome.hint
    assert named in "\n".join([outcome.summary, *outcome.evidence, hint.text, *hint.commands])


def test_the_untouched_recording_is_silent_for_either_reader(v21, tmp_path):
    assert spoken(results_of(v21)) == set()
    lerobots = {"facts": LEROBOT, "environ": {"HF_DATASETS_CACHE": str(tmp_path)}}
    assert spoken(results_of(v21, **lerobots)) == set()

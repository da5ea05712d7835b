"""`--contact-sheet`: the model's own pixels are on it, whatever is wrong with the rest; and it changes no verdict."""

import json
import shutil
from pathlib import Path

import numpy as np
import openpi_fork
import pytest
from command import EXAMPLE, preflight
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from preflight.cli.contact_sheet import require_writable, write_contact_sheet
from preflight.cli.sheet_frames import pick_frames
from preflight.cli.sheet_samples import gather
from preflight.data.normalize import NormStats, save
from preflight.errors import UsageError
from preflight.report.contact_sheet import draw_contact_sheet
from preflight.report.sheet_text import wrapped
from preflight.runs import load_run
from preflight.training.camera_views import to_uint8

V21 = Path(__file__).parent / "data" / "g1_v21"
HIGH, WRIST = "observation.images.cam_high", "observation.images.cam_wrist"
# First, middle and last frame of the two episodes, 221 and 277 frames long.
SHOWN = (0, 110, 220, 221, 359, 497)
MASKED, RED = (0xE3, 0xE6, 0xE9), (0xB3, 0x26, 0x1E)
OPENPI = [mark for mark in openpi_fork.MARKS if mark.name != "filterwarnings"]


@pytest.fixture
def v21(tmp_path):
    return Path(shutil.copytree(V21, tmp_path / "g1"))


def run_on(root, *assignments, cameras=None):
    path = root.parent / "run.toml"
    slots = "\n".join(f'{slot} = "{key}"' for slot, key in (cameras or {"base_0_rgb": HIGH}).items())
    path.write_text(
        f'base = "pi0_lighter_cup_demo"\n[data]\nroot = "{root}"\nstate = "observation.state"\nactions = "action"\n'
        f"[data.cameras]\n{slots}\n"
    )
    return load_run(str(path), assignments=list(assignments))


def drawn(run):
    return np.asarray(draw_contact_sheet(gather(run)))


def place_of(picture, sheet):
    """Where (x, y) a picture stands on a sheet, pixel by pixel; it must stand there once."""
    height, width, _ = picture.shape
    middle = picture[height // 2, width // 2]
    rows, columns = np.nonzero((sheet == middle).all(-1))
    found = [
        (x, y)
        for x, y in zip((columns - width // 2).tolist(), (rows - height // 2).tolist(), strict=True)
        if x >= 0 and y >= 0 and np.array_equal(sheet[y : y + height, x : x + width], picture)
    ]
    assert len(found) == 1, found
    return found[0]


def require_whole_png(path):
    with Image.open(path, formats=["PNG"]) as picture:
        picture.load()


def lines_of(row):
    return [text for text, _ in row.lines]


def test_the_sheet_has_the_models_own_pixels_a_row_for_each_frame():
    run = load_run(EXAMPLE)
    sheet = drawn(run)
    places = [place_of(run.dataset()[index]["image"]["base_0_rgb"], sheet) for index in SHOWN]
    assert len({x for x, _ in places}) == 1
    tops = [y for _, y in places]
    assert np.diff(tops).min() > 224
    # The two slots that no camera feeds are grey, and not the black that fills their place in the batch.
    for y in tops:
        right_of_it = sheet[y : y + 224, places[0][0] + 224 + 20 : places[0][0] + 3 * 224]
        assert (right_of_it == MASKED).all(-1).mean() > 0.9
        assert not (right_of_it == 0).all(-1).any()
    assert sheet.shape[1] <= 1600


def test_what_is_said_beside_the_pictures():
    sheet = gather(load_run(EXAMPLE, assignments=["seed=7"]))
    assert sheet.title.startswith("g1 (native stack, preflight ")
    said = [text for text, _ in sheet.lines]
    assert said[0].endswith("data/g1: LeRobot v3.0, 30 fps, 2 episode(s), 498 frames")
    assert said[1] == "Shown: the first, middle and last frame of episode(s) 0, 1."
    assert said[2].endswith("state and actions are normalised by z-score.")
    assert said[3] == "With --set seed=7"
    masked = dict.fromkeys(("left_wrist_0_rgb", "right_wrist_0_rgb"), "masked out in all samples")
    assert sheet.columns == {"base_0_rgb": HIGH, **masked}
    assert [row.title for row in sheet.rows[3:]] == [
        "episode 1, frame 0 of 277, 0.00 s (sample 221)",
        "episode 1, frame 138 of 277, 4.60 s (sample 359)",
        "episode 1, frame 276 of 277, 9.20 s (sample 497)",
    ]
    assert [row.starts_group for row in sheet.rows] == [True, False, False] * 2
    prompt, tokens, state, actions = lines_of(sheet.rows[0])
    assert prompt == '"Pick up the yellow bottle on the table."'
    assert tokens == "task 0, 15 of 48 tokens"
    # Of the 26 joints; the model's state is padded to 32.
    values = load_run(EXAMPLE).dataset()[0]["state"][:26]
    outside = int((np.abs(values) > 1).sum())
    assert state == f"state: {values.min():.2f} to {values.max():.2f}, {outside} of 26 outside [-1, 1]"
    assert actions.endswith(" of 1300 outside [-1, 1]")


def test_cameras_in_each_others_place_are_seen(v21):
    # A second camera: the pictures of episode 1, for both episodes.
    videos = v21 / "videos" / "chunk-000"
    (videos / WRIST).mkdir()
    for episode in (0, 1):
        shutil.copy(videos / HIGH / "episode_000001.mp4", videos / WRIST / f"episode_{episode:06d}.mp4")
    info = json.loads((v21 / "meta" / "info.json").read_text())
    info["features"][WRIST] = info["features"][HIGH]
    (v21 / "meta" / "info.json").write_text(json.dumps(info))
    right = run_on(v21, cameras={"base_0_rgb": HIGH, "left_wrist_0_rgb": WRIST})
    high, wrist = (right.dataset()[110]["image"][slot] for slot in ("base_0_rgb", "left_wrist_0_rgb"))
    swapped = run_on(v21, cameras={"base_0_rgb": WRIST, "left_wrist_0_rgb": HIGH})
    x, y = place_of(high, drawn(right))
    pictures = drawn(swapped)
    assert place_of(wrist, pictures) == (x, y)
    beside_x, beside_y = place_of(high, pictures)
    assert beside_x > x + 224
    assert beside_y == y
    assert gather(swapped).columns["base_0_rgb"] == WRIST


def test_a_sample_that_fails_is_a_red_box_with_the_reason_and_the_others_are_drawn(v21):
    video = v21 / "videos" / "chunk-000" / HIGH / "episode_000001.mp4"
    video.write_bytes(video.read_bytes()[:2000])
    run = run_on(v21)
    rows = gather(run).rows
    assert [row.failure is not None for row in rows] == [False] * 3 + [True] * 3
    assert all(str(video) in row.failure for row in rows[3:])
    assert lines_of(rows[3])[0] == '"Pick up the yellow bottle on the table."'
    sheet = drawn(run)
    x, last = place_of(run.dataset()[220]["image"]["base_0_rgb"], sheet)
    red = (sheet == RED).all(-1)
    assert not red[: last + 224].any()
    assert red[last + 224 :, x].any()


def test_values_far_out_are_named_and_red(v21):
    good = run_on(v21)
    # Joint 3's deviation, by a mistake, in other units.
    narrow = {
        name: NormStats(mean=s.mean, std=np.where(np.arange(26) == 3, s.std / 57.3, s.std), q01=s.q01, q99=s.q99)
        for name, s in good.dataset().stats.items()
    }
    save(narrow, v21.parent / "norm_stats.json")
    run = run_on(v21, f"data.norm_stats={v21.parent / 'norm_stats.json'}")
    said = gather(run).rows[0].lines
    alarms = [text for text, tone in said if tone == "alarm"]
    assert [text.partition(":")[0] for text in alarms] == ["state", "actions"]
    assert alarms[0].endswith("furthest is state[3] (kLeftElbow)")
    assert not (drawn(good) == RED).all(-1).any()
    assert (drawn(run) == RED).all(-1).any()


class Floats:
    """A run's samples with pictures as floats."""

    def __init__(self, samples, change):
        self.samples, self.change = samples, change

    def __getattr__(self, name):
        return getattr(self.samples, name)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        sample = self.samples[index]
        return sample | {"image": {slot: self.change(picture) for slot, picture in sample["image"].items()}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda picture: picture / np.float32(127.5) - 1, []),
        (
            lambda picture: picture.astype(np.float32),
            ["base_0_rgb: values from 0 to {most}, the model expects -1 to 1"],
        ),
    ],
)
def test_float_pictures_are_drawn_as_the_model_takes_them(change, said):
    run = load_run(EXAMPLE)
    samples = run.dataset()
    pixels = samples[0]["image"]["base_0_rgb"]
    run.dataset = lambda: Floats(samples, change)
    row = gather(run).rows[0]
    # How bright the brightest pixel is, is the decoder's doing on this CPU.
    expected = [line.format(most=pixels.max()) for line in said]
    assert [text for text, tone in row.lines if tone == "alarm"] == expected
    # What is not in range is not put right for the eye: nearly all is white then.
    np.testing.assert_array_equal(row.pictures["base_0_rgb"], np.where(pixels > 0, 255, 128) if said else pixels)


def test_pictures_keep_their_pixels_through_floats():
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(pixels.astype(np.float32) / 255 * 2 - 1), pixels)
    np.testing.assert_array_equal(to_uint8(np.array([np.nan, np.inf, -7])), [0, 255, 0])


def test_what_is_no_picture_is_said_and_not_drawn():
    run = load_run(EXAMPLE)
    samples = run.dataset()
    run.dataset = lambda: Floats(samples, lambda picture: np.moveaxis(picture, -1, 0))
    assert gather(run).rows[0].pictures["base_0_rgb"] == "shape (3, 224, 224) is no picture [height, width, 3]"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("把黄色的瓶子拿起来 🤖 Heb die Flasche für José auf", None),
        ("\x1b[31m\n\u0000", "\\x1b[31m \\x00"),
        ("a" * 5000, None),
    ],
)
def test_any_prompt_is_drawn(v21, prompt, said):
    tasks = v21 / "meta" / "tasks.jsonl"
    run_before = run_on(v21)
    before = drawn(run_before)
    tasks.write_text(json.dumps({"task_index": 0, "task": prompt}) + "\n")
    run = run_on(v21, "model.max_token_len=6000")
    assert lines_of(gather(run).rows[0])[0] == f'"{prompt}"'
    after = drawn(run)
    picture = run.dataset()[0]["image"]["base_0_rgb"]
    x, y = place_of(picture, after)
    # Something is written where the prompt was.
    panel = after[y + 20 : y + 40, x + 3 * 224 :]
    assert (panel < 128).any()
    assert after.shape[1] == before.shape[1]
    if said is not None:
        assert wrapped(prompt, 15, 500, 3)[1] == [said]


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=200), size=st.sampled_from((13, 15)), width=st.integers(60, 520), most=st.integers(1, 4))
def test_text_stays_within_its_panel(text, size, width, most):
    font, lines = wrapped(text, size, width, most)
    assert 1 <= len(lines) <= most
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    for line in lines:
        assert font.getlength(line) <= width or len(line) == 1
        draw.text((0, 0), line, font=font, fill=255)


def test_some_episodes_are_picked_first_and_last_among_them(v21):
    info = json.loads((v21 / "meta" / "info.json").read_text())
    lengths = [1, 2, 3, *[30] * 7]
    (v21 / "meta" / "info.json").write_text(
        json.dumps(info | {"total_episodes": len(lengths), "total_frames": sum(lengths)})
    )
    lines = [json.dumps({"episode_index": i, "length": n, "tasks": []}) for i, n in enumerate(lengths)]
    (v21 / "meta" / "episodes.jsonl").write_text("\n".join(lines))
    shutil.rmtree(v21 / "data")
    picked = pick_frames(v21, sum(lengths))
    # A frame that is first and last is shown once. Without parquet files a frame's time is by the frame rate.
    assert [frame.title for frame in picked.frames] == [
        "episode 0, frame 0 of 1, 0.00 s (sample 0)",
        *(
            f"episode {episode}, frame {frame} of 30, {frame / 30:.2f} s (sample {6 + 30 * (episode - 3) + frame})"
            for episode in (3, 6, 9)
            for frame in (0, 14, 29)
        ),
    ]
    # A user's own dataset between the frames and the samples: which frame it is cannot be said.
    other = pick_frames(v21, 7)
    assert [frame.title for frame in other.frames] == ["sample 0", "sample 2", "sample 4", "sample 6"]
    assert "not one for each frame" in other.described[1]


def test_made_up_samples_say_so():
    picked = pick_frames(None, 1024)
    assert [frame.sample for frame in picked.frames] == [0, 341, 682, 1023]
    assert {frame.title.partition(" sample")[0] for frame in picked.frames} == {"made-up"}
    assert picked.described[0] == "Made-up samples, without a dataset"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere/sheet.png", "nowhere/sheet.png cannot be written: No such file or directory"),
        ("a_file/sheet.png", "a_file/sheet.png cannot be written: Not a directory"),
        ("folder.png", "folder.png cannot be written: it is a folder"),
        (f"{'x' * 300}.png", "cannot be written: File name too long"),
        ("sheet.jpg", "sheet.jpg: the sheet is a PNG picture"),
        ("sheet", "sheet: the sheet is a PNG picture"),
        ("out.png", "--contact-sheet and --output are the same file"),
        ("/proc/sheet.png", "/proc/sheet.png cannot be written: "),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, monkeypatch, path, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("")
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError) as refused:
        require_writable(Path(path), Path("./out.png"))
    assert said in refused.value.message
    assert sorted(tmp_path.iterdir()) == before


def test_the_file_is_there_whole_or_not_at_all(v21, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"an older one")
    require_writable(sheet, None)
    assert sheet.read_bytes() == b"an older one"
    (tmp_path / "link.png").symlink_to(sheet)
    write_contact_sheet(run_on(v21), tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    require_whole_png(sheet)
    assert capsys.readouterr().err == f"Contact sheet: {tmp_path / 'link.png'} (6 samples)\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g1", "link.png", "run.toml", "sheet.png"]


def test_without_any_sample_nothing_is_drawn_and_one_line_says_why(v21, tmp_path, capsys):
    run = run_on(v21)
    for video in (v21 / "videos" / "chunk-000" / HIGH).iterdir():
        video.write_bytes(b"")
    write_contact_sheet(run, tmp_path / "sheet.png")
    said = capsys.readouterr()
    assert said.err.startswith("preflight: the contact sheet was not drawn: ")
    assert "episode_000000.mp4" in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(("expected", "code"), [(2, 0), (99, 3)])
def test_the_command_draws_whatever_the_verdict_and_keeps_its_exit_code(tmp_path, expected, code):
    (tmp_path / "preflight.toml").write_text(f"[expect]\nnum_workers = {expected}\n")
    words = ["check", EXAMPLE, "--level", "quick", "--only", "config.expectations", "--set", "num_workers=2"]
    without = preflight(*words, "--format", "json", cwd=tmp_path)
    done = preflight(*words, "--format", "json", "--contact-sheet", "sheet.png", cwd=tmp_path)
    assert (without.returncode, done.returncode) == (code, code), done.stderr
    assert json.loads(done.stdout)["verdict"] == json.loads(without.stdout)["verdict"]
    assert done.stderr == "Contact sheet: sheet.png (6 samples)\n"
    require_whole_png(tmp_path / "sheet.png")


def test_the_command_without_a_dataset_keeps_its_exit_code_and_draws_nothing(tmp_path):
    words = ["check", EXAMPLE, "--set", "data.root=d", "--only", "data.present", "--contact-sheet", "sheet.png"]
    done = preflight(*words, cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith("preflight: the contact sheet was not drawn: ")
    assert not any(tmp_path.iterdir())


def test_the_command_refuses_a_wrong_path_at_once(tmp_path):
    done = preflight("check", EXAMPLE, "--contact-sheet", "no/sheet.png", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "preflight: --contact-sheet no/sheet.png cannot be written: No such file or directory\n"
    assert done.stdout == ""


@pytest.fixture
def user(tmp_path_factory):
    with openpi_fork.opened(tmp_path_factory) as opened:
        yield opened


@pytest.mark.filterwarnings("ignore")
def test_openpis_samples_are_drawn_too(user, tmp_path):
    run = openpi_fork.load(tmp_path)
    openpi_fork.write_stats(run)
    run = openpi_fork.load(tmp_path)
    sheet = gather(run)
    assert sheet.columns["base_0_rgb"] == HIGH
    assert sheet.columns["left_wrist_0_rgb"] == "masked out in all samples"
    assert lines_of(sheet.rows[0])[0] == '"Pick up the yellow bottle on the table."'
    picture = to_uint8(np.asarray(run.dataset()[110]["image"]["base_0_rgb"]))
    place_of(picture, np.asarray(draw_contact_sheet(sheet)))
    made_up = gather(openpi_fork.load(tmp_path, name="g1_small_fake"))
    assert made_up.rows[0].title == "made-up sample 0"
    assert "are made up." in made_up.lines[2][0]


for _mark in OPENPI:
    test_openpis_samples_are_drawn_too = _mark(test_openpis_samples_are_drawn_too)

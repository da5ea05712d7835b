"""`data.sample`: pictures that show nothing."""

import numpy as np
import pytest
from healthy import context, spoken
from recoded import V21, encode, pictures, small_copy, v21_video

from checks import data
from preflight.checklist import run_checks


@pytest.fixture
def v21(tmp_path):
    return small_copy(V21, tmp_path / "g1")


def outcome_of(root):
    results = {r.check.id: r for r in run_checks(data.CHECKS, context(f"data.root={root}"), max_parallel=1)}
    assert spoken(results) == {"data.sample"}, {i: results[i].outcome.summary for i in spoken(results)}
    return results["data.sample"].outcome


def test_a_black_frame_is_a_warning(v21):
    frames = pictures(0)
    encode(v21_video(v21, 0), [np.zeros_like(frames[0]), *frames[1:]])
    outcome = outcome_of(v21)
    assert outcome.status == "warn"
    assert outcome.summary == "base_0_rgb is one flat colour in sample 0, of 0, 249, 497 that were looked at"
    assert outcome.hint.commands[0].endswith("--contact-sheet sheet.png")


def test_a_camera_that_shows_nothing_is_a_fault(v21):
    for episode in (0, 1):
        encode(v21_video(v21, episode), [np.zeros_like(picture) for picture in pictures(episode)])
    outcome = outcome_of(v21)
    assert outcome.status == "fail"
    assert outcome.summary == "base_0_rgb is one flat colour in all samples looked at"


def test_the_shuffle_window_says_what_it_costs(v21):
    settings = (f"data.root={v21}", "data.shuffle_window=1", "batch_size=8")
    check = next(check for check in data.CHECKS if check.id == "data.sample")
    outcome = check.run(context(*settings))
    assert outcome.status == "pass"
    spread = outcome.measured["episodes_per_batch"]
    # 61 of 62 batches lie in one episode; without a window 221 and 277 frames are mixed.
    assert 1 < spread["windowed"] < 1.1
    assert 1.98 < spread["all"] <= 2
    assert outcome.summary.endswith(
        "a batch of 8 has samples of 1.0 episodes within the shuffle window of 1, 2.0 without it"
    )
    assert "episodes_per_batch" not in check.run(context(settings[0])).measured

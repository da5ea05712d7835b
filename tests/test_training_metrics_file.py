"""`metrics.jsonl` and what a checkpoint keeps of the record: whole, exact, and in spite of a full disk."""

import json
import math

import pytest
from small_disk import fill, make_room, small_disk

from preflight.errors import PreflightError, UsageError
from preflight.training.folder_lock import locked
from preflight.training.metrics_file import NAME, MetricsFile
from preflight.training.progress import Progress, progress_asset, read_progress


def written(folder):
    return [json.loads(line)["step"] for line in (folder / NAME).read_text().splitlines()]


def test_records_are_appended_and_a_resume_drops_those_beyond_it_and_a_line_cut_short(tmp_path):
    with MetricsFile(tmp_path, 0) as file:
        assert file.losses == []
        for step in (0, 2, 4, 6):
            file.append({"step": step, "loss": "nan" if step == 2 else step / 2})
    with (tmp_path / NAME).open("a") as torn:
        torn.write('{"step": 3, "lo')
    with MetricsFile(tmp_path, 6) as file:
        assert (file.losses[0], math.isnan(file.losses[1]), file.losses[2]) == (0.0, True, 2.0)
        file.append({"step": 6, "loss": 1.0})
        assert written(tmp_path) == [0, 2, 4, 6]
    # Cut in the middle, and gone on by a version that did not look.
    lines = (tmp_path / NAME).read_text().splitlines(keepends=True)
    (tmp_path / NAME).write_text(lines[0] + lines[1][:9] + lines[2] + "[]\n" + lines[3])
    MetricsFile(tmp_path, 99).close()
    assert written(tmp_path) == [0, 6]
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_full_disk_costs_no_record_and_no_half_line(tmp_path, caplog):
    with small_disk(tmp_path / "disk", 1) as disk, MetricsFile(disk, 0) as file:
        file.append({"step": 0, "text": "x" * 3000})
        fill(disk, leave_bytes=0)
        for step in range(1, 6):
            file.append({"step": step, "text": "x" * 3000})
            assert written(disk) == list(range(step if step < 2 else len(written(disk))))
        short = written(disk)
        assert len(short) < 6
        assert caplog.text.count("its records are kept and tried again") == 1
        make_room(disk)
        file.append({"step": 6})
        assert written(disk) == list(range(7))


def test_what_cannot_be_opened_is_a_sentence(tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(PreflightError, match=r"metrics\.jsonl cannot be written: Is a directory"):
        MetricsFile(tmp_path, 0)


EACH = {"loss": [0.1, math.nan, 1 / 3], "grad_max": [math.inf, 1e-38, 2.0]}


def kept(folder, progress):
    path = folder / "9" / "assets"
    path.mkdir(parents=True)
    for name, content in progress_asset(progress).items():
        (path / name).write_bytes(content)
    return folder / "9"


def test_what_a_checkpoint_keeps_of_the_record_is_exact(tmp_path):
    progress = Progress(best_loss=0.1 + 0.2, last_loss=-math.inf, first_step=7, each=EACH)
    found = read_progress(kept(tmp_path, progress), EACH.keys())
    assert (found.best_loss, found.last_loss, found.first_step) == (0.1 + 0.2, -math.inf, 7)
    assert repr(found.each) == repr(EACH)
    # A version that measures other things begins the interval anew, and keeps the rest.
    other = read_progress(tmp_path / "9", ["loss"])
    assert (other.each, other.best_loss) == ({}, 0.1 + 0.2)


def test_an_interval_that_does_not_end_with_its_checkpoint_is_refused(tmp_path):
    step = kept(tmp_path, Progress(first_step=6, each=EACH))
    with pytest.raises(PreflightError, match=r"9/assets/preflight\.json cannot be read \(ValueError\)"):
        read_progress(step, EACH.keys())


def test_a_checkpoint_without_a_record_keeps_nothing(tmp_path):
    found = read_progress(tmp_path, EACH.keys())
    assert (found.each, math.isnan(found.best_loss)) == ({}, True)


def test_a_folder_is_one_process_own(tmp_path):
    with locked(tmp_path), pytest.raises(UsageError, match="another process is training in"), locked(tmp_path):
        pass
    with locked(tmp_path), locked(tmp_path / "none"):
        pass

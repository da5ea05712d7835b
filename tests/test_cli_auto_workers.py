"""`train --auto-workers`: measured on real samples, and no obstacle to the checks where it cannot measure."""

from command import EXAMPLE, preflight

from preflight.cli.auto_workers import measured_workers
from preflight.runs import load_run


def test_a_number_is_measured_and_explained(capsys):
    chosen = measured_workers(load_run(EXAMPLE, assignments=["num_workers=1", "batch_size=2"]), seconds_a_point=1.0)
    said = capsys.readouterr().out
    assert chosen >= 1
    assert said.startswith(f"Workers: {chosen} worker")
    assert "samples/s" in said


def test_what_cannot_be_measured_is_left_to_the_checks(tmp_path):
    words = [
        "--after-checks",
        "--auto-workers",
        "--set",
        "data.root=nowhere",
        "--set",
        f"checkpoint_base_dir={tmp_path}",
    ]
    done = preflight("train", EXAMPLE, *words, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "--auto-workers: the loader could not be measured: " in done.stderr
    assert "blocked by data.present" in done.stdout
    assert list(tmp_path.iterdir()) == []

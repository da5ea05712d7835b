import dataclasses
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from PIL import Image
from sweep_sample import point, sweep_result

from bench.plot import draw_sweep, require_plottable, save_plot
from bench.results import MemoryBudget
from preflight.errors import UsageError
from preflight.report.plot_style import plot_style

THREE = (point(2, 100), point(4, 190, spread=0.2), point(8, 300))
SVG = "{http://www.w3.org/2000/svg}"


def panels(result):
    with plot_style():
        return draw_sweep(result).axes


def texts(result, tmp_path):
    save_plot(result, tmp_path / "sweep.svg")
    return [element.text for element in ET.parse(tmp_path / "sweep.svg").iter(f"{SVG}text")]


@pytest.mark.parametrize("numbers", [(4,), (1, 2, 4), (0, 1, 2, 3, 4, 6, 8, 16)])
def test_every_point_stands_with_its_interval_over_its_number(numbers):
    points = [point(number, 40 * max(1, number)) for number in numbers]
    upper, lower = panels(sweep_result(*points))
    drawn = {}
    for container in upper.containers:
        (marks, _, (bars,)) = container
        for (x, y), ends in zip(marks.get_xydata(), bars.get_segments(), strict=True):
            drawn[x] = (y, *ends[:, 1])
    assert [drawn[place] for place in sorted(drawn)] == [
        pytest.approx((p.samples_per_s.median, p.samples_per_s.lo, p.samples_per_s.hi)) for p in points
    ]
    assert [label.get_text() for label in lower.get_xticklabels()] == [str(number) for number in numbers]
    assert (upper.get_ylim()[0], lower.get_ylim()[0]) == (0, 0)
    assert upper.get_ylim()[1] > max(p.samples_per_s.hi for p in points)


def test_the_recommended_point_is_marked_by_shape_and_colour():
    upper, _ = panels(sweep_result(*THREE, recommended_num_workers=4))
    others, chosen = (container.lines[0] for container in upper.containers)
    assert list(others.get_xdata()) == [0, 2]
    assert list(chosen.get_xdata()) == [1]
    assert others.get_marker() != chosen.get_marker()
    assert others.get_color() != chosen.get_color()
    assert [text.get_text() for text in upper.get_legend().get_texts()] == ["median, 95 % interval", "recommended"]


def test_ram_of_all_workers_stands_on_the_parents():
    _, lower = panels(sweep_result(point(0, 50), point(2, 100)))
    parent, workers = lower.containers
    assert [bar.get_height() for bar in parent] == [400, 400]
    assert [(bar.get_y(), bar.get_height()) for bar in workers] == [(400, 0), (400, 2 * 120 + 10)]
    assert lower.get_ylabel() == "RAM, MiB (PSS)"


def test_a_limit_in_view_is_a_line_and_one_far_off_is_said(tmp_path):
    near = MemoryBudget(baseline_mib=400, per_worker_mib=130, limit_mib=1600, limit_source="cgroup v2 memory.max (/b)")
    far = dataclasses.replace(near, limit_mib=65536)
    line = "limit 1.6 GiB (cgroup v2 memory.max (/b))"
    assert line in texts(sweep_result(*THREE, memory=near), tmp_path)
    assert [list(drawn.get_ydata()) for drawn in panels(sweep_result(*THREE, memory=near))[1].lines] == [[1600, 1600]]
    assert "limit 64.0 GiB (cgroup v2 memory.max (/b)), beyond this scale" in texts(
        sweep_result(*THREE, memory=far), tmp_path
    )
    assert panels(sweep_result(*THREE, memory=far))[1].get_ylim()[1] < 3000


def test_the_demand_is_a_line_where_it_is_known_and_in_view(tmp_path):
    def levels(demand):
        upper, _ = panels(sweep_result(*THREE, demand_samples_per_s=demand))
        return [line.get_ydata()[0] for line in upper.lines if line.get_linestyle() == "--"], upper.get_ylim()[1]

    assert levels(None)[0] == []
    assert levels(250.0)[0] == [250.0]
    at, top = levels(450.0)
    assert at == [450.0]
    assert top > 450
    assert levels(5000.0)[0] == []
    said = texts(sweep_result(*THREE, demand_samples_per_s=5000.0), tmp_path)
    assert "the training step's demand, 5,000 samples/s, is beyond this scale" in said


def test_what_was_not_measured_has_its_place(tmp_path):
    said = texts(sweep_result(*THREE, not_measured={16: "no RAM"}), tmp_path)
    assert "16" in said
    assert "not measured" in said


def test_the_same_result_gives_the_same_file_with_its_text_as_text(tmp_path):
    for name in ("a.svg", "b.svg", "a.png", "b.png", "a.pdf", "b.pdf"):
        save_plot(sweep_result(*THREE), tmp_path / name)
    for extension in ("svg", "png", "pdf"):
        assert (tmp_path / f"a.{extension}").read_bytes() == (tmp_path / f"b.{extension}").read_bytes()
    said = texts(sweep_result(*THREE), tmp_path)
    assert {"g1: loading in batches of 8", "AMD EPYC 7763, 4 usable CPUs, linux-x86_64", "workers"} <= set(said)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 700
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF-")


def test_a_name_in_any_script_is_drawn(tmp_path):
    name = "抓取 $x_1$ \x1b[31m"
    assert "抓取 $x_1$ \\x1b[31m: loading in batches of 8" in texts(sweep_result(*THREE, config=name), tmp_path)
    save_plot(sweep_result(*THREE, config=name), tmp_path / "a.png")


def test_many_points_still_fit(tmp_path):
    save_plot(sweep_result(*(point(number, 40.0 * number) for number in range(1, 40))), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width <= 2400


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("sweep.jpg", "a plot is one of .svg, .png, .pdf", "sweep.svg"),
        ("sweep", "a plot is one of .svg, .png, .pdf", "sweep.svg"),
        (".", "a plot is one of .svg, .png, .pdf", "svg"),
        ("none/sweep.svg", "cannot be written: No such file or directory", ""),
    ],
)
def test_an_impossible_plot_is_refused(tmp_path, name, message, hint):
    with pytest.raises(UsageError) as caught:
        require_plottable("--plot", tmp_path / name)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_without_a_home_nothing_is_left_and_nothing_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    program = (
        "import sys; from pathlib import Path; from sweep_sample import point, sweep_result\n"
        "from bench.plot import save_plot\n"
        "save_plot(sweep_result(point(2, 100)), Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a.svg"],
        env={"HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.svg", "file", "tmp"]

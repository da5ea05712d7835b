"""What `--demand` means: a number, or a run's folder whose metrics tell what a step takes without waiting."""

import json

import pytest
from sweep_sample import point

from bench.decision import decide
from bench.demand import MAX_WAIT_SHARE, Demand, demand_of_run, parse_demand
from bench.results import MemoryBudget
from preflight.errors import UsageError

BATCH = 16
MEMORY = MemoryBudget(baseline_mib=400.0, per_worker_mib=130.0, limit_mib=8192.0, limit_source="MemAvailable")


def line(step, step_s, wait_s):
    efficiency = {
        "steps_per_sec": 1 / step_s,
        "samples_per_sec": BATCH / step_s,
        "time_per_step": step_s,
        "data_wait": wait_s,
    }
    return {"step": step, "loss": 1.0, **{f"efficiency/{name}": value for name, value in efficiency.items()}}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "pi0_mine" / "first"
    folder.mkdir(parents=True)

    def write(*lines, end="\n"):
        text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
        (folder / "metrics.jsonl").write_text(text + end)
        return folder

    return write


def test_a_number_is_itself():
    assert parse_demand("120.5") == Demand(120.5, "given by --demand")


@pytest.mark.parametrize("text", ["0", "-3", "nan", "inf"])
def test_no_loader_can_deliver_these(text):
    with pytest.raises(UsageError, match=f"--demand must be more than 0, not {text}"):
        parse_demand(text)


def test_a_runs_demand_is_that_of_its_median_step_without_the_wait(run):
    first = {"step": 0, "loss": 2.0}  # with the compile in it, so the loop gives no rates
    folder = run(first, line(10, 0.25, 0.01), line(20, 0.21, 0.01), line(30, 0.42, 0.02))
    found = parse_demand(str(folder))
    assert found.samples_per_s == pytest.approx(BATCH / 0.24)
    assert found.source == "measured by the run pi0_mine/first in 3 intervals at batch size 16"


def test_intervals_that_waited_long_do_not_count(run):
    waited = 2 * MAX_WAIT_SHARE
    folder = run(line(10, 0.2, 0.0), line(20, 1.0, waited), line(30, 1.0, waited))
    assert demand_of_run(folder).samples_per_s == pytest.approx(BATCH / 0.2)
    assert "in 1 interval at" in demand_of_run(folder).source


def test_a_run_that_always_waited_cannot_tell(run):
    # The host waits 0.19 of 0.2 s while the device works on the step before: 16 / 0.01 = 1600 would be nonsense.
    with pytest.raises(UsageError, match=r"waited for data in 95% of their time.* more than 80 samples/s"):
        demand_of_run(run(line(10, 0.2, 0.19), line(20, 0.2, 0.19)))


def test_the_line_that_a_kill_cut_off_is_left_out_and_another_is_named(run):
    whole, torn = line(10, 0.2, 0.0), '{"step": 20, "loss'
    assert demand_of_run(run(whole, torn, end="")).samples_per_s == pytest.approx(BATCH / 0.2)
    with pytest.raises(UsageError, match=r"line 1 of metrics.jsonl is no JSON$"):
        demand_of_run(run(torn, whole))
    with pytest.raises(UsageError, match=r"line 2 of metrics.jsonl is no JSON object"):
        demand_of_run(run(whole, "[1]", whole))


@pytest.mark.parametrize("bad", ["NaN", "Infinity", None, True, -0.1])
def test_an_interval_with_impossible_figures_is_left_out(run, bad):
    folder = run(line(10, 0.2, 0.0), {**line(20, 0.1, 0.0), "efficiency/time_per_step": bad})
    assert demand_of_run(folder).samples_per_s == pytest.approx(BATCH / 0.2)


def test_what_is_no_run_is_refused_in_a_sentence(run, tmp_path):
    with pytest.raises(UsageError, match="neither a number nor a folder that exists"):
        parse_demand(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="there is no metrics.jsonl in it"):
        parse_demand(str(tmp_path))
    folder = run({"step": 0, "loss": 2.0})
    with pytest.raises(UsageError, match="holds no interval with efficiency/time_per_step"):
        parse_demand(str(folder))
    with pytest.raises(UsageError, match="this is no folder"):
        parse_demand(str(folder / "metrics.jsonl"))
    (folder / "metrics.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"metrics.jsonl cannot be read: it is no text"):
        parse_demand(str(folder))
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"metrics.jsonl cannot be read: Is a directory"):
        parse_demand(str(folder))


def test_the_reason_says_where_the_demand_is_from():
    points = [point(2, 400.0)]
    demand = Demand(800.0, "measured by the run pi0_mine/first in 3 intervals at batch size 16")
    _, reason = decide(
        points, memory=MEMORY, usable_cpus=4, demand_samples_per_s=demand.samples_per_s, demand_source=demand.source
    )
    assert f"asks for 800 samples/s ({demand.source}), so it will wait for data" in reason

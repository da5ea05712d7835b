"""`python -m bench.step`: what the extended metrics cost, as the ratio of the train step with and without them.

Both are `preflight.training.step.train_step`; the bare one gives only the metrics that openpi's does (loss, grad_norm,
param_norm), so that XLA drops what the others need. They take turns in one process, on one and the same state, a
step each a round; which goes first changes from round to round. Each step is timed from its dispatch until its
results are ready, the collection of its metrics for the log interval included. The ratio is paired by round
(`bench.statistics`).

Batches are random, of the run's shapes: no dataset and no network is needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.statistics import Estimate, median_interval, paired_ratio
from preflight.errors import PreflightError
from preflight.telemetry.devices import quiet_idle_plugin
from preflight.telemetry.environment import environment

if TYPE_CHECKING:
    from preflight.runs import Run

SCHEMA_VERSION = 1
BUDGET = 0.01  # of the bare step's time
BARE = ("loss", "grad_norm", "param_norm")
# An image tower of 22 million parameters in the demo's model, on a CPU a step of a few seconds. What the metrics are of
# a step depends on the tokens of a batch, not on the parameters: each token multiplies with all of them, the metrics
# pass over them once. Hence the batch of 16: fewer tokens than a GPU has in pi0 with 32, but a CPU multiplies less for
# each byte that it reads.
_CONFIG, _SETTINGS = "pi0_lighter_cup_demo", ("model.siglip_variant=S/32", "batch_size=16")
_MOST_ROUNDS, _FEWEST_ROUNDS = 200, 6
_WARM_UP = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCost:
    """The steps' times, and what is made of them."""

    config: str
    parameters: int
    batch_size: int
    device: str
    metrics: tuple[str, ...]  # of the extended step
    compile_s: dict[str, float]
    seconds: dict[str, list[float]]  # by "bare" and "extended", of each one's step in each round

    @property
    def ratio(self) -> Estimate:
        """Of the extended step's time to the bare one's."""
        return paired_ratio(*([[second] for second in self.seconds[name]] for name in ("extended", "bare")))

    def to_json(self) -> dict[str, Any]:
        """One object, plain values; every step's time is in it."""
        ratio = self.ratio
        return {
            "schema_version": SCHEMA_VERSION,
            "config": self.config,
            "parameters": self.parameters,
            "batch_size": self.batch_size,
            "device": self.device,
            "environment": environment(),
            "metrics": {"bare": list(BARE), "extended": list(self.metrics)},
            "compile_s": self.compile_s,
            "step_s": {name: _plain(median_interval(seconds)) for name, seconds in self.seconds.items()},
            "ratio": _plain(ratio),
            "budget": 1 + BUDGET,
            "within_budget": within_budget(ratio),
            "raw": self.seconds,
        }


def within_budget(ratio: Estimate) -> bool | None:
    """Whether a ratio keeps the budget; None where its interval lies on both sides of it."""
    if ratio.hi <= 1 + BUDGET:
        return True
    return False if ratio.lo > 1 + BUDGET else None


def measure(run: Run, *, seconds: float) -> StepCost:
    """Compiles both steps and times them side by side.

    Args:
        run: The run.
        seconds: How long to time, without the compiles; at least six rounds are made.

    Raises:
        UsageError: The batch does not divide over the devices.
    """
    import jax

    from preflight.training.interval import IntervalMetrics
    from preflight.training.mesh import make_mesh, put_batch, replicated, require_divisible
    from preflight.training.state import first_state, state_sharding
    from preflight.training.step import compile_step

    facts = run.facts
    require_divisible(facts.batch_size, facts.fsdp_devices, jax.device_count())
    mesh = make_mesh(facts.fsdp_devices)
    init_rng, rng = run.keys()
    rng = jax.device_put(rng, replicated(mesh))
    state = first_state(run, init_rng, state_sharding(run, mesh))
    batch = put_batch(random_batch(run), mesh)
    steps, compile_s, intervals = {}, {}, {}
    names: tuple[str, ...] = ()
    for name, wanted in (("bare", BARE), ("extended", None)):
        began = time.perf_counter()
        steps[name] = compile_step(run, mesh, metrics=wanted).lower(rng, state, batch).compile()
        compile_s[name] = time.perf_counter() - began
        intervals[name] = IntervalMetrics(1)

    def take(name: str) -> float:
        nonlocal state, names
        began = time.perf_counter()
        state, metrics = steps[name](rng, state, batch)
        intervals[name].add(0, metrics)
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - began
        intervals[name].fetch()
        names = tuple(metrics) if name == "extended" else names
        return seconds

    for name in [*steps] * _WARM_UP:
        take(name)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    until = time.perf_counter() + seconds
    for number in range(_MOST_ROUNDS):
        if number >= _FEWEST_ROUNDS and time.perf_counter() >= until:
            break
        for name in [*steps] if number % 2 else [*steps][::-1]:
            taken[name].append(take(name))
    return StepCost(
        config=facts.name,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        batch_size=facts.batch_size,
        device=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        metrics=names,
        compile_s=compile_s,
        seconds=taken,
    )


def random_batch(run: Run) -> Any:
    """A batch of the run's shapes, on the host: whole numbers small enough for any vocabulary, all masks true."""
    import jax

    rng = np.random.default_rng(run.facts.seed)

    def leaf(spec: Any) -> np.ndarray:
        if spec.dtype == bool:
            return np.ones(spec.shape, bool)
        if np.issubdtype(spec.dtype, np.integer):
            return rng.integers(0, 255, spec.shape).astype(spec.dtype)
        return rng.uniform(-1, 1, spec.shape).astype(spec.dtype)

    return jax.tree.map(leaf, run.batch_spec(run.facts.batch_size))


def render(cost: StepCost) -> str:
    """For people."""
    ratio = cost.ratio
    verdict = {True: "within", False: "above", None: "neither surely within nor above"}[within_budget(ratio)]
    bare, extended = (median_interval(cost.seconds[name]) for name in ("bare", "extended"))
    extra = [name for name in cost.metrics if name not in BARE]
    return (
        f"{cost.config}, {cost.parameters:,} parameters, batch {cost.batch_size}, on {cost.device}\n"
        f"{len(cost.seconds['bare'])} rounds, a step of each in turn\n"
        f"  bare       {_ms(bare)} ms a step: {', '.join(BARE)}\n"
        f"  extended   {_ms(extended)} ms a step: with {', '.join(extra)}\n"
        f"  cost       {_percent(ratio.median)} % [{_percent(ratio.lo)}, {_percent(ratio.hi)}] of a step, "
        f"{verdict} the budget of {BUDGET:.0%}"
    )


def _ms(value: Estimate) -> str:
    return f"{1e3 * value.median:.1f} [{1e3 * value.lo:.1f}, {1e3 * value.hi:.1f}]"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.2f}"


def _plain(value: Estimate) -> dict[str, Any]:
    return {"median": value.median, "ci95": [value.lo, value.hi]}


def main(arguments: list[str] | None = None) -> int:
    """Prints the cost; 0 unless it is surely above the budget, then 3."""
    options = _options(arguments)
    quiet_idle_plugin()
    try:
        from preflight.runs import load_run

        run = load_run(options.config, stack="native", assignments=options.set)
        cost = measure(run, seconds=options.seconds)
    except PreflightError as error:
        sys.stderr.write(f"{error.message}\n" + (f"  hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    print(json.dumps(cost.to_json(), indent=2) if options.format == "json" else render(cost))
    return 3 if within_budget(cost.ratio) is False else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", default=None, metavar="CONFIG", help=f"{_CONFIG} with {' '.join(_SETTINGS)} unless given"
    )
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="a setting of the config")
    parser.add_argument("--seconds", type=float, default=120.0, metavar="S", help="of timing, without the compiles")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args(arguments)
    if not options.seconds > 0:
        parser.error(f"--seconds must be more than 0, not {options.seconds:g}")
    if options.config is None:
        options.config, options.set = _CONFIG, [*_SETTINGS, *options.set]
    return options


if __name__ == "__main__":
    sys.exit(main())

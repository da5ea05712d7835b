"""`loader.*`: how fast batches arrive."""

from __future__ import annotations

from checks import loader_first_batch, loader_starvation
from checks.context import CheckContext, with_settings
from checks.sweep import configured_point, loader_sweep
from preflight.checklist import Check, Hint, Outcome, failed, passed, warned
from preflight.runs import command_line


def _throughput(context: CheckContext) -> Outcome:
    from bench.notes import notes

    facts = context.run.facts
    result, own = loader_sweep(context), configured_point(context)
    if own is None:
        why = result.not_measured.get(facts.num_workers, "no reason is known")
        return failed(
            f"the loader could not be measured with {facts.num_workers} workers: {why}",
            hint=Hint(
                text="fewer workers", commands=with_settings(context, f"num_workers={result.recommended_num_workers}")
            ),
        )
    rate = own.samples_per_s
    measured = {
        "samples_per_s": {
            str(p.num_workers): [round(x, 1) for x in (p.samples_per_s.median, p.samples_per_s.lo, p.samples_per_s.hi)]
            for p in result.points
        },
        "first_batch_s": round(own.first_batch_s, 2),
        "cpu_cores_used": round(own.cpu_cores_used, 2),
    }
    limit, evidence = result.bottleneck, tuple(notes(result))
    if limit is not None:
        measured["bottleneck"] = limit.name
    summary = (
        f"{rate.median:,.0f} samples/s [{rate.lo:,.0f}, {rate.hi:,.0f}] with {facts.num_workers} workers, "
        f"a batch of {facts.batch_size} every {facts.batch_size / rate.median:.2f} s, first batch after "
        f"{own.first_batch_s:.1f} s"
    )
    better = [p for p in result.points if p.samples_per_s.lo > rate.hi * 1.05]
    if better:
        workers = ",".join(str(p.num_workers) for p in result.points)
        best = max(better, key=lambda p: p.samples_per_s.median)
        return warned(
            f"{summary}; {best.num_workers} workers were faster: {best.samples_per_s.median:,.0f} samples/s "
            f"[{best.samples_per_s.lo:,.0f}, {best.samples_per_s.hi:,.0f}]",
            measured=measured,
            evidence=evidence,
            hint=Hint(
                text="measure it at length",
                commands=(command_line(facts, "bench-loader", "--workers", workers),),
            ),
        )
    return passed(summary, measured=measured, evidence=evidence)


CHECKS = (
    loader_first_batch.CHECK,
    Check(
        id="loader.throughput",
        title="The loader delivers",
        level="standard",
        severity="warn",
        requires=("data.sample", "loader.first-batch"),
        exclusive=True,
        failures=("F03", "F23"),
        timeout_s=240,
        run=_throughput,
        doc="Runs the run's own loader (real worker processes, real decoding) for a few seconds at the "
        "configured number of workers and at two, and warns when the other is clearly faster, beyond both "
        "intervals. It names what limits the loader (decoding, transforms, CPUs, the disk, a network file system, the "
        "parent). `preflight bench-loader` does the same at length.",
    ),
    loader_starvation.CHECK,
)

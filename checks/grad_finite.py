"""`grad.finite`: one real backward pass, and what arrives at each parameter."""

from __future__ import annotations

import zlib
from typing import Any

from checks.context import CheckContext
from checks.trace import paths
from preflight.checklist import Check, Hint, Outcome, failed, passed
from preflight.runs import Run, command_line

_SPREAD = 0.05  # of the parameters that are drawn: small enough that no softmax saturates
# Tokens are drawn below it: in the vocabulary of any tokenizer.
_NUM_TOKENS = 256


def _finite(context: CheckContext) -> Outcome:
    import numpy as np

    run = context.run.at_small_size()
    loss, gradients = _gradients(run)
    unreached = {path: why for path, why in run.unreached().items() if path in gradients}
    bad = {path: _what(g) for path, g in gradients.items() if not np.isfinite(g).all()}
    dead = [path for path, g in gradients.items() if path not in unreached and not np.any(g)]
    measured = {
        "trained_leaves": len(gradients),
        "loss": float(loss) if np.isfinite(loss) else str(loss),  # NaN is no JSON
        "not_finite": len(bad),
        "dead": len(dead),
    }
    again = (command_line(context.run.facts, "check", "--only", "grad.finite", "--level", "full"),)
    if bad or not np.isfinite(loss):
        return failed(
            f"the gradient of {len(bad)} of {len(gradients)} trained leaves is not finite, the loss is {loss:.4g}"
            + (f": {next(iter(bad))} has {next(iter(bad.values()))}" if bad else ""),
            measured=measured,
            expected={"not_finite": 0},
            evidence=tuple(f"{path}: {what}" for path, what in bad.items()),
            hint=Hint(
                text="look for a square root, a logarithm or a division that meets zero; jax names the operation:",
                commands=(f"JAX_DEBUG_NANS=True {again[0]}",),
            ),
        )
    if dead:
        return failed(
            f"{len(dead)} of {len(gradients)} trained leaves get a gradient of exactly zero: {dead[0]}"
            + (f" and {len(dead) - 1} more" if len(dead) > 1 else ""),
            measured=measured,
            expected={"dead": 0},
            evidence=tuple(dead),
            hint=Hint(
                text="the loss does not depend on them: a stop_gradient, or a parameter that is made and not used. "
                "Mend that, or freeze them to spare their gradients and optimizer state",
                commands=again,
            ),
        )
    summary = (
        f"{len(gradients) - len(unreached)} of {len(gradients)} trained leaves get a finite gradient that is not zero, "
        f"in one real backward pass at small size (loss {loss:.4g})"
    )
    if unreached:
        summary += f"; {len(unreached)} more, out of every loss's reach by design, need none"
    return passed(summary, measured=measured, evidence=tuple(f"{path}: {reason}" for path, reason in unreached.items()))


def _gradients(run: Run) -> tuple[Any, dict[str, Any]]:
    """The loss, and the gradient of each trained leaf by path, on random samples and random parameters."""
    import jax
    import numpy as np
    from flax import nnx

    from preflight.training import step
    from preflight.training.state import model_def

    structure = model_def(run)
    abstract = jax.eval_shape(lambda key: nnx.state(run.create_model(key)), jax.random.key(0))
    # Every parameter away from its initial value: behind a head or a LoRA matrix that starts at zero, every gradient
    # is zero at first, and a part that is cut off could not be told from one that merely waits.
    drawn = iter([_draw(path, leaf) for path, leaf in paths(abstract).items()])
    params = jax.tree.map(lambda _: next(drawn), abstract)

    def backward(params: Any, batch: Any) -> Any:
        return step.loss_and_grads(run, nnx.merge(structure, params), jax.random.key(0), batch)

    batch = random_batch(run)
    # It runs once: time spent on making it fast is lost (on two cores, 8.4 s of compiling became 4.6 s).
    compiled = jax.jit(backward).lower(params, batch).compile(compiler_options={"xla_backend_optimization_level": "0"})
    (loss, _), grads = compiled(params, batch)
    return np.asarray(loss), {path: np.asarray(leaf, np.float32) for path, leaf in paths(grads).items()}


def random_batch(run: Run) -> Any:
    """A batch of the run's shapes: every camera shown, every prompt of full length."""
    import jax
    import numpy as np

    rng = np.random.default_rng(run.facts.seed)

    def draw(spec: Any) -> Any:
        dtype = np.dtype(spec.dtype)
        if dtype == np.bool_:
            return np.ones(spec.shape, dtype)
        if np.issubdtype(dtype, np.integer):
            return rng.integers(0, _NUM_TOKENS, spec.shape).astype(dtype)  # token ids, and the pixels of uint8 images
        return rng.standard_normal(spec.shape).astype(dtype)

    return jax.tree.map(draw, run.batch_spec(run.facts.batch_size))


def _draw(path: str, leaf: Any) -> Any:
    import numpy as np

    # Seeded by the path: the same at every run, whatever else the tree holds.
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    return (rng.standard_normal(leaf.shape) * _SPREAD).astype(leaf.dtype)


def _what(gradient: Any) -> str:
    import numpy as np

    nan, inf = int(np.isnan(gradient).sum()), int(np.isinf(gradient).sum())
    counts = ", ".join(f"{n:,} {word}" for n, word in ((nan, "NaN"), (inf, "inf")) if n)
    return f"{counts} of {gradient.size:,} elements"


CHECK = Check(
    id="grad.finite",
    title="Every trained parameter gets a gradient",
    level="full",
    severity="fail",
    requires=("grad.has-aux",),
    timeout_s=300,
    run=_finite,
    doc="One real forward and backward pass of the same architecture at a size that a CPU can do, on two random "
    "samples, with every parameter drawn at random (at their initial values, heads and LoRA matrices of zeros would "
    "hide what lies behind them). Each trained leaf must get a gradient without NaN or infinity, and one that is not "
    "zero throughout. Leaves that no loss of the architecture reaches are declared by the run, with the reason; all "
    "others that are dead are listed by path. Stacked layers are one leaf: a single dead layer does not show.",
)

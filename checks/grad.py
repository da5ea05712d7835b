"""`grad.*`: the contract of the loss and its gradients, traced on the full-size model."""

from __future__ import annotations

from typing import Any

from checks.context import CheckContext
from checks.trace import abstract_state, paths, user_line
from preflight.checklist import Check, Hint, Outcome, failed, passed

_CONTRACT = (
    "loss_fn returns (mean_loss, chunked_loss) and is differentiated with has_aux=True: "
    "(loss, chunked_loss), grads = nnx.value_and_grad(loss_fn, argnums=..., has_aux=True)(...)"
)


def _has_aux(context: CheckContext) -> Outcome:
    import jax
    from flax import nnx

    from preflight.training.state import model_def, trainable
    from preflight.training.step import loss_and_grads

    run = context.run
    state, structure = abstract_state(context), model_def(context.run)
    batch_size = run.facts.batch_size

    def trace(rng: Any, params: Any, batch: Any) -> Any:
        return loss_and_grads(run, nnx.merge(structure, params), rng, batch)

    try:
        out = jax.eval_shape(trace, jax.random.key(0), state.params, run.batch_spec(batch_size))
    except Exception as error:  # noqa: BLE001
        return _explain(error)
    trained = paths(trainable(run, state.params))
    total = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    problems = contract_problems(out, (batch_size, run.facts.action_horizon), trained)
    measured = {"parameters": total, "trainable_parameters": sum(leaf.size for leaf in trained.values())}
    if not trained:
        problems.insert(0, "there is nothing to train: freeze matches every parameter")
    if problems:
        return failed(
            problems[0],
            measured=measured,
            expected={"contract": _CONTRACT},
            evidence=tuple(problems[:10]),
            hint=Hint(text=_CONTRACT),
        )
    return passed(
        f"traced at full size ({total:,} parameters, {len(trained)} trainable leaves): scalar float32 loss, "
        f"aux [{batch_size}, {run.facts.action_horizon}], gradients exactly the trainable tree",
        measured=measured,
    )


def contract_problems(out: Any, aux_shape: tuple[int, ...], trainable: dict[str, Any]) -> list[str]:
    """What is wrong with the output of `value_and_grad(..., has_aux=True)`, in plain words.

    Args:
        out: The traced output.
        aux_shape: (batch, horizon).
        trainable: The trainable parameters by path.
    """
    import jax.numpy as jnp

    problems: list[str] = []
    if not (isinstance(out, tuple) and len(out) == 2):
        return [f"value_and_grad returned {type(out).__name__}, not the pair ((loss, aux), grads)"]
    value, grads = out
    if not (isinstance(value, tuple) and len(value) == 2):
        return ["the first result is the bare loss, not (loss, aux): has_aux=True is missing"]
    loss, aux = value
    if loss.shape != ():
        problems.append(f"the loss has shape {list(loss.shape)}: it must be a scalar, the mean over samples and steps")
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        problems.append(f"the loss is {loss.dtype}: only a floating loss has a gradient")
    elif loss.dtype != jnp.float32:
        problems.append(f"the loss is {loss.dtype}: its mean should be taken in float32")
    if getattr(aux, "shape", None) != aux_shape:
        found = list(aux.shape) if hasattr(aux, "shape") else type(aux).__name__
        problems.append(
            f"aux has shape {found}, expected {list(aux_shape)} (batch, horizon): loss_std, loss_max and loss_min "
            "would be taken over something else"
        )
    found_grads = paths(grads)
    for path in sorted(trainable.keys() - found_grads.keys()):
        problems.append(f"{path} is trainable and gets no gradient")
    for path in sorted(found_grads.keys() - trainable.keys()):
        problems.append(f"{path} is frozen and gets a gradient")
    for path in sorted(trainable.keys() & found_grads.keys()):
        if found_grads[path].shape != trainable[path].shape:
            problems.append(
                f"{path}: gradient {list(found_grads[path].shape)}, parameter {list(trainable[path].shape)}"
            )
    return problems


def _explain(error: Exception) -> Outcome:
    text = str(error)
    where = user_line(error)
    plain = {
        "requires real- or complex-valued outputs": "the loss is not floating point: an integer has no gradient",
        "only defined for scalar-output functions": "the loss is not a scalar: jnp.mean over samples and steps "
        "is missing",
        "with a pair": "loss_fn does not return a pair (loss, aux), but has_aux=True expects one",
        "has_aux=True": "loss_fn does not return a pair (loss, aux), but has_aux=True expects one",
        "not enough values to unpack": "loss_fn returns fewer values than are unpacked",
        "cannot unpack": "loss_fn does not return a pair (loss, aux), but has_aux=True expects one",
    }
    first = next(iter(text.strip().splitlines()), type(error).__name__)
    summary = next((words for mark, words in plain.items() if mark in text), f"{type(error).__name__}: {first}")
    return failed(
        f"the loss cannot be differentiated: {summary}",
        evidence=tuple(line for line in (where, f"{type(error).__name__}: {first[:300]}") if line),
        hint=Hint(text=_CONTRACT),
    )


CHECKS = (
    Check(
        id="grad.has-aux",
        title="Loss, aux and gradients keep their contract",
        level="standard",
        severity="fail",
        requires=("config.freeze",),
        timeout_s=180,
        run=_has_aux,
        doc="Traces value_and_grad(..., has_aux=True) of the full-size model with jax.eval_shape: no array is made, so "
        "3.2 billion parameters take seconds and no memory. The loss must be a scalar float32, aux one value for each "
        "sample and action step, and the gradients exactly the trainable parameters, leaf by leaf.",
    ),
)

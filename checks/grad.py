"""`grad.*`: the contract of the loss and its gradients, what they reach, and whether they are numbers."""

from __future__ import annotations

from typing import Any

from checks import grad_coverage, grad_finite
from checks.context import CheckContext
from checks.observed import ObservedRun, observe
from checks.trace import abstract_state, model_structure, paths, shape_text
from preflight.blame import definition, one_line, user_line
from preflight.checklist import Check, Hint, Outcome, failed, passed
from preflight.runs import Facts, command_line

_STEP_CONTRACT = (
    "loss_fn returns (mean_loss, chunked_loss) and is differentiated with has_aux=True: "
    "(loss, chunked_loss), grads = nnx.value_and_grad(loss_fn, argnums=..., has_aux=True)(...)"
)
_LOSS_CONTRACT = (
    "compute_loss returns one floating array [batch, horizon], a loss for each sample and action step; the train step "
    "takes its mean and keeps the array as aux"
)


def _has_aux(context: CheckContext) -> Outcome:
    import jax
    from flax import nnx

    from preflight.training import step
    from preflight.training.state import trainable

    run = context.run
    state, structure = abstract_state(context), model_structure(context)
    observed = observe(run)
    batch = run.batch_spec(run.facts.batch_size)
    aux_shape = _aux_shape(run.facts)

    def trace(rng: Any, params: Any, batch: Any) -> Any:
        return step.loss_and_grads(observed.run, nnx.merge(structure, params), rng, batch)

    try:
        out = jax.eval_shape(trace, jax.random.key(0), state.params, batch)
    except Exception as error:  # noqa: BLE001
        return _untraceable(context, observed, aux_shape, error)
    trained = paths(trainable(run, state.params))
    total = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    of_loss = [loss_problem(loss, aux_shape) for loss in observed.returned[:1]]
    problems = [problem for problem in of_loss if problem] or contract_problems(out, aux_shape, trained)
    if problems:
        return _broken(context, problems, observed, by_user=any(of_loss))
    return passed(
        f"traced at full size ({total:,} parameters, {len(trained)} trainable leaves): scalar float32 loss, "
        f"aux {list(aux_shape)}, gradients exactly the trainable tree",
        measured={"parameters": total, "trainable_parameters": sum(leaf.size for leaf in trained.values())},
    )


def _aux_shape(facts: Facts) -> tuple[int, ...]:
    return (facts.batch_size, facts.action_horizon) if facts.loss_by_action else (facts.batch_size,)


def _axes(aux_shape: tuple[int, ...]) -> str:
    return f"{list(aux_shape)} ({', '.join(('batch', 'horizon')[: len(aux_shape)])})"


def loss_problem(loss: Any, aux_shape: tuple[int, ...]) -> str | None:
    """What is wrong with the value of `compute_loss`, in plain words; None where nothing is.

    Args:
        loss: Traced.
        aux_shape: (batch, horizon), or (batch) of a loss without a value for each action step.
    """
    import jax.numpy as jnp

    if not (hasattr(loss, "shape") and hasattr(loss, "dtype")):
        return f"compute_loss returns {shape_text(loss)}, not one array {_axes(aux_shape)}"
    if loss.shape != aux_shape:
        batch, horizon = (*aux_shape, None)[:2]
        why = {
            0: "the mean over samples and steps is the train step's, which needs the values behind it for loss_std, "
            "loss_max and loss_min",
            1: "the horizon was averaged away" if loss.shape == (batch,) else "an axis is gone",
            2: "the axes are swapped" if loss.shape == (horizon, batch) else "the axes have other lengths",
        }.get(len(loss.shape), "the mean over the action dimension is missing")
        return f"compute_loss returns {shape_text(loss)}, expected {_axes(aux_shape)}: {why}"
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        return f"compute_loss returns {shape_text(loss)}: only a floating loss has a gradient"
    return None


def contract_problems(out: Any, aux_shape: tuple[int, ...], trainable: dict[str, Any]) -> list[str]:
    """What is wrong with the output of `value_and_grad(..., has_aux=True)`, in plain words.

    Args:
        out: The traced output.
        aux_shape: (batch, horizon), or (batch) of a loss without a value for each action step.
        trainable: The trainable parameters by path.
    """
    import jax.numpy as jnp

    problems: list[str] = []
    if not (isinstance(out, tuple) and len(out) == 2):
        return [f"value_and_grad returned {shape_text(out)}, not the pair ((loss, aux), grads)"]
    value, grads = out
    if not isinstance(value, tuple):
        return [f"the first result is the bare loss {shape_text(value)}, not (loss, aux): has_aux=True is missing"]
    if len(value) != 2:
        return [f"the first result is {shape_text(value)}, not the pair (loss, aux)"]
    loss, aux = value
    found = getattr(aux, "shape", None)
    if getattr(loss, "shape", None) != ():
        swapped = loss.shape == aux_shape and found == ()
        why = "the pair is swapped, aux comes second" if swapped else "it must be the mean over samples and steps"
        problems.append(f"[0][0], the loss, is {shape_text(loss)} and no scalar: {why}")
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        problems.append(f"[0][0], the loss, is {shape_text(loss)}: only a floating loss has a gradient")
    elif loss.dtype != jnp.float32:
        problems.append(f"[0][0], the loss, is {shape_text(loss)}: its mean should be taken in float32")
    if found != aux_shape:
        problems.append(
            f"[0][1], aux, is {shape_text(aux)}, expected {_axes(aux_shape)}: loss_std, loss_max and "
            "loss_min would be taken over something else"
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


def _untraceable(context: CheckContext, observed: ObservedRun, aux_shape: tuple[int, ...], error: Exception) -> Outcome:
    """Says whose fault it is that the gradient cannot be traced: the loss's own, or the step's around it."""
    lines = (user_line(error), one_line(error))
    if observed.raised:
        problem = f"compute_loss raises {one_line(observed.raised[0])}"
        return _broken(context, [problem], observed, by_user=True, lines=(user_line(observed.raised[0]),))
    of_loss = loss_problem(observed.returned[0], aux_shape) if observed.returned else None
    if of_loss is not None:
        return _broken(context, [of_loss], observed, by_user=True, lines=lines)
    return _broken(context, [_of_the_step(str(error), aux_shape) or one_line(error)], observed, lines=lines)


def _of_the_step(text: str, aux_shape: tuple[int, ...]) -> str | None:
    """What jax's message means for whoever wrote `loss_fn`."""
    no_pair = "loss_fn returns no pair (loss, aux), but has_aux=True expects one"
    if "iteration over a 0-d array" in text or "cannot unpack non-iterable" in text:
        return f"{no_pair}: aux is missing, the bare mean is returned"
    if "values to unpack" in text:
        return f"{no_pair}: it returns more or fewer values"
    if "Output was (" in text:
        return (
            "the pair (loss, aux) itself is differentiated, as if it were the loss: has_aux=True is missing in "
            "value_and_grad"
        )
    if f"Output had shape: {aux_shape}" in text:
        return (
            f"the first value of loss_fn has shape {list(aux_shape)}, that of aux: the pair is swapped, or the mean "
            "is missing"
        )
    if "only defined for scalar-output functions" in text:
        return "the loss is no scalar: jnp.mean over samples and steps is missing"
    if "requires real" in text and "but got" in text:
        got = text.split("but got", 1)[1].partition(".")[0].strip()
        return f"the loss is {got}: only a floating loss has a gradient"
    return None


def _broken(
    context: CheckContext,
    problems: list[str],
    observed: ObservedRun,
    *,
    by_user: bool = False,
    lines: tuple[str | None, ...] = (),
) -> Outcome:
    facts = context.run.facts
    where = definition(context.run.compute_loss) if by_user else None
    evidence = [*problems[1:10], *lines, f"compute_loss: {where}" if where else None]
    aux = f"float32[{','.join(map(str, _aux_shape(facts)))}]"
    return failed(
        problems[0],
        measured={"compute_loss": shape_text(observed.returned[0])} if observed.returned else {},
        expected={"compute_loss": aux} if by_user else {"loss": "float32[]", "aux": aux},
        evidence=tuple(line for line in evidence if line),
        hint=Hint(
            text=_LOSS_CONTRACT if by_user else _STEP_CONTRACT,
            commands=(command_line(facts, "check", "--only", "grad.*"),),
        ),
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
        "sample and action step, and the gradients exactly the trainable parameters, leaf by leaf. A mistake is told "
        "apart: aux missing, the pair swapped, has_aux forgotten, a loss that is no scalar or not floating, an aux of "
        "another shape; an error inside compute_loss is shown with your line.",
    ),
    grad_coverage.CHECK,
    grad_finite.CHECK,
)

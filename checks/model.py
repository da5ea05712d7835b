"""`config.model`: whether there is a model to look at."""

from __future__ import annotations

from checks.context import CheckContext
from checks.trace import abstract_state
from preflight.blame import definition, one_line, user_line
from preflight.checklist import Check, Hint, Outcome, failed, passed
from preflight.errors import PreflightError
from preflight.runs import command_line


def _model(context: CheckContext) -> Outcome:
    import jax

    run = context.run
    try:
        state = abstract_state(context)
    except PreflightError:
        raise  # says itself what to do
    except Exception as error:  # noqa: BLE001
        where = definition(run.create_model)
        evidence = (user_line(error), f"create_model: {where}" if where else None)
        return failed(
            f"the model and its optimizer state cannot be made: {one_line(error)}",
            evidence=tuple(line for line in evidence if line),
            hint=Hint(
                text="mend the line above, then look again",
                commands=(command_line(run.facts, "check", "--only", "config.model"),),
            ),
        )
    leaves = jax.tree.leaves(state.params)
    total = sum(leaf.size for leaf in leaves)
    return passed(
        f"{total:,} parameters in {len(leaves)} leaves, and their optimizer state",
        measured={"parameters": total, "leaves": len(leaves)},
    )


CHECK = Check(
    id="config.model",
    title="The model can be made",
    level="standard",
    severity="fail",
    timeout_s=180,
    run=_model,
    doc="Traces create_model and the optimizer's init at full size: shapes and dtypes without memory. What looks at "
    "parameters requires it, so that a model that cannot be made is told once, with your line and not ours.",
)

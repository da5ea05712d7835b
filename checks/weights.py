"""`config.weights`: whether the pretrained parameters fit the model, before gigabytes of them are read."""

from __future__ import annotations

from checks.context import CheckContext
from checks.trace import abstract_state
from preflight.checklist import Check, Hint, Outcome, failed, passed, skipped, warned

# Rows of PaliGemma's embedding: a model with as many was, or is to be, trained on its tokens.
_PALIGEMMA_VOCABULARY = 257_152


def _weights(context: CheckContext) -> Outcome:
    from preflight.models.fit import extra_report
    from preflight.training.state import pure

    settings = context.run.facts.settings
    fit = context.run.weights_fit(pure(abstract_state(context).params))
    if fit is None:
        return skipped("training starts from fresh parameters: no weights are named")
    measured = {
        "leaves_loaded": len(fit.fitting),
        "leaves_initialised": len(fit.missing),
        "leaves_left_over": len(fit.extra),
    }
    if fit.problems:
        more = f" and {len(fit.problems) - 1} more leaves" if len(fit.problems) > 1 else ""
        return failed(
            f"the checkpoint does not fit the model: {fit.problems[0]}{more}",
            measured=measured,
            evidence=fit.problems[:10],
            hint=Hint(text=fit.hint or "choose the checkpoint of a model like this one"),
        )
    summary = f"{len(fit.fitting)} leaves of the checkpoint fit by path and shape"
    if fit.missing:
        summary += f", {len(fit.missing)} LoRA leaves are initialised"
    if fit.extra:
        return warned(
            f"{summary}; {extra_report(fit)}",
            measured=measured,
            evidence=fit.extra[:10],
            hint=Hint(text="what is not loaded is lost to this run; is it the model that you mean?"),
        )
    if settings.get("data.tokenizer") == "builtin" and settings.get("model.vocab_size") == _PALIGEMMA_VOCABULARY:
        return warned(
            f"{summary}; prompts are written with the built-in tokenizer, whose ids are other words than PaliGemma's",
            measured=measured,
            hint=Hint(
                text="a checkpoint that openpi released was trained on PaliGemma's tokens: this run would have to "
                "learn its prompts anew. For a checkpoint that preflight trained, ignore this check with that reason"
            ),
        )
    return passed(summary, measured=measured)


CHECK = Check(
    id="config.weights",
    title="The pretrained parameters fit the model",
    level="standard",
    severity="fail",
    requires=("config.model",),
    failures=("F32",),
    timeout_s=60,
    run=_weights,
    doc="Compares the checkpoint's metadata with the traced model, leaf by leaf, without reading an array. A leaf that "
    "does not fit is named with both shapes and the setting that would make it fit; missing LoRA leaves are counted, "
    "they are initialised; leaves without a place in the model are named, they are not loaded.",
)

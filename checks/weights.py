"""`config.weights`: whether the pretrained parameters fit the model, before gigabytes of them are read."""

from __future__ import annotations

from pathlib import Path

from checks import units
from checks.context import CheckContext
from checks.trace import abstract_state, tree_bytes
from preflight.checklist import Check, Hint, Outcome, failed, passed, skipped, warned
from preflight.runs.protocol import Weights
from preflight.training.folder import nearest_existing

# Rows of PaliGemma's embedding: a model with as many was, or is to be, trained on its tokens.
_PALIGEMMA_VOCABULARY = 257_152


def _weights(context: CheckContext) -> Outcome:
    from preflight.models.fit import extra_report
    from preflight.training.state import pure

    settings = context.run.facts.settings
    weights = context.run.weights()
    if weights is not None and weights.path is None and weights.host is not None:
        return _to_be_fetched(context, weights)
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


def _to_be_fetched(context: CheckContext, weights: Weights) -> Outcome:
    """The run would fetch them at its start, between the first batch and the first step: can it?"""
    # Stored in float32, as openpi releases them, they take what the model's parameters do.
    size = tree_bytes(abstract_state(context).params)
    place = nearest_existing(weights.place or Path.home())
    free = context.probes.disk_free(place)
    measured = {"weights": weights.name, "size_gib": round(size / 2**30, 1), "free_gib": round(free / 2**30, 1)}
    what = f"{weights.name} is not on this machine: about {units.size(size)} would be fetched when the run starts"
    fetch = () if weights.fetch is None else (weights.fetch,)
    if why := context.probes.unreachable(str(weights.host), 443):
        return failed(
            f"{what}, and {weights.host} does not answer: {why}",
            measured=measured,
            hint=Hint(text="fetch them where there is a network, or name a checkpoint that is here", commands=fetch),
        )
    if size > free:
        return failed(
            f"{what}; {place} has {units.size(free)} free",
            measured=measured,
            hint=Hint(text="keep them elsewhere: export OPENPI_DATA_HOME=DIR"),
        )
    return warned(what, measured=measured, hint=Hint(text="fetch them before a GPU waits for them", commands=fetch))


CHECK = Check(
    id="config.weights",
    title="The pretrained parameters fit the model",
    level="standard",
    severity="fail",
    requires=("config.model",),
    failures=("F32", "F33"),
    timeout_s=60,
    run=_weights,
    doc="Where the weights would be fetched at the start: whether that machine answers within three seconds, and "
    "whether the disk has room. Else it compares the checkpoint's metadata with the traced model, by leaf, without "
    "reading an array. A leaf that does not fit is named with both shapes and the setting that would make it fit; "
    "missing LoRA leaves are counted, they are initialised; leaves without a place in the model are named, they are "
    "not loaded.",
)

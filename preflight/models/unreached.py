"""Parameters that openpi's checkpoints have and that the loss of pi0 and pi0.5 does not depend on."""

from __future__ import annotations

# openpi's own gradients say the same: tests/data/parity/golden.json, `grad_norm_by_path`.
UNREACHED = {
    "PaliGemma/llm/final_norm/scale": "the language model's output is not read: the actions are the action expert's",
    "PaliGemma/img/Transformer/encoderblock/MultiHeadDotProductAttention_0/key/bias": "it adds the same to all "
    "logits of a query, which the softmax takes out again; what arrives is rounding",
}

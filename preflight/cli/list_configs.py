"""`preflight list-configs`."""

from __future__ import annotations

import typer


def list_configs() -> None:
    """List the built-in configs."""
    from preflight.config.builtin import BUILTIN_CONFIGS, DEFAULT_CONFIG

    width = max(map(len, BUILTIN_CONFIGS))
    for name, config in BUILTIN_CONFIGS.items():
        model = config.model
        typer.echo(
            f"{name:{width}}  batch {config.batch_size}, {config.num_workers} workers, "
            f"{config.num_train_steps:,} steps, pi0 with {model.siglip_variant}, {model.paligemma_variant}, "
            f"{model.action_expert_variant}" + (" (default)" if name == DEFAULT_CONFIG else "")
        )

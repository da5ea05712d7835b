"""`preflight list-configs`."""

from __future__ import annotations

import typer

from preflight.cli.options import OpenpiOption, StackOption, one_of


def list_configs(stack: StackOption = "auto", openpi: OpenpiOption = None) -> None:
    """List the configs: openpi's, where it is installed, and the built-in ones."""
    from preflight.runs import STACKS
    from preflight.runs.openpi import install

    one_of("--stack", stack, STACKS)
    if openpi is not None:
        install.use_checkout(openpi)
    if stack == "openpi" or (stack == "auto" and install.is_installed()):
        _list_openpis()
    if stack != "openpi":
        _list_builtin()


def _list_openpis() -> None:
    from preflight.runs import load_run
    from preflight.runs.openpi.install import package_folder
    from preflight.runs.openpi.run import config_names

    names = config_names()
    typer.echo(f"openpi ({package_folder()}):")
    width = max(map(len, names), default=0)
    for name in names:
        facts = load_run(name, stack="openpi").facts
        model = " with ".join(
            str(facts.settings[key])
            for key in ("model.paligemma_variant", "model.action_expert_variant")
            if key in facts.settings
        )
        said = f"batch {facts.batch_size}, {facts.num_workers} workers, {facts.num_train_steps:,} steps, {model}"
        data = facts.settings.get("data.repo_id")
        typer.echo(f"  {name:{width}}  {said}, data {data if '/' in str(data) else 'none'}")


def _list_builtin() -> None:
    from preflight.config.builtin import BUILTIN_CONFIGS, DEFAULT_CONFIG

    typer.echo("native:")
    width = max(map(len, BUILTIN_CONFIGS))
    for name, config in BUILTIN_CONFIGS.items():
        model = config.model
        typer.echo(
            f"  {name:{width}}  batch {config.batch_size}, {config.num_workers} workers, "
            f"{config.num_train_steps:,} steps, pi0 with {model.siglip_variant}, {model.paligemma_variant}, "
            f"{model.action_expert_variant}" + (" (default)" if name == DEFAULT_CONFIG else "")
        )

"""The commands."""

from __future__ import annotations

import typer

from preflight.cli import (
    bench_loader,
    cache,
    check,
    demo_data,
    env,
    explain,
    list_checks,
    list_configs,
    norm_stats,
    report,
    train,
)

app = typer.Typer(
    help="Know whether a robot-policy training run will work before it spends GPU-hours.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from preflight import __version__

        typer.echo(f"preflight {__version__}")
        raise typer.Exit


app.command("check")(check.check)
app.command("bench-loader")(bench_loader.bench_loader)
app.command("train")(train.train)
app.command("list-configs")(list_configs.list_configs)
app.command("list-checks")(list_checks.list_checks)
app.command("explain")(explain.explain)
app.command("cache")(cache.cache)
app.command("norm-stats")(norm_stats.norm_stats)
app.command("report")(report.report)
app.command("demo-data")(demo_data.demo_data)
app.command("env")(env.env)

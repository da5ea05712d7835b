"""`python -m bench.static`: what can be known before the first step, as a user waits for it, against the budgets."""

from __future__ import annotations

from bench.processes import preflight_command, time_process

# (what, the command's words, exit codes, the budget)
_ROWS: tuple[tuple[str, tuple[str, ...], tuple[int, ...], str], ...] = (
    ("preflight --help", ("--help",), (0,), "0.3 s"),
    ("preflight list-checks", ("list-checks",), (0,), "0.3 s"),
    ("check --level quick", ("check", "--level", "quick"), (0,), "3 s"),
    (
        "full-size has_aux (3.24e9 parameters)",
        ("check", "pi0_lighter_cup_trossen", "--only", "grad.has-aux"),
        (0,),
        "8 s, 1500 MiB",
    ),
    (
        "full-size has_aux and step.contract",
        ("check", "pi0_lighter_cup_trossen", "--only", "grad.has-aux", "--only", "step.contract"),
        (0,),
        "8 s, 1500 MiB",
    ),
    (
        "full-size train step compiled for an H100",
        ("check", "pi0_lighter_cup_trossen", "--only", "memory.device", "--target", "h100-80gb"),
        (0,),
        "45 s",
    ),
)


def main() -> None:
    """Prints a table: median, minimum and maximum of five runs, peak RSS, budget."""
    print(f"{'':40} {'wall, median [min, max]':24}  {'peak RSS':>8}   budget")
    for name, words, codes, budget in _ROWS:
        print(f"{name:40} {time_process(preflight_command(*words), codes=codes)}   {budget}", flush=True)


if __name__ == "__main__":
    main()

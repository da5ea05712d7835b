"""`memory.device` with XLA's answers injected: every verdict, and what would make it fit. XLA itself: see
test_training_device_compile."""

import dataclasses

import pytest
from healthy import GIB, context, outcome_of, the_one_that_speaks

from checks import CHECKLIST
from checks.device import judged_device, step_roofline
from preflight.runs import load_run
from preflight.telemetry.devices import PresentGpu
from preflight.telemetry.targets import gpu, parse_target
from preflight.training.device_compile import CompilerError, StepMemory

FULL = "pi0_lighter_cup_trossen"
STATE, EMA = 36.2, 12.1  # GiB of the full model's parameters and optimizer, and of its average


def xla(temporaries_gib, arguments_gib=STATE, asked=None):
    """A compiler that answers with these figures, for any step and device."""

    def compile_(step, device):
        if asked is not None:
            asked.append(device)
        answer = temporaries_gib(step) if callable(temporaries_gib) else temporaries_gib
        arguments, temporaries = int(arguments_gib * GIB), int(answer * GIB)
        return StepMemory(
            arguments=arguments,
            outputs=arguments,
            aliases=arguments,
            temporaries=temporaries,
            compiler="jax 9.9 for a test",
            seconds=1.0,
            rss_mib=1.0,
        )

    return compile_


def broken(step, device):
    raise CompilerError("it is not installed", "pip install it")


def judged(target, compile_, *assignments, fraction=None, **probes):
    environ = {} if fraction is None else {"XLA_PYTHON_CLIENT_MEM_FRACTION": fraction}
    return context(
        run=load_run(FULL, assignments=assignments),
        target=None if target is None else parse_target(target),
        probes={"environ": environ, "compile": compile_, **probes},
    )


def test_a_step_that_fits_passes_with_its_figures():
    outcome = outcome_of("memory.device", judged("h100-80gb", xla(18.8)))
    assert outcome.status == "pass"
    assert outcome.summary == (
        "NVIDIA H100 SXM 80 GB: the step takes 55.0 GiB of 59.7 GiB (state 36.2 GiB, temporaries 18.8 GiB), says "
        "jax 9.9 for a test"
    )
    assert outcome.measured["xla"]["temporaries_gib"] == 18.8
    assert [line.split()[0] for line in outcome.evidence[:6]] == [
        "parameters", "optimizer", "ema", "gradients", "batch", "arguments"
    ]  # fmt: skip


def test_a_larger_share_is_the_first_remedy_and_trips_this_check_alone():
    checked = judged("h100-80gb", xla(25))
    outcome = outcome_of("memory.device", checked)
    assert outcome.status == "fail"
    assert outcome.hint.text == "it fits with 95% of the GPU's memory for jax"
    assert outcome.hint.commands == (
        "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 preflight check pi0_lighter_cup_trossen --target h100-80gb",
    )
    assert outcome_of("memory.device", judged("h100-80gb", xla(25), fraction="0.95")).status == "pass"


def test_the_batch_that_fits_lies_on_the_line_from_the_state():
    outcome = outcome_of("memory.device", judged("h100-80gb", xla(42.37), "batch_size=64", fraction="0.95"))
    assert outcome.status == "fail"
    # 48.3 GiB are state and gradients, 78.6 the whole step, and 75.7 may be taken: 64 * 27.4 / 30.3.
    assert outcome.hint.text == "it fits with a batch of 57 (at most 75.3 GiB)"
    assert outcome.hint.commands == ("preflight check pi0_lighter_cup_trossen --set batch_size=57 --target h100-80gb",)


def test_that_line_is_above_what_xla_says_of_smaller_batches():
    """Temporaries in GiB of pi0's step for an H100, jax 0.10.2, by batch; 12.06 of them are gradients."""
    found = {1: 12.19, 8: 12.209, 16: 13.824, 32: 18.836, 64: 27.373}
    for whole, smaller in [(64, 32), (64, 16), (64, 8), (32, 16), (32, 8), (16, 8)]:
        assert 12.063 + (found[whole] - 12.063) * smaller / whole > found[smaller]


def test_without_its_average_the_step_is_compiled_anew():
    answers = iter([(30.0, STATE + EMA), (29.0, STATE)])

    def compile_(step, device):
        temporaries, arguments = next(answers)
        return xla(temporaries, arguments)(step, device)

    outcome = outcome_of("memory.device", judged("h100-80gb", compile_, "ema_decay=0.99", fraction="0.95"))
    assert outcome.status == "fail"
    assert outcome.hint.text.startswith("it fits with no moving average (65.2 GiB)")
    assert outcome.hint.commands[0] == (
        "preflight check pi0_lighter_cup_trossen --set ema_decay=none --target h100-80gb"
    )


def test_lora_and_other_gpus_are_named_where_the_state_is_too_much():
    asked = []
    outcome = outcome_of("memory.device", judged("a100-40gb", xla(14, 12.4, asked)))
    assert outcome.status == "fail"
    assert outcome.summary == (
        "NVIDIA A100 SXM 40 GB: parameters, optimizer, EMA, gradients and batch alone take 48.3 GiB, of 30.0 GiB"
    )
    # The step itself is not compiled; its LoRA variant is, and the step over two GPUs.
    assert asked == [gpu("a100-40gb"), gpu("a100-40gb")]
    assert outcome.hint.text == (
        "it fits with LoRA (26.4 GiB); or with 2 of them that share the state (fsdp_devices=2: 26.4 GiB each); or with "
        "a GPU whose memory holds the state (h100-80gb, a100-80gb, rtx-pro-6000, h200, b200)"
    )
    assert outcome.hint.commands[0] == (
        "preflight check pi0_lighter_cup_trossen --set model.paligemma_variant=gemma_2b_lora "
        "--set model.action_expert_variant=gemma_300m_lora --set freeze=none --target a100-40gb"
    )
    assert outcome.hint.commands[1] == (
        "preflight check pi0_lighter_cup_trossen --set fsdp_devices=2 --target 2xa100-40gb"
    )


def over_devices(each_gib):
    """A compiler that answers with what each device of so many takes, state and all; and whom it was asked for."""
    asked = []

    def compile_(step, device):
        asked.append(step.mesh)
        return xla(each_gib[step.num_devices], 0.0)(step, device)

    return compile_, asked


def test_a_state_that_the_gpus_share_is_the_first_remedy_of_several_gpus():
    compile_, asked = over_devices({1: 90, 4: 30})
    outcome = outcome_of("memory.device", judged("4xh100-80gb", compile_, "ema_decay=0.99"))
    assert outcome.status == "fail"
    assert asked == [{}, {"batch": 2, "fsdp": 2}]  # the run, and its state over two of the four
    assert outcome.hint.text.startswith("it fits with the state shared by 2 GPUs (fsdp_devices=2: 30.0 GiB each)")
    assert outcome.hint.commands[0] == (
        "preflight check pi0_lighter_cup_trossen --set ema_decay=0.99 --set fsdp_devices=2 --target 4xh100-80gb"
    )


def test_where_two_shards_are_too_few_all_gpus_share_the_state():
    answers = iter([90.0, 80.0, 35.0, 90.0])
    meshes = []

    def compile_(step, device):
        meshes.append(step.mesh)
        return xla(next(answers), 0.0)(step, device)

    outcome = outcome_of("memory.device", judged("8xh100-80gb", compile_, "ema_decay=0.99"))
    assert meshes[1:3] == [{"batch": 4, "fsdp": 2}, {"batch": 1, "fsdp": 8}]
    assert "the state shared by 8 GPUs (fsdp_devices=8: 35.0 GiB each)" in outcome.hint.text


def test_a_run_whose_gpus_share_the_state_is_compiled_for_all_of_them():
    compile_, asked = over_devices({4: 12})
    outcome = outcome_of("memory.device", judged("4xh100-80gb", compile_, "fsdp_devices=4"))
    assert outcome.status == "pass"
    assert "takes 12.0 GiB of 59.7 GiB (its share of the state 9.1 GiB, temporaries 12.0 GiB)" in outcome.summary
    assert asked == [{"batch": 1, "fsdp": 4}]
    # 36.2 GiB in four parts; what is below 4 MiB or a vector is whole on each.
    assert outcome.measured["parameters_gib"] + outcome.measured["optimizer_gib"] == pytest.approx(STATE / 4, rel=0.01)
    assert outcome.measured["gradients_gib"] == pytest.approx(12.06 / 4, rel=0.01)
    # An eighth of pi0's state fits a 24 GB card's share, half of it does not.
    assert outcome_of("memory.device", judged("8xl4", over_devices({8: 10})[0], "fsdp_devices=8")).status == "pass"
    too_large = outcome_of("memory.device", judged("8xl4", broken, "fsdp_devices=2"))
    assert too_large.status == "fail"
    assert too_large.summary.startswith(
        "8 x NVIDIA L4: parameters, optimizer, EMA, gradients and batch alone take 24.1"
    )


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("h100-80gb", "which do not divide NVIDIA H100 SXM 80 GB"),
        ("6xh100-80gb", "which do not divide 6 x NVIDIA H100 SXM 80 GB"),
        (None, "none of which is here, and --target does not name as many"),
    ],
)
def test_a_state_over_gpus_that_are_not_there_is_not_judged(target, why):
    checked = judged(target, broken, "fsdp_devices=4")
    (check,) = [check for check in CHECKLIST if check.id == "memory.device"]
    outcome = check.run(checked)
    assert outcome.status == "skip"
    assert outcome.summary == (
        f"not judged: the state is shared by 4 GPUs (fsdp_devices), {why}; undivided it takes 36.2 GiB, and gradients "
        "12.1 GiB"
    )
    assert (outcome.hint is None) == (target is not None)


def test_nothing_helps_and_that_is_said():
    outcome = outcome_of("memory.device", judged("2xl4", xla(300, 12.4), "batch_size=2"))
    assert outcome.hint.commands[-1].endswith("--set batch_size=2 --target 2xh100-80gb")
    assert "LoRA" not in outcome.hint.text


def test_a_tight_fit_warns():
    outcome = outcome_of("memory.device", judged("h100-80gb", xla(22.5)))
    assert outcome.status == "warn"
    assert "so full a pool can fail on fragmentation" in outcome.summary
    assert outcome.hint.text == "it fits with 95% of the GPU's memory for jax"
    assert outcome_of("memory.device", judged("h100-80gb", xla(22.5), fraction="0.95")).status == "pass"


def test_a_tight_fit_in_the_largest_share_asks_for_a_smaller_batch():
    outcome = outcome_of("memory.device", judged("h100-80gb", xla(38.5), fraction="0.95"))
    assert outcome.status == "warn"
    # 48.3 GiB are state and gradients, 74.7 the whole step, and 71.9 are not tight: 32 * 23.6 / 26.5.
    assert outcome.hint.text == "it fits with a batch of 28 (at most 71.4 GiB)"


def test_a_gpu_is_no_remedy_for_itself():
    tight = judged("h100-80gb", xla(38.5), "batch_size=1", fraction="0.95")
    outcome = outcome_of("memory.device", tight)
    assert outcome.status == "warn"
    assert outcome.hint.commands[-1].endswith("--target rtx-pro-6000")


@pytest.mark.parametrize(("temporaries", "status"), [(18.0, "pass"), (33.5, "skip")])
def test_without_the_gpus_compiler_the_cpus_is_an_upper_bound_and_no_verdict_against_the_run(temporaries, status):
    def compile_(step, device):
        return xla(temporaries)(step, device) if device == "cpu" else broken(step, device)

    outcome = outcome_of("memory.device", judged("h100-80gb", compile_))
    assert outcome.status == status
    assert "upper bound" in outcome.summary
    assert "it is not installed" in outcome.summary
    assert outcome.hint.commands == ("pip install it",)


def test_without_any_compiler_nothing_is_judged_but_a_state_that_is_too_much():
    outcome = outcome_of("memory.device", judged("h100-80gb", broken))
    assert outcome.status == "skip"
    assert outcome.summary.startswith("not judged: the state takes 48.3 GiB of 59.7 GiB")
    assert outcome_of("memory.device", judged("l4", broken)).status == "fail"


def present(*names):
    return lambda: [
        PresentGpu(index=i, name=name, total_bytes=80 * GIB, free_bytes=80 * GIB, driver="570")
        for i, name in enumerate(names)
    ]


def test_a_gpu_that_is_here_is_asked_itself_and_shares_the_batch():
    asked = []
    checked = judged(None, xla(8, asked=asked), gpus=present("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"))
    outcome = outcome_of("memory.device", checked)
    assert outcome.status == "pass"
    assert outcome.summary.startswith("2 x NVIDIA H100 80GB HBM3: ")
    assert asked == ["cuda"]
    assert outcome.measured["batch_gib"] == pytest.approx(0.01, abs=0.01)
    # Twice the speed, half of the work each.
    one = step_roofline(judged("h100-80gb", xla(8)))
    assert step_roofline(checked).demand_samples_per_s[1] == pytest.approx(2 * one.demand_samples_per_s[1], rel=0.02)


def test_an_unknown_gpu_has_no_speed():
    checked = judged(None, xla(8), gpus=present("NVIDIA H100 PCIe"))
    assert judged_device(checked).spec is None
    assert outcome_of("memory.device", checked).status == "pass"
    outcome = outcome_of("step.roofline", checked)
    assert (outcome.status, outcome.summary) == ("skip", "the speed of NVIDIA H100 PCIe is not known")


def test_a_small_run_on_a_gpu_trips_nothing_and_on_none_this_alone():
    checked = context(target=parse_target("l4"), probes={"compile": xla(0.1, 0.01)})
    assert outcome_of("memory.device", checked).status == "pass"
    checked = dataclasses.replace(
        context(target=parse_target("l4"), probes={"compile": xla(30, 0.01)}), _made={}, _locks={}
    )
    assert the_one_that_speaks(checked, "memory.device").status == "fail"


def test_the_roofline_says_what_the_loader_must_deliver():
    outcome = outcome_of("step.roofline", judged("h100-80gb", broken))
    assert outcome.status == "pass"
    assert outcome.summary == (
        "the loader must deliver 23 samples/s for a step at 35% of the peak of NVIDIA H100 SXM 80 GB, 66 at 100% (478 "
        "TFLOP a step, no less than 0.483 s); 20,000 steps take 2.69 to 7.67 h"
    )
    assert outcome.measured["demand_samples_per_s"] == pytest.approx([23.2, 66.2], abs=0.2)
    assert outcome_of("step.roofline", judged(None, broken)).status == "skip"


def test_a_batch_so_small_that_memory_sets_the_pace_trips_the_roofline():
    outcome = outcome_of("step.roofline", judged("h100-80gb", broken, "batch_size=1"))
    assert outcome.status == "warn"
    assert outcome.summary.startswith("a step of 1 waits for the device memory: its state and gradients take ")
    (command,) = outcome.hint.commands
    batch = int(command.split("batch_size=")[1].split()[0])
    assert outcome_of("step.roofline", judged("h100-80gb", broken, f"batch_size={batch}")).status == "pass"


def test_a_toy_whose_step_is_all_launches_has_no_floor():
    outcome = outcome_of("step.roofline", context(target=parse_target("h100-80gb")))
    assert outcome.status == "skip"
    assert outcome.summary.endswith("ms on NVIDIA H100 SXM 80 GB: launching its kernels takes longer")

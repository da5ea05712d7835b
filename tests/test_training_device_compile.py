"""XLA's own compile in a process of its own: for the CPU, for a GPU that is not here, and all the ways it can fail."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import pytest
from toy_run import toy_run

from preflight.telemetry.targets import gpu
from preflight.training.compile_child import main, sizes_of_allocations
from preflight.training.device_compile import CompilerError, compile_step_for, target_config
from preflight.training.lowered import LoweredStep, lower_step

MIB = 2**20


def step_of(function):
    """A step on 4 MiB of state and a batch of 1 MiB."""
    arguments = (
        jax.ShapeDtypeStruct((2,), jnp.uint32),
        [jax.ShapeDtypeStruct((1024, 1024), jnp.float32)],
        [jax.ShapeDtypeStruct((256, 1024), jnp.float32)],
    )
    jitted = jax.jit(function)
    return LoweredStep(jitted.trace(*arguments), jitted, arguments)


def test_a_step_that_gpus_share_is_compiled_for_all_of_them():
    """The toy's two layers of 4 MiB, over two devices of each kind: half of the state on each."""
    run = toy_run("ema_decay=0.9")
    for device in ("cpu", gpu("h100-80gb")):
        whole = compile_step_for(lower_step(run, 8), device)
        shared = compile_step_for(lower_step(run, 16, fsdp_devices=2, num_devices=2), device)
        layers = 4 * 8 * MIB  # parameters, average and the two moments
        assert whole.aliases - shared.aliases == pytest.approx(layers / 2, rel=0.01)
        assert shared.compiler == whole.compiler


def test_a_step_for_more_gpus_than_are_here_is_no_verdict(tmp_path):
    step = lower_step(toy_run("ema_decay=0.9"), 16, fsdp_devices=2, num_devices=2)
    (tmp_path / "step").write_bytes(step.serialize("cpu"))
    (tmp_path / "mesh").write_text(json.dumps({"batch": 32, "fsdp": 2}))
    main(tmp_path)
    found = len(jax.devices())
    assert json.loads((tmp_path / "answer").read_text()) == {
        "unknown": f"jax finds {found} devices to compile for, and the step is for 64"
    }


def update(seed, state, batch):
    (w,), (x,) = state, batch
    return [w + 1e-3 * (x.T @ jnp.tanh(x @ w))], {"loss": jnp.sum(x)}


@pytest.fixture(scope="module")
def step():
    jax.devices()  # reads XLA_FLAGS once, before a test puts nonsense there for the child
    return step_of(update)


@pytest.mark.parametrize("device", ["cpu", "h100-80gb", "rtx4090", "rtx5090"])
def test_xla_says_where_the_buffers_lie(step, device):
    memory = compile_step_for(step, device if device == "cpu" else gpu(device))
    assert memory.arguments == pytest.approx(5 * MIB, abs=64)
    assert memory.aliases == 4 * MIB  # the state is donated and comes back in its place
    assert memory.outputs == pytest.approx(4 * MIB, abs=64)
    assert MIB <= memory.temporaries < 48 * MIB  # with cuBLAS's workspace, 32 MiB on Hopper and Blackwell
    assert memory.peak == memory.arguments + memory.outputs - memory.aliases + memory.temporaries
    assert memory.compiler == f"jax {jax.__version__} for {'cpu' if device == 'cpu' else gpu(device).title}"
    assert memory.rss_mib > 100


def test_the_description_is_made_of_the_figures_of_the_table():
    text = target_config(gpu("a100-40gb"))
    assert "core_count: 108" in text
    assert "memory_bandwidth: 1555000000000" in text
    assert f"device_memory_size: {40_960 * MIB}" in text
    assert "cuda_compute_capability { major: 8 minor: 0 }" in text
    assert 'device_description_str: "NVIDIA A100 SXM 40 GB"' in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_sms": None, "boost_clock_mhz": None},
            "the description of NVIDIA L4 lacks what XLA compiles for: num_sms, boost_clock_mhz",
        ),
        ({"compute_capability": "12.1"}, "NVIDIA L4 has compute capability 12.1; preflight can describe 7.5, 8.0"),
    ],
)
def test_a_description_that_says_too_little_is_not_compiled_for(step, changes, message):
    with pytest.raises(CompilerError) as caught:
        compile_step_for(step, dataclasses.replace(gpu("l4"), **changes))
    assert caught.value.message.startswith(message)


def test_a_compiler_that_crashes_is_no_verdict(step, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_no_such_flag=1")
    with pytest.raises(CompilerError, match=r"XLA's compile ended with (signal|exit code) \d+: .*xla_no_such_flag"):
        compile_step_for(step, "cpu")


def test_a_compiler_that_takes_too_long_is_ended(step):
    with pytest.raises(CompilerError, match=r"XLA did not finish within 0 s"):
        compile_step_for(step, "cpu", timeout_s=0.05)


def test_without_the_plugin_the_command_that_brings_it_is_named(step, monkeypatch, tmp_path):
    (tmp_path / "jax_plugins").mkdir()
    (tmp_path / "jax_plugins" / "__init__.py").touch()  # hides the installed plugins
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(CompilerError, match=r"\(JAX's CUDA plugin\) is not installed") as caught:
        compile_step_for(step, gpu("h100-80gb"))
    assert caught.value.hint == "pip install 'robot-preflight[aot]'"


def test_a_plugin_of_another_version_is_not_asked(step, monkeypatch, tmp_path):
    metadata = tmp_path / "jax_cuda12_plugin-0.4.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: jax-cuda12-plugin\nVersion: 0.4.1\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(CompilerError, match=f"plugin is 0.4.1, jax is {jax.__version__}: they must be of one version"):
        compile_step_for(step, gpu("h100-80gb"))


def test_a_gpu_that_is_not_here_cannot_be_asked_for_itself(step):
    with pytest.raises(CompilerError, match="jax finds no GPU to compile for") as caught:
        compile_step_for(step, "cuda")
    assert caught.value.hint == "pip install 'robot-preflight[cuda12]'"


def test_nothing_stays_behind(step, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    compile_step_for(step, "cpu")
    assert os.listdir(tmp_path) == []


def test_its_figures_are_plain(step):
    from preflight.training.device_compile import summarize

    assert json.dumps(summarize(compile_step_for(step, "cpu")))


def test_xlas_own_record_says_the_same_where_jax_has_no_analysis():
    """As XLA of jax 0.5.3 writes it under --xla_dump_to, values left out."""
    record = """BufferAssignment:
allocation 0: size 4194304, parameter 0, shape |f32[1024,1024]| at ShapeIndex {}, maybe-live-out:
 value: <14 Arg_0.1.0 @0> (size=4194304,offset=0): f32[1024,1024]{1,0}
allocation 1: size 1048576, parameter 1, shape |f32[256,1024]| at ShapeIndex {}:
allocation 2: size 16, output shape is |(f32[1024,1024], f32[])|, maybe-live-out:
allocation 3: size 4, thread-local:
allocation 5: size 4, maybe-live-out:
allocation 7: size 7340176, preallocated-temp:

Total bytes used: 12583088 (12.00MiB)
"""
    assert sizes_of_allocations(record) == {
        "arguments": 5 * MIB,
        "outputs": 4 * MIB + 20,
        "aliases": 4 * MIB,
        "temporaries": 7_340_176,
    }

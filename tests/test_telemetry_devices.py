import getpass
import json
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from preflight.errors import UsageError
from preflight.telemetry.devices import GPUS, PresentGpu, gpu, present_gpus
from preflight.telemetry.environment import environment

MIB = 1 << 20


class NvmlError(Exception):
    pass


def nvml(*, driver_loaded: bool = True, shutdowns: list[int] | None = None) -> SimpleNamespace:
    """A driver with one H100 and one L4, through the functions that NVML's Python binding has."""

    def init() -> None:
        if not driver_loaded:
            raise NvmlError("Driver Not Loaded")

    names = [b"NVIDIA H100 80GB HBM3", "NVIDIA L4"]
    memory = [SimpleNamespace(total=81_559 * MIB, free=81_000 * MIB), SimpleNamespace(total=23_034 * MIB, free=0)]
    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=init,
        nvmlShutdown=lambda: shutdowns.append(1) if shutdowns is not None else None,
        nvmlSystemGetDriverVersion=lambda: "570.172.08",
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: names[handle],
        nvmlDeviceGetMemoryInfo=lambda handle: memory[handle],
    )


def test_every_gpu_names_its_source_and_lies_in_a_sane_range() -> None:
    for name, spec in GPUS.items():
        assert name == spec.name
        assert spec.source.startswith("NVIDIA ")
        assert 20 < spec.memory_bytes / 1e9 < 200
        assert 50e12 < spec.bf16_flops_per_s < 2500e12
        assert 0.2e12 < spec.bandwidth_bytes_per_s <= 8e12


def test_h100_is_dense_bf16() -> None:
    spec = gpu("h100-80gb")
    assert (spec.memory_bytes, spec.bf16_flops_per_s, spec.bandwidth_bytes_per_s) == (81_559 * MIB, 989.4e12, 3.35e12)


@pytest.mark.parametrize("written", ["RTX4090", "rtx 4090", "rtx_4090", "rtx-4090"])
def test_spelling_of_a_name_does_not_matter(written: str) -> None:
    assert gpu(written) is GPUS["rtx4090"]


def test_unknown_gpu_lists_all_and_the_near_one() -> None:
    with pytest.raises(UsageError) as caught:
        gpu("rtx4080")
    assert caught.value.message == (
        "Unknown GPU 'rtx4080'; known are a100-40gb, a100-80gb, b200, h100-80gb, h200, l4, l40s, rtx3090, rtx4090, "
        "rtx5090."
    )
    assert caught.value.hint == "Did you mean rtx4090?"


def test_a_name_that_leaves_the_memory_open_is_not_guessed() -> None:
    with pytest.raises(UsageError) as caught:
        gpu("a100")
    assert caught.value.hint == "Did you mean a100-80gb or a100-40gb?"


def test_nothing_near_suggests_nothing() -> None:
    with pytest.raises(UsageError) as caught:
        gpu("tpu-v5p")
    assert caught.value.hint is None


def test_present_gpus_reads_nvml_and_shuts_it_down() -> None:
    shutdowns: list[int] = []
    h100, l4 = present_gpus(nvml(shutdowns=shutdowns))
    assert h100 == PresentGpu(
        index=0,
        name="NVIDIA H100 80GB HBM3",
        total_bytes=81_559 * MIB,
        free_bytes=81_000 * MIB,
        driver="570.172.08",
    )
    assert (l4.index, l4.name, l4.free_bytes) == (1, "NVIDIA L4", 0)
    assert shutdowns == [1]


def test_without_a_driver_there_are_no_gpus() -> None:
    assert present_gpus(nvml(driver_loaded=False)) == []


def test_environment_is_plain_and_names_nobody() -> None:
    found = environment(nvml=nvml())
    text = json.dumps(found)
    assert found["gpus"][0] == {
        "name": "NVIDIA H100 80GB HBM3", "total_bytes": 81_559 * MIB, "driver": "570.172.08"
    }  # fmt: skip
    assert found["cpus_usable"] > 0
    assert found["ram_bytes"] > 0
    assert found["packages"]["numpy"] is not None
    words = {word.strip('",:') for word in text.split()}
    assert socket.gethostname() not in words
    assert getpass.getuser() not in words


def test_environment_imports_nothing_heavy() -> None:
    program = (
        "import sys; from preflight.telemetry.environment import environment; environment();"
        "print([name for name in ('jax', 'flax', 'torch', 'lerobot', 'numpy', 'av', 'wandb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

import getpass
import json
import socket
import subprocess
import sys
from types import SimpleNamespace

from preflight.telemetry.devices import PresentGpu, present_gpus
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

"""What each GPU does at this moment, through NVML."""

from __future__ import annotations

import contextlib
from typing import Any

# nvml.h, nvmlClocksEventReasons. Not each of them is a fault: an idle GPU lowers its clocks too, and so may a setting.
_THROTTLE_REASONS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
_TEMPERATURE_GPU = 0  # nvml.h, NVML_TEMPERATURE_GPU: the sensor on the die


class GpuReadings:
    """Reads all GPUs of this machine; ``CUDA_VISIBLE_DEVICES`` is not applied.

    NVML stays initialised from construction to `close`: without persistence mode, that alone takes seconds.

    Args:
        nvml: Stands in for the ``pynvml`` module.
    """

    def __init__(self, nvml: Any = None) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        if nvml is None:
            try:
                import pynvml
            except ImportError:
                return
            nvml = pynvml
        try:
            nvml.nvmlInit()
        except nvml.NVMLError:
            return  # no driver
        self._nvml = nvml
        count = self._ask("nvmlDeviceGetCount") or 0
        self._handles = [self._ask("nvmlDeviceGetHandleByIndex", index) for index in range(count)]

    def read(self) -> list[dict[str, Any]]:
        """One dict of plain values a GPU; empty where there is no NVIDIA driver.

        Returns:
            ``index``, ``utilization_percent`` (share of time in which a kernel ran), ``memory_used_bytes``,
            ``memory_total_bytes``, ``power_w``, ``temperature_c`` and ``throttle_reasons`` (names; the bit in
            hexadecimal where NVML has a newer one). What a GPU does not tell is None, whatever the others say.
        """
        return [self._read_one(index, handle) for index, handle in enumerate(self._handles)]

    def close(self) -> None:
        """Lets go of NVML; nothing can be read afterwards."""
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
        self._nvml, self._handles = None, []

    def _read_one(self, index: int, handle: Any) -> dict[str, Any]:
        # A GPU that has no handle, for example one that fell off the bus, is listed with nothing known of it.
        utilization = memory = power_mw = temperature = reasons = None
        if handle is not None:
            utilization = self._ask("nvmlDeviceGetUtilizationRates", handle)
            memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
            power_mw = self._ask("nvmlDeviceGetPowerUsage", handle)
            temperature = self._ask("nvmlDeviceGetTemperature", handle, _TEMPERATURE_GPU)
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        return {
            "index": index,
            "utilization_percent": None if utilization is None else int(utilization.gpu),
            "memory_used_bytes": None if memory is None else int(memory.used),
            "memory_total_bytes": None if memory is None else int(memory.total),
            "power_w": None if power_mw is None else power_mw / 1000,
            "temperature_c": None if temperature is None else int(temperature),
            "throttle_reasons": None if reasons is None else _reason_names(int(reasons)),
        }

    def _ask(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, function)(*arguments)
        except (self._nvml.NVMLError, AttributeError):  # AttributeError: a binding that lacks the function
            return None


def _reason_names(mask: int) -> list[str]:
    bits = [1 << place for place in range(mask.bit_length()) if mask >> place & 1]
    return [_THROTTLE_REASONS.get(bit, hex(bit)) for bit in bits]

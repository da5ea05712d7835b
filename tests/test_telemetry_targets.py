import math

import pytest

from preflight.errors import UsageError
from preflight.telemetry.targets import GPUS, gpu, known_as, parse_target
from preflight.training.device_compile import can_target

MIB = 1 << 20
OWN = {
    "title": "Jetson Thor",
    "memory_mib": 125_772,
    "bf16_tflops": 517.5,
    "bandwidth_gb_per_s": 273,
    "source": "sheet",
}


def write(path, table):
    lines = [f"{key} = {value!r}".replace("'", '"') for key, value in table.items()]
    path.write_text("\n".join(lines))
    return str(path)


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
        "Unknown GPU 'rtx4080'; known are a100-40gb, a100-80gb, a6000, b200, h100-80gb, h200, l4, l40s, rtx-6000-ada, "
        "rtx-pro-6000, rtx3090, rtx4090, rtx5090."
    )
    assert caught.value.hint == "Did you mean rtx4090?"


def test_a_name_that_leaves_the_memory_open_is_not_guessed() -> None:
    with pytest.raises(UsageError) as caught:
        gpu("a100")
    assert caught.value.hint == "Did you mean a100-80gb or a100-40gb?"


def test_nothing_near_suggests_nothing() -> None:
    with pytest.raises(UsageError) as caught:
        gpu("tpu-v5p")
    assert caught.value.hint == "another GPU: --target FILE.toml, see `preflight explain memory.device`"


def test_every_known_gpu_can_be_compiled_for_and_names_where_that_comes_from() -> None:
    for spec in GPUS.values():
        assert can_target(spec), spec.name
        assert spec.compile_source
        assert spec.nvml_names


def test_what_nvml_calls_a_gpu_is_found_again_and_another_variant_is_not_guessed() -> None:
    assert known_as("NVIDIA H100 80GB HBM3") is GPUS["h100-80gb"]
    assert known_as("NVIDIA H100 PCIe") is None
    assert known_as("NVIDIA RTX PRO 6000 Blackwell Server Edition") is None
    names = [name for spec in GPUS.values() for name in spec.nvml_names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [("h100-80gb", 1, "h100-80gb"), ("8xh100-80gb", 8, "h100-80gb"), ("2 x RTX 4090", 2, "rtx4090")],
)
def test_a_target_is_a_gpu_or_several(text, count, name) -> None:
    target = parse_target(text)
    assert (target.count, target.spec.name, target.text) == (count, name, text)


def test_several_are_said(tmp_path) -> None:
    assert str(parse_target("8xh200")) == "8 x NVIDIA H200 SXM 141 GB"
    assert str(parse_target("l4")) == "NVIDIA L4"


def test_a_file_describes_a_gpu_of_ones_own(tmp_path) -> None:
    path = write(tmp_path / "thor.toml", OWN)
    target = parse_target(f"2x{path}")
    assert (target.spec.name, target.spec.title, target.count) == ("thor", "Jetson Thor", 2)
    assert target.spec.memory_bytes == 125_772 * MIB
    assert not can_target(target.spec)
    full = {"compute_capability": "9.0", "num_sms": 20, "l2_cache_kib": 32_768, "boost_clock_mhz": 1575}
    assert can_target(parse_target(write(tmp_path / "full.toml", OWN | full)).spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_mb": 3}, "unknown key 'memory_mb'; did you mean 'memory_mib'?"),
        ({"memory_mib": -1}, "memory_mib must be a number above 0, not -1"),
        ({"memory_mib": 1.5}, "memory_mib must be a whole number, not 1.5"),
        ({"bf16_tflops": math.inf}, "bf16_tflops must be finite"),
        ({"bf16_tflops": "fast"}, "bf16_tflops must be a number above 0, not 'fast'"),
        ({"title": 3}, "title must be text, not 3"),
        ({"compute_capability": "sm_90"}, "compute_capability 'sm_90' is not of the form \"9.0\""),
        ({"nvml_names": "one"}, "nvml_names must be a list of texts, not 'one'"),
    ],
)
def test_a_wrong_description_names_file_key_and_value(tmp_path, changes, message) -> None:
    path = write(tmp_path / "own.toml", OWN | changes)
    with pytest.raises(UsageError) as caught:
        parse_target(path)
    assert caught.value.message == f"{path}: {message}"


@pytest.mark.parametrize("key", ["title", "memory_mib", "bf16_tflops", "bandwidth_gb_per_s", "source"])
def test_a_description_that_lacks_a_figure_is_refused(tmp_path, key) -> None:
    path = write(tmp_path / "own.toml", {name: value for name, value in OWN.items() if name != key})
    with pytest.raises(UsageError, match=f"{key} is missing"):
        parse_target(path)


def test_files_that_are_none(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml cannot be read: No such file"):
        parse_target(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("title = \nsource = 1")
    with pytest.raises(UsageError, match=r"bad\.toml is not valid TOML: .*line 1"):
        parse_target(str(tmp_path / "bad.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not valid TOML"):
        parse_target(str(tmp_path / "binary.toml"))


@pytest.mark.parametrize("text", ["", "0xh100-80gb", "8x", "x"])
def test_nothing_and_no_gpu_at_all_are_refused(text) -> None:
    with pytest.raises(UsageError):
        parse_target(text)

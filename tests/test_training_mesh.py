"""The mesh: openpi's rule, what is refused, and that a divided run computes what an undivided one does."""

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from toy_run import batch_of, toy_run

from preflight.config.load import load_config
from preflight.errors import UsageError
from preflight.training import checkpoints
from preflight.training.mesh import by_sample, local_rows, make_mesh, put_batch, require_divisible, shard
from preflight.training.state import abstract_state, first_state, state_sharding
from preflight.training.step import compile_step

TESTS = Path(__file__).parent
TWO = ("batch", "fsdp")


def array(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    ("leaf", "spec"),
    [
        (array(1024, 1024), PartitionSpec(None, "fsdp")),  # 4 MiB; of equal axes the last
        (array(1025, 1023), PartitionSpec()),  # no axis divides
        (array(1024, 1023), PartitionSpec()),  # below 4 MiB
        (array(1024, 1024, dtype=jax.numpy.bfloat16), PartitionSpec()),  # 2 MiB
        (array(4, 4096, 512), PartitionSpec(None, "fsdp")),  # the largest
        (array(3, 257152, 2), PartitionSpec(None, "fsdp")),
        (array(2_097_152), PartitionSpec()),  # vectors are whole
        (array(), PartitionSpec()),
        (array(1026, 1025), PartitionSpec("fsdp")),
        (array(2, 1025, 1025), PartitionSpec("fsdp")),  # of few, but the only one that divides
    ],
)
def test_openpis_rule_says_what_is_sharded(leaf, spec):
    assert shard(leaf, make_mesh(2)).spec == spec
    assert shard(leaf, make_mesh(1)).spec == PartitionSpec()


def test_the_mesh_has_openpis_axes_and_all_devices():
    mesh = make_mesh(1)
    assert mesh.axis_names == TWO
    assert dict(mesh.shape) == {"batch": 2, "fsdp": 1}
    assert dict(make_mesh(2).shape) == {"batch": 1, "fsdp": 2}
    assert by_sample(mesh).spec == PartitionSpec(TWO)


@pytest.mark.parametrize(
    ("numbers", "message", "hint"),
    [
        ((8, 3, 4), "fsdp_devices 3 does not divide 4 devices", "--set fsdp_devices=2, or another of 1, 2, 4;"),
        ((8, 8, 4), "fsdp_devices 8 does not divide 4 devices", "--set fsdp_devices=4, or another of 1, 2, 4;"),
        ((6, 2, 4), "batch_size 6 does not divide over 4 devices", "--set batch_size=8,"),
        ((1, 1, 4), "batch_size 1 does not divide over 4 devices", "--set batch_size=4,"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(numbers, message, hint):
    with pytest.raises(UsageError) as caught:
        require_divisible(*numbers)
    assert caught.value.message == message
    assert caught.value.hint.startswith(hint)


def test_numbers_that_go_together_are_not():
    for numbers in ((8, 1, 4), (8, 2, 4), (8, 4, 4), (1, 1, 1), (2, 1, 1)):
        require_divisible(*numbers)
    with pytest.raises(UsageError, match="fsdp_devices 3 does not divide 2 devices"):
        make_mesh(3)
    with pytest.raises(UsageError, match="fsdp_devices must be at least 1, not 0"):
        load_config("pi0_lighter_cup_demo", ["fsdp_devices=0"])


def test_a_batch_lies_on_all_devices_by_its_samples():
    mesh, batch = make_mesh(2), {"state": np.arange(12, dtype=np.float32).reshape(4, 3)}
    placed = put_batch(batch, mesh)["state"]
    assert local_rows(4, mesh) == slice(0, 4)
    assert [shard.data.tolist() for shard in placed.addressable_shards] == [
        batch["state"][:2].tolist(),
        batch["state"][2:].tolist(),
    ]


def flown(fsdp_devices, count):
    """Three steps of the toy; the losses, the last state and what a device holds of it."""
    run = toy_run("lr_schedule.warmup_steps=1", "ema_decay=0.9")
    mesh = make_mesh(fsdp_devices, jax.devices()[:count])
    state = first_state(run, jax.random.key(0), state_sharding(run, mesh))
    step, losses = compile_step(run, mesh), []
    for number in range(3):
        state, metrics = step(jax.random.key(1), state, put_batch(batch_of(run, number), mesh))
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1
    return run, losses, state


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def whole():
    return flown(1, 1)


@pytest.fixture(scope="module")
def sharded():
    return flown(2, 2)


@pytest.mark.parametrize("fsdp_devices", [1, 2])
def test_two_devices_compute_what_one_does(whole, sharded, fsdp_devices):
    _, losses, state = sharded if fsdp_devices == 2 else flown(1, 2)
    assert losses == pytest.approx(whole[1], rel=1e-5)
    for a, b in zip(leaves(state), leaves(whole[2]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    assert losses[2] != losses[1]


def test_two_processes_that_load_half_of_each_batch_compute_what_one_does(whole):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    words = [sys.executable, str(TESTS / "process_child.py"), address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(subprocess.Popen([*words, str(index)], **pipes)) for index in range(2)]
        for process in processes:
            stack.callback(process.kill)
        outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs[0][1][-2000:] + outputs[1][1][-2000:]
    found = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    assert [one["rows"] for one in found] == [[0, 2], [2, 4]]
    assert found[0]["losses"] == found[1]["losses"] == pytest.approx(whole[1], rel=1e-5)


def test_a_device_holds_its_share_of_parameters_optimizer_and_average(sharded):
    _, _, state = sharded
    for part in (state.params, state.ema_params, state.opt_state):
        large = [leaf for leaf in jax.tree.leaves(part) if leaf.nbytes >= 4 << 20]
        small = [leaf for leaf in jax.tree.leaves(part) if leaf.nbytes < 4 << 20]
        assert large
        assert all(leaf.addressable_shards[0].data.nbytes * 2 == leaf.nbytes for leaf in large)
        assert all(leaf.sharding.is_fully_replicated for leaf in small)


def test_a_layers_parameters_are_gathered_and_no_activations():
    run, mesh = toy_run("batch_size=64"), make_mesh(2)
    lowered = compile_step(run, mesh).lower(jax.random.key(0), abstract_state(run, mesh), batch_of(run))
    gathered = [line for line in lowered.compile().as_text().splitlines() if " all-gather(" in line]
    assert any("f32[1024,1024]" in line for line in gathered)
    assert not any("f32[64,1024]" in line for line in gathered), gathered


@pytest.mark.parametrize(("fsdp_devices", "count"), [(1, 1), (1, 2)])
def test_a_sharded_checkpoint_is_restored_on_another_mesh_to_the_bit(sharded, tmp_path, fsdp_devices, count):
    run, _, state = sharded
    manager = checkpoints.open_manager(tmp_path, keep_period=None)
    checkpoints.save(manager, 2, state, {}, pending=None)
    checkpoints.finish(manager, 2)
    abstract = abstract_state(run, make_mesh(fsdp_devices, jax.devices()[:count]))
    restored = checkpoints.restore(manager, 2, abstract)
    manager.close()
    for found, asked, wanted in zip(*map(jax.tree.leaves, (restored, abstract, state)), strict=True):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
        assert found.sharding == asked.sharding


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """What `mesh_child.py` found with pi0 on four devices."""
    words = [sys.executable, str(TESTS / "mesh_child.py"), str(tmp_path_factory.mktemp("four"))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_pi0_trained_on_four_devices_has_the_losses_of_one(four):
    assert four["four"] == pytest.approx(four["one"], rel=1e-5)
    assert len(set(four["one"])) == 3


@pytest.mark.parametrize(("name", "sharded_leaves"), [("one", False), ("fsdp=2", True), ("fsdp=4", True)])
def test_pi0_trained_on_four_devices_has_the_state_of_one_on_whatever_mesh_it_is_restored(four, name, sharded_leaves):
    restored = four[f"restored on {name}"]
    assert restored["farthest"] < 1e-5
    assert restored["as asked"]
    assert (restored["sharded leaves"] > 50) == sharded_leaves

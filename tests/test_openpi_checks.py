"""What goes wrong with openpi's runs, each injected into a healthy fork and home, and the one check that says so."""

import dataclasses
import shutil

import openpi_fork
import pytest
from healthy import GIB, HEALTHY, LOADING, REHEARSING, STEPPING, TARGETED, spoken
from openpi_fork import ROOT, add_camera, changed, load, write_stats

from checks import CHECKLIST
from checks.context import CheckContext
from preflight.checklist import run_checks

pytestmark = openpi_fork.MARKS

# What traces the model takes seconds; the faults of data and config are looked for without it.
TRACING = {check.id for check in CHECKLIST if check.id.split(".")[0] in ("grad", "tree", "memory", "step")}
TRACING |= {"config.model", "config.weights", "config.freeze", "storage.space", *LOADING, *REHEARSING, *TARGETED}


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    with openpi_fork.opened(tmp_path_factory) as opened:
        yield opened


@pytest.fixture(scope="module")
def healthy(user, tmp_path_factory):
    """A folder with the healthy run's statistics."""
    folder = tmp_path_factory.mktemp("healthy")
    for name in ("g1_small", "g1_small_pi05"):
        write_stats(load(folder, name=name))
    return folder


def results_of(run, without=TRACING, probes=HEALTHY, **changes):
    context = CheckContext(run=run, probes=probes, **changes)
    checks = [check for check in CHECKLIST if check.id not in without]
    return {result.check.id: result for result in run_checks(checks, context, max_parallel=1)}


def the_one_that_speaks(run, id_, without=TRACING, **changes):
    results = results_of(run, without, **changes)
    assert spoken(results) == {id_}, {i: results[i].outcome.summary for i in spoken(results)}
    return results[id_].outcome


def test_a_healthy_fork_is_silent(healthy):
    run = load(healthy)
    results = results_of(run, {*LOADING, *STEPPING, *REHEARSING, *TARGETED})
    assert spoken(results) == set(), {i: results[i].outcome.summary for i in spoken(results)}
    for id_, result in results.items():
        if id_.startswith("data."):
            assert result.status == "pass", result.outcome.summary


def test_statistics_that_are_missing(user, tmp_path):  # F04
    run = load(tmp_path)
    outcome = the_one_that_speaks(run, "data.norm-stats")
    assert outcome.summary == (
        f"the normalisation statistics are missing: {tmp_path}/assets/g1_small/lab/g1/norm_stats.json does not exist"
    )
    assert outcome.hint.commands[1] == "uv run scripts/compute_norm_stats.py --config-name g1_small"


def test_statistics_written_to_the_repo_id_and_read_from_the_asset_id(user, tmp_path):  # F04
    run = load(tmp_path, "data.assets.asset_id=g1")
    written = write_stats(run)
    outcome = the_one_that_speaks(load(tmp_path, "data.assets.asset_id=g1"), "data.norm-stats")
    assert f"they are in {written}" in outcome.summary
    assert "set the config's asset_id to 'lab/g1'" in outcome.hint.text


def narrow(stats):
    """One dimension hardly moved when they were computed (openpi#814)."""
    action = stats["norm_stats"]["actions"]
    action["std"][3], action["q01"][3], action["q99"][3] = 1e-7, action["mean"][3], action["mean"][3] + 1e-7
    return stats


@pytest.mark.parametrize("name", ["g1_small", "g1_small_pi05"])
def test_statistics_that_blow_a_dimension_up(user, tmp_path, name):  # F05, by z-score and by quantiles
    write_stats(load(tmp_path, name=name), change=narrow)
    outcome = the_one_that_speaks(load(tmp_path, name=name), "data.norm-stats")
    assert outcome.status == "fail"
    assert "normalises to" in outcome.summary


def test_statistics_of_other_data(user, tmp_path):  # F06
    def shifted(stats):
        stats["norm_stats"]["state"]["mean"] = [mean + 5 for mean in stats["norm_stats"]["state"]["mean"]]
        return stats

    path = write_stats(load(tmp_path), change=shifted)
    outcome = the_one_that_speaks(load(tmp_path), "data.norm-stats")
    assert outcome.status in ("warn", "fail")
    assert str(path) in outcome.summary or "normalises to" in outcome.summary


def test_statistics_of_more_dimensions_are_cut_without_a_word(user, tmp_path):  # F06
    def longer(stats):
        for field in ("mean", "std", "q01", "q99"):
            stats["norm_stats"]["actions"][field] += [0.5] * 6
        return stats

    write_stats(load(tmp_path), change=longer)
    assert the_one_that_speaks(load(tmp_path), "data.norm-stats").status == "warn"


def lora():
    from preflight.runs.openpi.install import openpi

    config = openpi("models.pi0_config", "Pi0Config")
    return config(paligemma_variant="gemma_2b_lora", action_expert_variant="gemma_300m_lora"), config()


def test_a_moving_average_beside_lora(healthy):  # F10
    adapted, _ = lora()
    run = changed(load(healthy), model=adapted, freeze_filter=adapted.get_freeze_filter())
    outcome = the_one_that_speaks(run, "config.ema")
    assert "in a LoRA run" in outcome.summary
    assert "--set ema_decay=none" in outcome.hint.commands[0]


COVERAGE = {check.id for check in CHECKLIST} - {"config.model", "config.freeze", "grad.coverage"}


def test_a_lora_filter_without_adapters(healthy):  # F11
    adapted, plain = lora()
    run = changed(load(healthy), model=plain, freeze_filter=adapted.get_freeze_filter(), ema_decay=None)
    outcome = the_one_that_speaks(run, "grad.coverage", COVERAGE)
    assert "the language model and the action expert have only frozen parameters" in outcome.summary


def test_lora_trains_the_image_tower(healthy):  # F12
    adapted, _ = lora()
    run = changed(load(healthy), model=adapted, freeze_filter=adapted.get_freeze_filter(), ema_decay=None)
    results = results_of(run, COVERAGE)
    assert spoken(results) == set()
    assert "the image tower is trained in full" in results["grad.coverage"].outcome.summary


def test_a_dataset_of_format_3(user, healthy):  # F13
    shutil.copytree(ROOT / "examples" / "data" / "g1", user.lerobot / "lab" / "v3")
    outcome = the_one_that_speaks(load(healthy, "data.repo_id=lab/v3"), "data.version")
    assert outcome.summary == "the dataset is in format v3.0; the openpi stack's reader opens v2.0 and v2.1"


def test_a_file_of_the_dataset_is_missing(user, healthy):  # F14
    root, named = user.dataset("torn")
    gone = root / "videos" / "chunk-000" / "observation.images.cam_high" / "episode_000001.mp4"
    gone.unlink()
    outcome = the_one_that_speaks(load(healthy, named), "data.metadata")
    assert str(gone) in outcome.summary


def test_the_dataset_is_not_there(user, healthy):  # F15
    outcome = the_one_that_speaks(load(healthy, "data.repo_id=lab/nowhere"), "data.present")
    assert str(user.lerobot / "lab" / "nowhere") in outcome.summary


def test_a_camera_that_is_decoded_and_never_seen(user, tmp_path):  # F24
    root, named = user.dataset("decoy")
    add_camera(root, "observation.images.decoy")
    write_stats(load(tmp_path, named))
    outcome = the_one_that_speaks(load(tmp_path, named), "data.features")
    assert outcome.status == "warn"
    assert outcome.summary == (
        "observation.images.decoy: decoded for every sample and never seen by the model, 50% of the pixels that are "
        "decoded"
    )


def test_a_key_that_the_dataset_has_not(healthy):  # F30
    outcome = the_one_that_speaks(load(healthy, "data.action_key=actions"), "data.features")
    assert outcome.summary == "the run asks for 'actions', which the dataset does not have"
    assert "Did you mean action?" in outcome.hint.text


def test_more_dimensions_than_the_model_has(healthy):  # F31
    outcome = the_one_that_speaks(load(healthy, "model.action_dim=16"), "data.sample")
    assert "has shape [26], the model wants [16]" in " ".join(outcome.evidence)


def test_a_delta_mask_that_is_too_long(healthy, monkeypatch):  # F31
    from preflight.runs.openpi.install import openpi

    transforms = openpi("transforms")
    longer = transforms.make_bool_mask(30)
    monkeypatch.setattr(transforms, "make_bool_mask", lambda *dims: longer)
    outcome = the_one_that_speaks(load(healthy, "data.delta=true"), "data.features")
    assert "DeltaActions fails: " in outcome.summary
    assert "transforms.py" in outcome.summary


def test_prompts_that_are_cut(healthy):  # F35
    outcome = the_one_that_speaks(load(healthy, "model.max_token_len=12"), "data.prompts")
    assert "takes 41 tokens and the model reads 12" in outcome.summary
    assert "--set model.max_token_len=41" in outcome.hint.commands[0]


def test_a_prompt_that_nothing_makes(healthy):  # F36
    outcome = the_one_that_speaks(load(healthy, "data.base_config.prompt_from_task=false"), "data.features")
    assert "RepackTransform asks for 'prompt', which the sample does not have" in outcome.summary
    assert "prompt_from_task=True" in outcome.hint.text


def test_frames_of_a_task_that_the_dataset_lacks(user, tmp_path):  # F36
    root, named = user.dataset("gap")
    write_stats(load(tmp_path, named))
    tasks = root / "meta" / "tasks.jsonl"
    tasks.write_text(tasks.read_text().replace('"task_index": 0', '"task_index": 1'))
    outcome = the_one_that_speaks(load(tmp_path, named), "data.prompts")
    assert "frames have task_index 0, which none of the dataset's 1 task(s) has" in outcome.summary


@pytest.mark.parametrize(
    ("assignment", "id_", "said"),
    [
        ("lr_schedule.decay_steps=30000", "config.schedule", "decay is laid out for 30,000 steps"),  # F37
        ("num_train_steps=20", "config.epochs", "passes over 498 frames"),  # F38
        ("batch_size=1000", "config.batch", "498 frames, fewer than one batch of 1000"),  # F47
        ("keep_period=1000", "config.checkpoints", "never meet"),
    ],
)
def test_numbers_that_do_not_go_together(healthy, assignment, id_, said):
    more = ("lr_schedule.decay_steps=20", "save_interval=5", "keep_period=5") if "steps=20" in assignment else ()
    few = ("num_train_steps=5", "lr_schedule.decay_steps=5", "keep_period=none") if "size" in assignment else ()
    assert said in the_one_that_speaks(load(healthy, *more, *few, assignment), id_).summary


def gpus(count):

    from preflight.telemetry.devices import PresentGpu

    names = {field.name for field in dataclasses.fields(PresentGpu)}
    known = {"name": "NVIDIA H100 80GB HBM3", "total_bytes": 80 * GIB, "free_bytes": 80 * GIB, "driver": "550"}
    made = [
        PresentGpu(**{name: index if name == "index" else known.get(name) for name in names}) for index in range(count)
    ]
    return dataclasses.replace(HEALTHY, gpus=lambda: made)


ACCELERATED = TRACING | {"env.accelerator"}  # jax itself sees none here


def test_shards_and_batches_that_do_not_divide_over_the_gpus(healthy):  # F46, F47
    outcome = the_one_that_speaks(load(healthy, "fsdp_devices=3"), "config.fsdp", ACCELERATED, probes=gpus(2))
    assert "fsdp_devices 3 does not divide 2 visible GPUs" in outcome.summary
    outcome = the_one_that_speaks(load(healthy, "batch_size=6"), "config.batch", ACCELERATED, probes=gpus(4))
    assert "batch_size 6 does not divide over 4 GPUs" in outcome.summary


def test_the_folder_is_taken(healthy, tmp_path):  # F39
    run = load(healthy, f"checkpoint_base_dir={tmp_path}")
    folder = tmp_path / "g1_small" / "first"
    (folder / "415" / "params").mkdir(parents=True)
    outcome = the_one_that_speaks(run, "storage.checkpoint-dir", folder=folder)
    assert str(folder) in outcome.summary


def test_a_resume_of_openpis_own_folder(healthy, tmp_path):  # F42
    run = changed(load(healthy, f"checkpoint_base_dir={tmp_path}"), wandb_enabled=True)
    folder = tmp_path / "g1_small" / "first"
    for item in ("params", "train_state"):
        (folder / "415" / item).mkdir(parents=True)
        (folder / "415" / item / "_METADATA").write_text("{}")
    (folder / "415" / "_CHECKPOINT_METADATA").write_text("{}")
    probes = dataclasses.replace(HEALTHY, environ={"WANDB_MODE": "offline"})
    outcome = the_one_that_speaks(run, "storage.resume", probes=probes, folder=folder, resume=True)
    assert "has no config.json, so it was not made by preflight" in outcome.summary
    assert any("wandb_id.txt" in line for line in outcome.evidence)


def test_the_disk_is_too_small(healthy):  # F40
    without = {check.id for check in CHECKLIST} - {"config.model", "storage.space"}
    probes = dataclasses.replace(HEALTHY, disk_free=lambda path: GIB)
    outcome = the_one_that_speaks(load(healthy), "storage.space", without, probes=probes)
    assert "checkpoints" in outcome.summary

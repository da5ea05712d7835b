"""Configs: the built-in values, TOML run files, overrides and the project file."""

import re
from pathlib import Path

import pytest

from preflight.config.builtin import BUILTIN_CONFIGS
from preflight.config.load import load_config
from preflight.config.lora import lora_freeze_patterns, with_lora, without_lora
from preflight.config.project import find_project
from preflight.config.schema import ModelConfig
from preflight.errors import UsageError
from preflight.runs import load_run

DEMO = "pi0_lighter_cup_demo"


def usage_error(*args, **kwargs):
    with pytest.raises(UsageError) as caught:
        load_config(*args, **kwargs)
    return caught.value


def test_trossen_has_the_values_of_the_checklist():
    config = load_config("pi0_lighter_cup_trossen")
    assert (config.batch_size, config.num_workers, config.num_train_steps, config.save_interval) == (
        32,
        8,
        20_000,
        5_000,
    )
    assert config.ema_decay is None
    assert (config.seed, config.log_interval) == (42, 100)
    schedule, adamw = config.lr_schedule, config.optimizer
    assert (schedule.warmup_steps, schedule.peak_lr, schedule.decay_steps, schedule.decay_lr) == (
        1000,
        2.5e-5,
        30_000,
        2.5e-6,
    )
    assert (adamw.b1, adamw.b2, adamw.eps, adamw.weight_decay, adamw.clip_gradient_norm) == (0.9, 0.95, 1e-8, 1e-10, 1)


def test_the_test_config_differs_in_batch_and_steps_alone():
    trossen, test = BUILTIN_CONFIGS["pi0_lighter_cup_trossen"], BUILTIN_CONFIGS["pi0_lighter_cup_test"]
    assert (test.batch_size, test.num_train_steps) == (16, 1000)
    assert (test.model, test.data, test.num_workers) == (trossen.model, trossen.data, trossen.num_workers)


def test_set_uses_the_fields_own_types(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(
        DEMO,
        [
            "batch_size=8",
            "ema_decay=0.9",
            "lr_schedule.peak_lr=1",
            "milestones=[0, 5]",
            "data.norm=quantile",
            "data.cameras.base_0_rgb=observation.images.top",
            "project_name=1.10",
            "keep_period=none",
            "wandb_enabled=false",
        ],
    )
    assert config.batch_size == 8
    assert config.ema_decay == 0.9
    assert config.lr_schedule.peak_lr == 1.0
    assert isinstance(config.lr_schedule.peak_lr, float)
    assert config.milestones == (0, 5)
    assert config.data.norm == "quantile"
    assert config.data.cameras["base_0_rgb"] == "observation.images.top"
    assert config.data.cameras["left_wrist_0_rgb"] == "observation.images.cam_left_wrist"  # the others stay
    assert config.project_name == "1.10"
    assert config.keep_period is None
    assert config.wandb_enabled is False


def test_another_dataset_keeps_nothing_of_the_demos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = load_config(DEMO, ["data.root=2026/where"]).data
    assert (data.root, data.cameras, data.delta_actions) == (tmp_path / "2026/where", {}, ())
    whole = load_config(DEMO, ["data.cameras={base_0_rgb = 'top'}"]).data
    assert whole.cameras == {"base_0_rgb": "top"}


@pytest.mark.parametrize(
    ("assignment", "message", "hint"),
    [
        ("bach_size=3", "--set: unknown key 'bach_size'; did you mean 'batch_size'?", "num_workers"),
        ("data.nrm=zscore", "--set: unknown key 'data.nrm'; did you mean 'data.norm'?", "data.root"),
        ("batch_size=x", "--set: batch_size must be a whole number, not 'x'", None),
        ("batch_size=1.5", "--set: batch_size must be a whole number, not 1.5", None),
        ("batch_size=true", "--set: batch_size must be a whole number, not True", None),
        ("batch_size=none", "--set: batch_size cannot be unset", None),
        ("batch_size=0", "batch_size must be at least 1, not 0", None),
        ("num_workers=-1", "num_workers must be at least 0, not -1", None),
        ("ema_decay=1.5", "ema_decay must lie between 0 and 1, not 1.5", "none"),
        ("model=3", "--set: model is a table, not 3", "model.siglip_variant"),
        ("data.norm=minmax", "--set: data.norm: unknown value 'minmax'", "valid: quantile, zscore"),
        ("milestones=5", "--set: milestones must be a list, each item a whole number, not 5", None),
        ("batch_size", "--set 'batch_size' is not KEY=VALUE", "for example"),
        ("=3", "--set '=3' is not KEY=VALUE", "for example"),
        ("lr_schedule.warmup_steps=200", "lr_schedule.decay_steps (120) must be more than", None),
        ("batch_size=8\nlog_interval=3", "batch_size must be a whole number", None),
        ("lr_schedule.peak_lr=nan", "lr_schedule.peak_lr must be a positive, finite number, not nan", None),
        ("lr_schedule.peak_lr=-1", "lr_schedule.peak_lr must be a positive, finite number, not -1", None),
        ("optimizer.b1=5", "optimizer.b1 must be between 0 and 1, not 5", None),
        ("seed=9223372036854775808", "seed must be below 2**63", None),
        ("checkpoint_base_dir=~nosuchuser/x", "checkpoint_base_dir: ", None),
        ('name="a\\nb"', "cannot be a folder's name", None),
        ("name=../up", "name '../up' cannot be a folder's name", "folder"),
        ("freeze=['(']", "freeze: '(' is not a regular expression", None),
        ("model.max_token_len=0", "model.max_token_len must be at least 1, not 0", None),
        ("model.pi0.5=true", "unknown key 'model.pi0'; did you mean 'model.pi05'?", None),
        ("model.pi_05=true", "unknown key 'model.pi_05'; did you mean 'model.pi05'?", "model.scan"),
        ("weight=a", "unknown key 'weight'; did you mean 'weights'?", None),
        (
            "model.paligemma_variant=gemma_2b_lra",
            "unknown value 'gemma_2b_lra'; did you mean 'gemma_2b_lora'?",
            "gemma_300m_lora",
        ),
        (
            "weights=gs://openpi-assets/checkpoints/pi0_base",
            "weights must be a folder on this machine, not a gs:// address",
            "fetch it first",
        ),
    ],
)
def test_a_wrong_override_is_named(assignment, message, hint):
    error = usage_error(DEMO, [assignment])
    assert message in error.message
    assert error.exit_code == 2
    assert hint is None or hint in error.hint


def test_what_none_stands_for_depends_on_the_model():
    pi0, pi05 = load_config(DEMO), load_config(DEMO, ["model.pi05=true"])
    assert (pi0.model.prompt_len, pi05.model.prompt_len) == (48, 200)
    assert load_config(DEMO, ["model.pi05=true", "model.max_token_len=90"]).model.prompt_len == 90
    assert (pi0.data.norm, pi0.model.default_norm, pi05.model.default_norm) == (None, "zscore", "quantile")
    assert (pi0.freeze, pi0.weights) == (None, None)
    # A run says what they stand for.
    settings = load_run(DEMO, assignments=["model.pi05=true"]).facts.settings
    assert (settings["model.max_token_len"], settings["data.norm"], settings["freeze"]) == (200, "quantile", ())


def test_none_and_nothing_differ_for_freeze(tmp_path):
    lora = ["model.paligemma_variant=dummy_lora"]
    assert load_run(DEMO, assignments=lora).facts.freeze == (r"(?!.*lora)(?!.*llm.*_1.*).*llm.*",)
    assert load_run(DEMO, assignments=[*lora, "freeze=[]"]).facts.freeze == ()
    assert load_run(DEMO, assignments=[*lora, "freeze=['.*img.*']"]).facts.freeze == (".*img.*",)
    file = tmp_path / "run.toml"
    file.write_text('freeze = [".*img.*"]\nweights = "start/5"\n[model]\npi05 = true\nscan = false\n')
    config = load_config(str(file))
    assert (config.freeze, config.weights) == ((".*img.*",), tmp_path / "start/5")
    assert (config.model.pi05, config.model.scan) == (True, False)
    unset = load_config(str(file), ["freeze=none", "weights=none"])
    assert (unset.freeze, unset.weights) == (None, None)


@pytest.mark.parametrize(
    ("adapted", "patterns", "frozen"),
    [
        ((), (), ()),
        (
            ("paligemma_variant", "action_expert_variant"),
            (r"(?!.*lora).*llm.*",),
            ("llm/layers/mlp/linear", "llm/layers/mlp_1/linear"),
        ),
        (("paligemma_variant",), (r"(?!.*lora)(?!.*llm.*_1.*).*llm.*",), ("llm/layers/mlp/linear",)),
        (("action_expert_variant",), (r"(?!.*lora).*llm.*_1.*",), ("llm/layers/mlp_1/linear",)),
    ],
)
def test_lora_freezes_what_has_adapters(adapted, patterns, frozen):
    model = ModelConfig(**dict.fromkeys(adapted, "dummy_lora"))
    assert lora_freeze_patterns(model) == patterns
    paths = ["llm/layers/mlp/linear", "llm/layers/mlp_1/linear", "llm/layers/mlp_1/linear_lora_a", "img/head/kernel"]
    paths += ["llm/layers/attn/q_einsum/lora_b", "action_out_proj/kernel"]
    matched = [path for path in paths if any(re.fullmatch(pattern, f"PaliGemma/{path}") for pattern in patterns)]
    assert tuple(matched) == frozen


def test_adapters_can_be_switched():
    model = ModelConfig(pi05=True)
    adapted = with_lora(model)
    assert (adapted.paligemma_variant, adapted.action_expert_variant) == ("gemma_2b_lora", "gemma_300m_lora")
    assert without_lora(adapted) == model
    assert without_lora(model) == model
    assert with_lora(adapted) == adapted


def test_an_unknown_config_lists_the_valid_ones():
    error = usage_error("pi0_lighter_cup_dem")
    assert error.message == "unknown config 'pi0_lighter_cup_dem'; did you mean 'pi0_lighter_cup_demo'?"
    assert "pi0_lighter_cup_trossen" in error.hint
    assert "did you mean" not in usage_error("zebra").message


def test_a_run_file_says_only_what_differs(tmp_path):
    file = tmp_path / "robot run.toml"
    file.write_text(
        'base = "pi0_lighter_cup_test"\nbatch_size = 8\n[data]\nroot = "data/ä b"\n'
        '[data.cameras]\nbase_0_rgb = "observation.images.cam_high"\n'
    )
    config = load_config(str(file))
    assert (config.name, config.batch_size, config.num_train_steps) == ("robot run", 8, 1000)
    assert config.data.root == tmp_path / "data/ä b"
    # The base's dataset has other cameras and dimensions: nothing of them is left.
    assert config.data.cameras == {"base_0_rgb": "observation.images.cam_high"}
    assert config.data.delta_actions == ()
    assert load_config(str(file), ["batch_size=2"]).batch_size == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_size = \n", "is not valid TOML: Invalid value (at line 1, column 14)"),
        ('base = "zebra"', "unknown base 'zebra'"),
        ('base = ["a"]', "unknown base"),
        ("bach_size = 3", "unknown key 'bach_size'; did you mean 'batch_size'?"),
        ("data = 3", "data is a table, not 3"),
        ('[data]\nroot = "x"\nrepo_id = "a/b"', "data.root and data.repo_id are both given"),
    ],
)
def test_a_broken_run_file_is_named(tmp_path, text, message):
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert message in usage_error(str(file)).message


def test_an_unreadable_run_file_is_named(tmp_path):
    assert "does not exist" in usage_error(str(tmp_path / "none.toml")).message
    assert "cannot be read: Is a directory" in usage_error(f"{tmp_path}/").message
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe4"')
    assert "is not a text file in UTF-8" in usage_error(str(tmp_path / "latin.toml")).message


def test_the_nearest_project_file_is_used(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[tool.preflight]\nconfig = "runs/mine.toml"\n[tool.preflight.ignore]\n"config.epochs" = "on purpose"\n'
        "[tool.preflight.expect]\nnum_workers = 8\n[tool.preflight.expect.data]\nnorm = 'zscore'\n"
    )
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    project = find_project(below)
    assert project.config == str(tmp_path / "runs/mine.toml")
    assert project.ignore == {"config.epochs": "on purpose"}
    assert project.expect == {"num_workers": 8, "data.norm": "zscore"}
    (below / "preflight.toml").write_text('stack = "native"')
    assert find_project(below).stack == "native"


def test_a_tool_table_that_is_none_is_named(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool]\npreflight = 3\n")
    with pytest.raises(UsageError, match="tool.preflight must be a table, not 3"):
        find_project(tmp_path)
    (tmp_path / "pyproject.toml").write_text("tool = 3\n")
    find_project(tmp_path)


def test_a_pyproject_without_our_table_is_passed_over(tmp_path):
    (tmp_path / "preflight.toml").write_text('stack = "native"')
    below = tmp_path / "package"
    below.mkdir()
    (below / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert find_project(below).stack == "native"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stak = 'native'", "unknown key 'stak'; did you mean 'stack'?"),
        ("stack = 3", "stack must be text, not 3"),
        ("expect = 3", "expect must be a table, not 3"),
        ("[ignore]\n'config.epochs' = ''", "ignore of config.epochs gives no reason"),
    ],
)
def test_a_wrong_project_file_is_named(tmp_path, text, message):
    (tmp_path / "preflight.toml").write_text(text)
    with pytest.raises(UsageError, match=r"preflight\.toml") as caught:
        find_project(tmp_path)
    assert message in caught.value.message


def test_the_example_is_a_valid_run_file():
    config = load_config(str(Path(__file__).parent.parent / "examples" / "g1.toml"))
    assert (config.data.root / "meta" / "info.json").is_file()

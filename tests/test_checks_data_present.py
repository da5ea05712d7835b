"""`data.present`: where the dataset was found, and what the Hub has of one that is not here."""

import dataclasses
import importlib
import json
import shlex
import shutil
from pathlib import Path

import pytest
from healthy import EXAMPLE, context, outcome_of
from hub_layout import cached, info, refs, refusal, serving, sizes
from packaging.version import Version

from checks import data_present
from checks.context import Probes
from preflight.checklist import run_checks
from preflight.data.hub import HubDataset, ask_hub, hf_command
from preflight.data.locate import lerobots_root

V30 = Path(EXAMPLE).parent / "data" / "g1"
V21 = Path(__file__).parent / "data" / "g1_v21"
FILES = ("meta/info.json", "data/chunk-000/episode_000000.parquet")
ON_HUB = HubDataset(
    exists=True, token=False, files=120, size_bytes=3 * 2**30, revisions=["main", "v2.1"], gated=False, private=False
)
LOGIN = shlex.join(hf_command("auth", "login"))


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A user's home without datasets, and an empty folder that commands are typed in."""
    for name in ("HF_LEROBOT_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.fixture
def online(monkeypatch, home):
    """The network may be used; nothing but this machine is ever asked."""
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no token"))


def ask_nobody(repo_id):
    raise AssertionError("the Hub was asked")


def answering(hub):
    return hub if callable(hub) else lambda repo_id: hub


def native(hub="no network in a test", repo_id="lab/g1", **probes):
    return context(f"data.repo_id={repo_id}", "data.root=none", probes={"hub": answering(hub), **probes})


def openpis(hub="no network in a test", repo_id="lab/g1", **probes):
    """A run that LeRobot's own reader reads for."""
    checked = context(probes={"hub": answering(hub), **probes})
    settings = {"data.repo_id": repo_id}
    checked.run.facts = dataclasses.replace(
        checked.run.facts, stack="openpi", formats=("v2.0", "v2.1"), decodes_all_cameras=True, settings=settings
    )
    checked.run.source = lambda: lerobots_root(repo_id)
    return checked


def failure(checked):
    (result,) = run_checks([data_present.CHECK], checked)
    assert result.status == "fail"
    return result.outcome


def test_it_says_where_the_dataset_was_found(home):
    outcome = outcome_of("data.present", context())
    assert outcome.summary == f"LeRobot v3.0 at {V30}"
    assert outcome.measured == {"root": str(V30), "codebase_version": "v3.0"}
    root = cached(home / "hf" / "hub", "lab/g1", V21, names=("main", "v2.1"))
    outcome = outcome_of("data.present", native())
    how = "in the Hub's cache, snapshot 0123456 of main and v2.1"
    assert (outcome.status, outcome.summary) == ("pass", f"LeRobot v2.1 at {root} ({how})")
    assert outcome.measured["found"] == how
    # The links of a snapshot lead out of it, and are read all the same.
    assert outcome_of("data.metadata", native()).status == "pass"
    sample = native().run.dataset()[277]
    assert sample["image"]["base_0_rgb"].std() > 10


@pytest.mark.parametrize("of", [native, openpis])
def test_nothing_is_asked_about_what_is_here_and_nothing_is_made(of, home):
    shutil.copytree(V21, home / "hf" / "lerobot" / "lab" / "g1")
    (result,) = run_checks([data_present.CHECK], of(hub=ask_nobody))
    assert result.status == "pass"
    assert result.outcome.summary.endswith("/lerobot/lab/g1 (in LeRobot's home)")
    before = sorted(home.rglob("*"))
    failure(of(repo_id="lab/g2"))
    assert sorted(home.rglob("*")) == before


def test_the_native_reader_is_pointed_to_a_folder_nearby(home):
    shutil.copytree(V30, home / "here" / "g1")
    outcome = failure(native(hub=ask_nobody))
    assert outcome.summary.endswith(f"does not exist; a dataset of that name is at {home}/here/g1")
    assert outcome.hint.commands[-1].startswith("preflight check ")
    assert f"--set data.root={home}/here/g1" in outcome.hint.commands[-1]


def test_lerobots_reader_does_not_see_the_hubs_cache(home):
    root = cached(home / "hf" / "hub", "lab/g1", V21)
    outcome = failure(openpis(hub=ask_nobody))
    place = home / "hf" / "lerobot" / "lab" / "g1"
    assert outcome.summary.startswith(
        f"lab/g1 is not at {place}, where LeRobot's reader looks for it, but in the Hub's"
    )
    assert outcome.hint.commands == (f"mkdir -p {place.parent}", f"ln -s {root} {place}")
    assert outcome.measured == {"repo_id": "lab/g1", "looked_at": str(place), "found": str(root)}
    assert outcome.expected == {"root": str(place)}


def test_a_path_is_no_name_that_the_hub_is_asked_for(home):
    outcome = failure(openpis(hub=ask_nobody, repo_id="../g1"))
    assert outcome.summary.startswith("../g1 is not downloaded: ")
    assert outcome.hint.text == "Name it as user/name, below $HF_LEROBOT_HOME."
    shutil.copytree(V21, home / "g1")
    outcome = failure(openpis(hub=ask_nobody, repo_id="../g1"))
    assert outcome.hint.commands[1] == f"ln -s {home}/here/../g1 {home}/hf/lerobot/local/g1"
    assert "--set data.repo_id=local/g1" in outcome.hint.commands[2]


def test_offline_it_says_what_it_does_not_know():
    # The real probe: the tests' environment is offline.
    outcome = failure(context("data.repo_id=lab/g1", "data.root=none"))
    assert outcome.summary.endswith(
        "what would be downloaded is not known, the Hub was not heard: HF_HUB_OFFLINE is set"
    )
    assert outcome.hint.commands[0].split()[1:5] == ["download", "lab/g1", "--repo-type", "dataset"]
    assert Probes().hub is ask_hub


def test_it_says_what_would_be_downloaded(home):
    outcome = failure(native(ON_HUB))
    assert outcome.summary == (
        f"lab/g1 is not downloaded: {home}/hf/lerobot/lab/g1 does not exist; on the Hub it is 3.0 GiB in 120 files"
    )
    assert (outcome.evidence, outcome.hint.text) == ((), "download it before the run starts")
    assert len(outcome.hint.commands) == 1
    assert outcome.measured["on_hub"]["size_bytes"] == 3 * 2**30
    assert outcome.measured["free_gib"] == 100.0
    assert json.loads(json.dumps(outcome.measured)) == outcome.measured
    outcome = failure(native(ON_HUB, disk_free=lambda path: 2**30))
    assert outcome.summary.endswith("3.0 GiB in 120 files, more than the 1.0 GiB that are free there")
    assert outcome.hint.text.startswith("make room")
    assert failure(native(dataclasses.replace(ON_HUB, size_bytes=None))).summary.endswith(
        "of unknown size in 120 files"
    )


def test_thousands_of_files_need_a_token():
    many = dataclasses.replace(ON_HUB, files=1000)
    outcome = failure(native(many))
    assert outcome.evidence == ("1,000 requests without a token end in HTTP 429, too many requests (lerobot#1235)",)
    assert outcome.hint.text == "log in; download it before the run starts"
    assert outcome.hint.commands[0] == LOGIN
    assert failure(native(dataclasses.replace(many, token=True))).evidence == ()
    outcome = failure(native("it answers that there were too many requests from here (HTTP 429)"))
    assert outcome.hint.commands[0] == LOGIN


def test_private_gated_and_unknown_datasets_need_a_token():
    outcome = failure(native(HubDataset(exists=False, token=False)))
    assert outcome.summary.endswith("and the Hub knows no dataset lab/g1 that may be seen without a token")
    assert outcome.hint.commands[0] == LOGIN
    outcome = failure(native(HubDataset(exists=False, token=True)))
    assert outcome.summary.endswith("that may be seen with the token that is set here")
    outcome = failure(native(dataclasses.replace(ON_HUB, gated=True)))
    assert outcome.summary.endswith("3.0 GiB in 120 files, gated")
    assert outcome.hint.text.startswith("ask for access at https://huggingface.co/datasets/lab/g1; log in; ")
    outcome = failure(native(dataclasses.replace(ON_HUB, private=True, token=True)))
    assert outcome.summary.endswith("3.0 GiB in 120 files, private")
    assert LOGIN not in outcome.hint.commands


@pytest.mark.parametrize(
    ("revisions", "taken", "evidence"),
    [
        (("main", "v2.0", "v2.1", "v3.0"), "v2.1", None),
        (("main", "v2.0", "v1.6"), "v2.0", None),
        (("v2.1", "main"), "v2.1", None),  # a branch serves as well
        (("main", "latest"), None, "no version tag: LeRobot asks for v2.1 and raises RevisionNotFoundError"),
        (("main", "v3.0"), None, "tagged v3.0 and not v2.1: LeRobot's reader does not open that format"),
        (None, None, None),
    ],
)
def test_lerobots_reader_asks_for_a_version_tag(revisions, taken, evidence):
    on_hub = dataclasses.replace(ON_HUB, revisions=revisions and list(revisions))
    outcome = failure(openpis(on_hub))
    assert [line.startswith(evidence or "nothing") for line in outcome.evidence] == ([True] if evidence else [])
    *before, download = outcome.hint.commands
    assert (f"--revision {taken}" in download) == (taken is not None)
    assert ("--revision" in download) == (taken is not None)
    tags = """python -c 'from huggingface_hub import HfApi; HfApi().create_tag("lab/g1", tag="v2.1", """
    assert [command.startswith(tags) for command in before] == ([True] if "no version" in (evidence or "") else [])
    # The native reader asks for none.
    assert failure(native(on_hub)).evidence == ()


def test_the_tag_is_the_one_that_lerobot_takes(lerobot, monkeypatch):
    """LeRobot's own rule, told what the Hub has."""
    utils = importlib.import_module(f"{lerobot}.utils")
    monkeypatch.setattr(utils, "get_repo_versions", lambda repo_id: [Version(name) for name in names])

    def taken():
        try:
            return utils.get_safe_version("lab/g1", "v2.1")
        except Exception:  # noqa: BLE001 - one of its own, which one depends on its version
            return None

    for names in (["v2.0", "v2.1", "v3.0"], ["v2.0", "v1.6"], ["v2.5", "v2.1", "v2.0"]):
        assert data_present._revision(names, "v2.1") == (taken(), ())
    for names in (["v3.0"], ["v1.6"], ["v2.2"], []):
        assert data_present._revision(names, "v2.1") == (taken(), tuple(names))


def test_the_hub_answers(online, monkeypatch):
    answers = {
        "info": info(*FILES),
        "refs": refs(tags=("v2.1",)),
        "sizes": sizes(info=1000, data=2_000_000),
    }
    with serving(**answers) as (endpoint, asked):
        found = ask_hub("lab/g1", endpoint=endpoint)
    assert found == HubDataset(
        exists=True, token=False, files=2, size_bytes=2_001_000, revisions=["main", "v2.1"], private=False, gated=False
    )
    assert [path for path, _ in asked] == [
        "/api/datasets/lab/g1",
        "/api/datasets/lab/g1/refs",
        "/api/datasets/lab/g1?blobs=True",
    ]
    assert {token for _, token in asked} == {None}
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    with serving(**answers | {"info": info(gated="manual", private=True)}) as (endpoint, asked):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        found = ask_hub("lab/g1")
    assert (found.token, found.gated, found.private, found.files) == (True, True, True, 0)
    assert {token for _, token in asked} == {"Bearer hf_of_a_test"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refusal(401, message="Invalid username or password."), HubDataset(exists=False, token=False)),
        (refusal(404, "RepoNotFound", "Repository not found"), HubDataset(exists=False, token=False)),
        (refusal(403, "GatedRepo", "Access is restricted"), HubDataset(exists=True, gated=True, token=False)),
        (refusal(429), "it answers that there were too many requests from here (HTTP 429)"),
        (refusal(503), "it answers HTTP 503"),
    ],
)
def test_the_hub_refuses(answer, said, online):
    with serving(info=answer, refs=refusal(403), sizes=refusal(403)) as (endpoint, _):
        assert ask_hub("lab/g1", endpoint=endpoint) == said


def test_the_hub_refuses_a_token(online, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with serving(info=refusal(401, message="Invalid credentials in Authorization header")) as (endpoint, _):
        assert ask_hub("lab/g1", endpoint=endpoint) == "it refuses the token (HTTP 401)"
    with serving(info=refusal(404, "RepoNotFound", "Repository not found")) as (endpoint, _):
        assert ask_hub("lab/g1", endpoint=endpoint) == HubDataset(exists=False, token=True)


def test_the_hub_answers_what_is_no_answer(online):
    with serving(info=b"<html>log in to this network</html>") as (endpoint, _):
        assert "JSON" in ask_hub("lab/g1", endpoint=endpoint)
    with serving(info=info()) as (endpoint, _):
        pass
    assert "Connect" in ask_hub("lab/g1", endpoint=endpoint)  # nobody is there any more
    assert ask_hub("no/such/name", endpoint=endpoint).startswith("HFValidationError: ")


def test_a_hub_that_hangs_is_not_waited_for(online):
    with serving(info="hangs") as (endpoint, _):
        assert ask_hub("lab/g1", endpoint=endpoint, timeout_s=0.2) == f"{endpoint} does not answer within 0.2 s"
    # What it said before it fell silent is kept.
    with serving(info=info(*FILES), refs="hangs") as (endpoint, _):
        found = ask_hub("lab/g1", endpoint=endpoint, timeout_s=1.0)
    assert (found.exists, found.files, found.revisions, found.size_bytes) == (True, 2, None, None)
    with serving(info=info(*FILES), refs=refs(), sizes=refusal(429)) as (endpoint, _):
        found = ask_hub("lab/g1", endpoint=endpoint)
    assert (found.files, found.revisions, found.size_bytes) == (2, ["main"], None)

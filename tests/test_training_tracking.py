"""How wandb's mode is chosen, and that its failures never stop a run. The wandb here is the real one, offline."""

import pytest

from preflight.training.tracking import Tracker, TrackingChoice, choose_mode, server


@pytest.mark.parametrize(
    ("enabled", "environ", "mode", "reason"),
    [
        (False, {"WANDB_API_KEY": "k"}, "disabled", "wandb_enabled is false"),
        (True, {}, "offline", "no credentials"),
        (True, {"WANDB_API_KEY": "k"}, "online", "WANDB_API_KEY is set"),
        (True, {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline", "WANDB_MODE=offline"),
        (True, {"WANDB_MODE": "disabled"}, "disabled", "WANDB_MODE=disabled"),
        (True, {"WANDB_MODE": "online"}, "offline", "no credentials"),
    ],
)
def test_the_mode_is_chosen_from_the_environment(tmp_path, enabled, environ, mode, reason):
    choice = choose_mode(enabled, {"HOME": str(tmp_path), **environ})
    assert (choice.mode, reason in choice.reason) == (mode, True)
    assert "k" not in choice.reason.split()  # the key itself is never shown


def test_a_login_in_netrc_counts_and_a_broken_file_does_not(tmp_path):
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    netrc.chmod(0o600)
    choice = choose_mode(True, {"HOME": str(tmp_path)})
    assert choice.mode == "online"
    assert "secret" not in choice.reason
    assert choose_mode(True, {"HOME": str(tmp_path), "WANDB_BASE_URL": "https://other.example"}).mode == "offline"
    netrc.write_text("machine\n")
    assert choose_mode(True, {"HOME": str(tmp_path)}).mode == "offline"


def test_a_server_that_does_not_answer_means_offline():
    asked = []

    def ping(host, port):
        asked.append((host, port))
        return "timed out" if host == "far.example" else None

    key = {"WANDB_API_KEY": "k"}
    assert choose_mode(True, key, ping=ping) == TrackingChoice("online", "WANDB_API_KEY is set")
    far = key | {"WANDB_BASE_URL": "http://far.example:8080"}
    assert choose_mode(True, far, ping=ping) == TrackingChoice("offline", "far.example:8080 does not answer: timed out")
    assert asked == [("api.wandb.ai", 443), ("far.example", 8080)]
    # Where wandb will not go online, nobody is asked.
    assert choose_mode(True, far | {"WANDB_MODE": "offline"}, ping=ping).mode == "offline"
    assert choose_mode(False, far, ping=ping).mode == "disabled"
    assert len(asked) == 2
    assert choose_mode(True, key | {"WANDB_BASE_URL": "nonsense"}, ping=ping).mode == "offline"


def test_behind_a_proxy_it_is_the_proxy_that_is_asked():
    proxied = {"https_proxy": "http://proxy.example:3128"}
    assert server({}) == ("api.wandb.ai", 443)
    assert server(proxied) == ("proxy.example", 3128)
    assert server({"HTTPS_PROXY": "proxy.example:3128"}) == ("proxy.example", 3128)
    assert server(proxied | {"no_proxy": "localhost, .wandb.ai"}) == ("api.wandb.ai", 443)
    assert server(proxied | {"NO_PROXY": "*"}) == ("api.wandb.ai", 443)
    assert server(proxied | {"no_proxy": "b.ai"}) == ("proxy.example", 3128)
    assert server(proxied | {"WANDB_BASE_URL": "http://inside.example"}) == ("inside.example", 80)


def test_a_run_whose_first_start_had_no_wandb_gets_an_id_when_it_is_resumed_and_keeps_it(tmp_path):
    start = {"project": "p", "name": "n", "config": {"clearance": {"verdict": "cleared"}}, "folder": tmp_path}
    Tracker.start(TrackingChoice("disabled", "test"), **start, resume=False)
    assert not (tmp_path / "wandb_id.txt").exists()
    ids = []
    for _ in range(2):
        tracker = Tracker.start(TrackingChoice("offline", "test"), **start, resume=True)
        tracker.log({"loss": 1.0}, 0)
        tracker.finish()
        ids.append((tmp_path / "wandb_id.txt").read_text().strip())
    assert ids[0] == ids[1] != ""
    # wandb numbers folders of one id that begin within the same second.
    assert {path.name.split("-")[3] for path in (tmp_path / "wandb").glob("offline-run-*")} == {ids[0]}


class Failing:
    """A run whose every call fails, as after a lost disk."""

    offline = True
    dir = "/nowhere/files"

    def log(self, *args, **kwargs):
        raise OSError("gone")

    def finish(self):
        raise OSError("gone")


def test_a_failure_is_warned_about_once(caplog):
    tracker = Tracker(Failing())
    for step in range(3):
        tracker.log({"loss": 1.0}, step)
    tracker.finish()
    assert [record.message for record in caplog.records] == ["wandb failed, training goes on without it: gone"]


def test_a_wandb_that_cannot_start_is_warned_about(tmp_path, caplog):
    tracker = Tracker.start(
        TrackingChoice("offline", "test"),
        project="p" * 1000,
        name="n",
        config={},
        folder=tmp_path,
        resume=False,
    )
    tracker.log({"loss": 1.0}, 0)
    assert tracker.sync_command() is None
    assert "wandb could not be started, training goes on without it" in caplog.text

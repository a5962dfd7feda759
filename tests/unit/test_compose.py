"""What the local stack tells its processes: where they may read, with which credentials and secrets."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from docsum.api.webhooks import keys_of
from docsum.errors import ConfigurationError, SourceNotAllowed
from docsum.local.compose import allow, api_environment, worker_environment
from docsum.settings import Api, Fetch, Settings, Store


def settings(home: Path, **fetch: tuple[str, ...]) -> Settings:
    return Settings(home=home, fetch=Fetch(**fetch))


def told(home: Path, **fetch: tuple[str, ...]) -> dict[str, str]:
    found = worker_environment(settings(home, **fetch), "worker-1", 1)
    return {name: value for name, value in found.items() if name.startswith("DOCSUM_FETCH__")}


def test_what_was_allowed_stays_allowed_beside_the_settings(tmp_path: Path) -> None:
    for place in ("/data/a", "s3://reports/2026/", "gs://other", "https://example.org/a.pdf"):
        allow(settings(tmp_path, buckets=("s3://mine",)), place)
    assert told(tmp_path, buckets=("s3://mine",)) == {
        "DOCSUM_FETCH__FILE_ROOTS": "/data/a",
        "DOCSUM_FETCH__BUCKETS": "s3://mine,s3://reports/2026,gs://other",
        "DOCSUM_FETCH__HOSTS": "example.org",
    }


def test_what_is_open_already_needs_no_entry_and_no_restart(tmp_path: Path) -> None:
    allow(settings(tmp_path), "s3://reports/2026")
    before = told(tmp_path)
    for place in ("s3://reports/2026", "s3://reports/2026/may/", "/data/a"):
        allow(settings(tmp_path, file_roots=("/data",)), place)
    assert told(tmp_path) == before


@pytest.mark.parametrize("place", ["/data/a,b", "/data/a\nb", "s3://reports/a,b", "s3://reports/a "])
def test_what_a_list_cannot_hold_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be allowed by itself"):
        allow(settings(tmp_path), place)
    allow(settings(tmp_path), place.rpartition("/")[0])
    allow(settings(tmp_path), place)


@pytest.mark.parametrize(
    ("place", "setting"),
    [
        ("http://10.0.0.7/a", "DOCSUM_FETCH__PRIVATE_HOSTS"),
        ("http://169.254.169.254/latest", "whatever DOCSUM_FETCH__HOSTS names"),
    ],
)
def test_internal_addresses_are_not_opened_by_a_run(tmp_path: Path, place: str, setting: str) -> None:
    with pytest.raises(SourceNotAllowed, match=setting):
        allow(settings(tmp_path), place)
    assert not told(tmp_path)


def test_workers_get_the_credentials_of_object_stores_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"AWS_SESSION_TOKEN": "a", "GOOGLE_APPLICATION_CREDENTIALS": "b", "AZURE_CLIENT_ID": "c"}
    for name, value in {**wanted, "MY_SECRET": "d", "GITHUB_TOKEN": "e"}.items():
        monkeypatch.setenv(name, value)
    found = worker_environment(settings(tmp_path), "worker-1", 1)
    assert wanted.items() <= found.items()
    assert not {"MY_SECRET", "GITHUB_TOKEN"} & set(found)


def test_rows_wait_shortly_on_this_machine_unless_a_setting_says_how_long(tmp_path: Path) -> None:
    given = Settings(home=tmp_path, store=Store(flush_interval=timedelta(milliseconds=250)))
    for settings_, wait in ((settings(tmp_path), "20ms"), (given, None)):
        for found in (worker_environment(settings_, "worker-1", 1), api_environment(settings_, 1)):
            assert found.get("DOCSUM_STORE__FLUSH_INTERVAL") == wait  # nothing: the default


def test_the_api_signs_webhooks_with_a_secret_that_is_made_once(tmp_path: Path) -> None:
    first = api_environment(settings(tmp_path / "home"), 1)
    assert api_environment(settings(tmp_path / "home"), 1) == first, "else it would be started anew each time"
    file = tmp_path / "home" / "webhook.secret"
    assert first["DOCSUM_API__WEBHOOK_SECRETS"] == file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(keys_of(file.read_text())) == 1
    assert "DOCSUM_API__WEBHOOK_SECRETS" not in worker_environment(settings(tmp_path / "home"), "worker-1", 1)


def test_the_local_api_tells_receivers_on_this_machine_and_those_of_the_settings(tmp_path: Path) -> None:
    given = Api(webhook_secrets=SecretStr("whsec_mine"), webhook_private_hosts=("intranet.example",))
    found = api_environment(Settings(home=tmp_path, api=given), 1)
    assert found["DOCSUM_API__WEBHOOK_PRIVATE_HOSTS"] == "intranet.example,127.0.0.1,localhost"
    assert found["DOCSUM_API__WEBHOOK_SECRETS"] == "whsec_mine"
    assert not (tmp_path / "webhook.secret").exists()

"""What is written for operators says what the program understands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from docsum.local.model_server import parse_arguments
from docsum.settings import known_variables, load
from tests.support.manifests import ROOT, compose, deployment_files, filled, variables_in

SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OURS = ("setup", "worker", "batch-worker", "api", "model-server")
#: Read-only: ours, and those of others whose documentation says that they can be.
READ_ONLY = (*OURS, "prometheus", "grafana")


@pytest.mark.parametrize("path", list(deployment_files()), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_variable_that_operators_are_told_of_is_a_setting(path: Path) -> None:
    assert variables_in(path) <= known_variables().keys()


@pytest.mark.parametrize("service", ["setup", "worker", "batch-worker", "api"])
def test_what_compose_sets_is_understood(
    service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # no .env
    for name, text in SERVICES[service]["environment"].items():
        monkeypatch.setenv(name, filled(text, {"ANTHROPIC_API_KEY": "a-key"}))
    settings = load()
    assert settings.explicit
    assert settings.fetch.file_roots == ("/documents",)
    assert bool(settings.model.api_key.get_secret_value()) == ("worker" in service)


def test_the_worker_is_given_time_to_store_what_it_paid_for() -> None:
    longest = load().worker.shutdown_timeout + load().worker.drain_timeout
    for name in ("worker", "batch-worker"):
        assert SERVICES[name]["stop_grace_period"] == "180s"
    assert longest.total_seconds() < 180


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_of_compose_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service.get("read_only", False) == (name in READ_ONLY)
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["healthcheck"]
    assert not service["image"].endswith(":latest") and ":" in service["image"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_every_volume_of_compose_is_there() -> None:
    named = compose()["volumes"].keys()
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = filled(volume, {}).split(":")[0]
            if not source.startswith("."):
                assert source in named
            elif source.startswith("./deploy/prometheus/") and not (ROOT / "deploy/prometheus").exists():
                continue  # written apart
            else:
                assert (ROOT / source).exists(), source


def test_the_model_server_of_compose_can_be_reached_by_the_workers() -> None:
    name, *arguments = SERVICES["model-server"]["command"]
    assert name == "model-server"
    options = parse_arguments(arguments)
    assert (options.host, options.port) == ("0.0.0.0", 8089)
    assert parse_arguments(["--home", "here"]).host == "127.0.0.1"


def test_nothing_of_compose_waits_for_a_service_that_is_not_there() -> None:
    for service in SERVICES.values():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES
            if SERVICES[needed].get("profiles", []) != service.get("profiles", []):
                assert how.get("required", True) == (not SERVICES[needed].get("profiles"))


def test_the_settings_of_the_image_are_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "deploy/image/Dockerfile").read_text()
    for name, value in re.findall(r"(DOCSUM_\w+)=(\S+)", text):
        monkeypatch.setenv(name, value)
    settings = load()
    assert (settings.worker.host, settings.worker.port) == ("0.0.0.0", 9090)
    assert (settings.api.host, settings.api.port) == ("0.0.0.0", 8080)
    assert str(settings.home) == "/tmp/docsum"
    assert re.search(r"^ARG BASE=python:[\w.-]+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert re.search(r"^USER 65532:65532$", text, re.MULTILINE)


def test_ci_runs_what_runs_at_home_and_nothing_that_can_change_under_it() -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    assert {"run": "make test"} in jobs["test"]["steps"]
    used = re.findall(r"uses: (\S+)(.*)", text)
    assert used
    for action, comment in used:
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action)
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment)
    assert all(job["permissions"] == {"contents": "read"} for job in jobs.values())


def test_updates_are_looked_for_where_there_is_something_to_update() -> None:
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    signs = {
        "pip": "requirements",
        "docker": "Dockerfile",
        "docker-compose": "docker-compose.yml",
        "npm": "package.json",
        "github-actions": ".github/workflows",
    }
    assert [each["package-ecosystem"] for each in updates] == list(signs)
    for each in updates:
        assert (ROOT / each["directory"].lstrip("/") / signs[each["package-ecosystem"]]).exists()

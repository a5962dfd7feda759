"""Dashboards and alerts speak of metrics that exist, in files that nobody has edited by hand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml  # it ships no types
from deploy.grafana.dashboards import CLICKHOUSE, FOLDER, PAGES, generated

from docsum.cli.app import application
from docsum.settings import known_variables
from docsum.telemetry.metrics import catalogue

DEPLOY = FOLDER.parent
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
GUIDE = (DEPLOY / "README.md").read_text()
RUNBOOK = GUIDE.partition("\n## Alerts\n")[2].partition("\n## ")[0]
KNOWN = {
    f"{metric.name}{suffix}": metric
    for metric in catalogue()
    for suffix in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))
}
#: `name{label="value", ...}` or a name alone.
_SELECTOR = re.compile(r"\b(docsum_\w+)(?:\{([^}]*)\})?")
PANELS = [
    (page, panel, query)
    for page in PAGES
    if page.source != CLICKHOUSE
    for panel in page.panels
    for query in panel.queries.values()
]
QUERIES = {
    **{f"{page.name}: {panel.title}: {query}": query for page, panel, query in PANELS},
    **{f"{rule.get('alert', rule.get('record'))}: {rule['expr']}": rule["expr"] for rule in RULES},
}


def test_the_committed_dashboards_are_what_the_code_makes() -> None:
    there = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert there == generated(), "run `make dashboards`"


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_a_query_names_metrics_and_labels_that_exist(query: str) -> None:
    found = _SELECTOR.findall(query)
    assert found or "process_" in query or "docsum:" in query
    for name, selector in found:
        assert name in KNOWN, f"{name} is not in the catalogue"
        known = {*KNOWN[name].labels, "le", "instance", "job"}
        assert {part.split("=")[0].strip(" !") for part in selector.split(",") if part} <= known


def test_every_metric_is_in_a_dashboard() -> None:
    shown = {name for _, _, query in PANELS for name, _ in _SELECTOR.findall(query)}
    assert {metric.name for metric in catalogue()} == {KNOWN[name].name for name in shown}


def test_recorded_ratios_that_alerts_use_are_recorded() -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    used = {name for rule in RULES for name in re.findall(r"docsum:\w+:\w+", rule["expr"])}
    assert used <= recorded


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_leads_to_its_section_which_says_first_whether_one_may_restart(alert: str) -> None:
    for rule in RULES:
        if rule.get("alert") == alert:
            assert rule["annotations"]["runbook"] == f"deploy/README.md#{alert.lower()}"
            assert rule["labels"]["severity"] in ("page", "ticket")
    _, _, section = GUIDE.partition(f"\n### {alert}\n")
    section = section.partition("\n##")[0]
    assert section.startswith("May I restart: ")
    assert re.findall(r"^- (\w+): ", section, re.MULTILINE) == ["Means", "Look", "Do"]


def test_every_section_of_an_alert_has_its_rule() -> None:
    assert set(re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE)) == set(ALERTS)


@pytest.mark.parametrize("line", sorted(set(re.findall(r"`docsum ([^`]+)`", RUNBOOK))))
def test_a_command_in_the_guide_exists_with_its_options(line: str) -> None:
    command: Any = typer.main.get_command(application())
    words = shlex.split(line)
    while words and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_the_settings_in_the_guide_exist() -> None:
    assert set(re.findall(r"DOCSUM_[A-Z_]+", RUNBOOK)) <= known_variables().keys()


def test_every_alert_has_a_test_where_it_fires_and_one_where_it_does_not() -> None:
    tests = yaml.safe_load((DEPLOY / "prometheus" / "alerts.test.yml").read_text())["tests"]
    tried = [
        (case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test["alert_rule_test"]
    ]
    assert {name for name, fires in tried if fires} == set(ALERTS)
    assert {name for name, fires in tried if not fires} == set(ALERTS)


def test_panels_of_a_dashboard_have_titles_of_their_own_and_a_sentence() -> None:
    for page in PAGES:
        titles = [panel.title for panel in page.panels]
        assert len(set(titles)) == len(titles)
        assert all(panel.meaning.endswith(".") for panel in page.panels)


def test_no_file_here_leads_to_another_machine() -> None:
    for path in (*FOLDER.glob("*.json"), *(DEPLOY / "prometheus").iterdir()):
        assert not re.search(r"https?://", Path(path).read_text())

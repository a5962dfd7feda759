"""Thousands of requests that nobody would think of, made up from the API's own OpenAPI page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.api_process import ApiProcess
from tests.support.broker import Broker
from tests.support.deployment import Fleet, ModelServer
from tests.support.engine import Engine

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, broker: Broker, engine: Engine) -> Iterator[ApiProcess]:
    folder = tmp_path_factory.mktemp("api")
    model = ModelServer(folder / "model", "--fast")
    fleet = Fleet(folder, broker, engine, model)
    process = ApiProcess(folder, fleet.environment)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        fleet.close()
        model.close()


@pytest.mark.timeout(900)
def test_no_request_ends_in_a_server_error_or_an_answer_that_is_not_declared(
    api: ApiProcess, pytestconfig: pytest.Config
) -> None:
    schema = schemathesis.openapi.from_url(f"{api.url}/v1/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    each = int(pytestconfig.getoption("--api-requests")) // len(operations) + 1
    asked = 0
    with requests.Session() as session:
        for operation in operations:

            @hypothesis.settings(
                max_examples=each, deadline=None, suppress_health_check=list(HealthCheck), database=None
            )
            @hypothesis.seed(7)
            @hypothesis.given(case=operation.as_strategy())
            def explore(case: Any) -> None:  # Any: a case of a specification
                nonlocal asked
                asked += 1
                case.call_and_validate(session=session, checks=CHECKS)

            explore()
    print(f"{asked} requests")
    assert asked >= int(pytestconfig.getoption("--api-requests")) * 0.5
    assert "request failed" not in api.said()

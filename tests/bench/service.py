"""The HTTP API as its users wait for it: what a request takes while workers are at work.

accept    POST /v1/runs with a folder of 20 documents as the source, one every quarter of a second
burst     the same, one right after the other: the work that they make is behind them
inline    POST /v1/runs with 1,000 references in the body
upload    POST /v1/runs/ID/documents with 50,000 lines
look      GET /v1/runs/ID of the run that was uploaded, while its documents are summarised

On the local stack as `docsum up` starts it, which shares this machine with the client. Nothing is asserted
but that answers are good ones and that the counts add up.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from statistics import quantiles
from typing import Any

from pydantic import SecretStr

from docsum.local.model_server import whole_number
from docsum.settings import Api, Fetch, Model, Settings
from tests.bench.command import carry_out, result_path, say
from tests.bench.stand import BenchFailed, model_server, write_documents
from tests.support.api_process import ApiProcess
from tests.support.deployment import Deployment

_FEW = 20  # documents of a folder that is listed
_INLINE = 1_000
_PAUSE = 0.25  # seconds
MODEL = "claude-haiku-5-5"


def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """What was asked for, as it goes into a file. Raises BenchFailed."""
    say("Starting the local stack.")
    documents = folder / "documents"
    write_documents(documents, _FEW)
    with model_server(folder / "model", 0.1) as model:
        api = ApiProcess(folder, {})
        settings = Settings(
            _env_file=None,
            home=folder / "home",
            model=Model(name=MODEL, api_key=SecretStr("a-key"), base_url=model.url),
            fetch=Fetch(file_roots=(str(folder),)),
            api=Api(port=api.port),
        )
        stack = Deployment(folder, **settings.environment())
        try:
            stack.docsum("up", "-d", "--workers", "1")
            return _requests(options, api, documents)
        finally:
            stack.close()


def _requests(options: argparse.Namespace, api: ApiProcess, documents: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, pause in (("accept", _PAUSE), ("burst", 0.0)):
        taken = list(
            _timed(options.requests, lambda: _post(api, "/v1/runs", {"source": str(documents)}), pause)
        )
        found[name] = taken
        say(f"{name}: {_shown(taken)}")
    inline = {"documents": [_reference(number) for number in range(_INLINE)]}
    found["inline"] = list(_timed(10, lambda: _post(api, "/v1/runs", inline)))
    say(f"inline: {_shown(found['inline'])}")  # type: ignore[arg-type]  # it was just put there
    lines = "".join(json.dumps(_reference(number)) + "\n" for number in range(options.lines)).encode()
    run_id = _post(api, "/v1/runs", {})["run_id"]
    began = time.perf_counter()
    answer = _post(api, f"/v1/runs/{run_id}/documents", lines)
    found["upload"] = {"lines": options.lines, "seconds": time.perf_counter() - began}
    if answer["total"] != options.lines:
        raise BenchFailed(f"{answer['total']} of {options.lines} lines were announced.")
    say(f"upload: {options.lines:,} lines in {time.perf_counter() - began:.2f} s")
    look = list(_timed(options.requests, lambda: api.get(f"/v1/runs/{run_id}")))
    found["look"] = look
    say(f"look: {_shown(look)}")
    return found


def _timed(times: int, ask: Callable[[], object], pause: float = 0.0) -> Iterator[float]:
    """Milliseconds of each of so many requests, one after the other, with so many seconds between them."""
    for _ in range(times):
        began = time.perf_counter()
        ask()
        yield 1_000 * (time.perf_counter() - began)
        time.sleep(pause)


def _post(api: ApiProcess, path: str, body: object) -> dict[str, Any]:  # Any: JSON
    status, answer = api.ask("POST", path, body)
    if status != HTTPStatus.ACCEPTED:
        raise BenchFailed(f"POST {path} was answered {status}: {answer}")
    found: dict[str, Any] = answer
    return found


def _reference(number: int) -> dict[str, str]:
    """Nobody will find it: what the bench is about is over by then."""
    return {"document_id": f"document-{number}", "uri": f"file:///nowhere/{number}.txt"}


def _shown(milliseconds: Sequence[float]) -> str:
    p50, p95 = _percentiles(milliseconds)
    return f"{p50:.0f} ms (p50), {p95:.0f} ms (p95) of {len(milliseconds)}"


def _percentiles(milliseconds: Sequence[float]) -> tuple[float, float]:
    cuts = quantiles(milliseconds, n=20, method="inclusive")
    return cuts[9], cuts[18]


def main(arguments: Sequence[str]) -> int:
    """`python -m tests.bench.service`; the exit code."""
    command = argparse.ArgumentParser(
        prog="python -m tests.bench.service",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--requests", type=whole_number, default=100, help="of each kind (default 100)")
    command.add_argument("--lines", type=whole_number, default=50_000, help="of the upload (default 50000)")
    command.add_argument("--out", type=Path, help="the file of the results")
    options = command.parse_args(arguments)
    return carry_out(lambda folder: measure(options, folder), options.out or result_path("service"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

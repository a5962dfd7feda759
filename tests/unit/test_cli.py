"""The command line: help, exit codes, wrong input, and what is printed where."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from docsum.bootstrap import open_lister
from docsum.cli import execute
from docsum.cli.app import COMMANDS, application
from docsum.cli.audit import who
from docsum.cli.config import described
from docsum.cli.export import _cell
from docsum.cli.output import Code, WrongUsage, code_of
from docsum.cli.progress import Pace, counts
from docsum.cli.run import Order, coming, same_run
from docsum.errors import (
    BrokerUnavailable,
    ConfigurationError,
    ModelKeyRejected,
    ModelUnreachable,
    StoreUnavailable,
)
from docsum.fetchers.file import file_version
from docsum.local.jars import DownloadFailed
from docsum.local.stack_state import ProcessState, StackError, StackFailed
from docsum.local.stack_state import State as ProcessLife
from docsum.models import (
    Coordinates,
    Lane,
    Recipe,
    Rows,
    Run,
    RunDocumentRow,
    RunProgress,
    RunState,
    State,
    SummaryRow,
)
from docsum.runs import standing
from docsum.settings import Fetch, Settings, load
from docsum.sources import Listed, UnusableSource
from docsum.stores.memory import MemoryStore
from docsum.words import money, one_line, span
from tests.support.fakes import START, summary

if TYPE_CHECKING:
    from docsum.cli.reading import Asked

RUN = Run(
    id=UUID("3f2a91c0-0000-4000-8000-000000000001"),
    name="letters",
    source="/data/letters",
    recipe=Recipe("local-extractive-1"),
    lane=Lane.BACKFILL,
    state=RunState.PUBLISHED,
    created_at=START,
    updated_at=START,
    listed=3,
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("DOCSUM_", "ANTHROPIC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DOCSUM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    yield


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = execute(arguments)
    out, err = capsys.readouterr()
    return code, out, err


# -- help --------------------------------------------------------------------------------------------------


def test_help_lists_every_command_but_the_hidden_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = result(capsys, "--help")
    assert code == Code.OK
    for name in COMMANDS:
        assert (f"\n  {name} " in out) == (name != "model-server"), name


@pytest.mark.parametrize(
    "command",
    [
        *(name for name in COMMANDS if name != "model-server"),
        *("runs ls", "runs show", "runs watch", "runs resume", "documents show", "documents delete"),
        "config show",
        *("setup topics", "setup store", "setup schemas"),
    ],
)
def test_the_help_of_every_command_teaches(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = result(capsys, *command.split(), "--help")
    assert code == Code.OK
    group = command in ("runs", "documents", "config", "setup", "dlq", "tokens")
    assert "Commands:" in out if group else f"    docsum {command}" in out


def test_help_imports_nothing_heavy() -> None:
    """Each of these takes longer than the whole help may."""
    heavy = [
        "faust",
        "confluent_kafka",
        "clickhouse_connect",
        "anthropic",
        "aiohttp",
        "rich",
        "pydantic_settings",
    ]
    for arguments in (["--help"], ["run", "--help"]):
        script = (
            f"import sys; from docsum.cli import execute; execute({arguments}); "
            f"print([name for name in {heavy} if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


def test_the_whole_application_has_every_command() -> None:
    app = application()
    names = {command.name for command in app.registered_commands} | {
        group.name for group in app.registered_groups
    }
    assert names == set(COMMANDS)


# -- exit codes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nope"], Code.USAGE, "No such command 'nope'"),
        (["run"], Code.USAGE, "Missing argument"),
        (["run", "/nowhere/at/all"], Code.USAGE, "There is no file or folder '/nowhere/at/all'"),
        (["run", "a.pdf", "b.pdf"], Code.USAGE, "put a pattern into quotes"),
        (["run", ".", "--words", "3"], Code.USAGE, "words"),
        (["run", ".", "--lane", "fast"], Code.USAGE, "There is no lane 'fast'"),
        (["run", ".", "--scanned", "ocr"], Code.USAGE, "--scanned is fail or send-pdf, not 'ocr'."),
        (["run", ".", "--sample", "5", "--limit", "9"], Code.USAGE, "leave out --limit"),
        (["run", ".", "--sample", "5", "--dry-run"], Code.USAGE, "leave out --limit and --dry-run"),
        (["run", ".", "--id", "seven"], Code.USAGE, "'seven' is no run id"),
        (["run", ".", "--instructions", "@nowhere"], Code.USAGE, "cannot be read from 'nowhere'"),
        (["run", "ftp://host/x"], Code.USAGE, "ftp: cannot be listed"),
        (["export", "-o", "out.xlsx"], Code.USAGE, "must end with .jsonl, .csv or .parquet"),
        (["export", "-o", "nowhere/out.csv"], Code.USAGE, "There is no folder"),
        (["setup", "topics", "--print", "helm"], Code.USAGE, "choose kafka or strimzi"),
        (["setup", "store", "--print", "json"], Code.USAGE, "choose sql"),
        (["setup", "--print", "helm"], Code.USAGE, "There is no form 'helm': choose"),
        (["setup", "--print", "kafka", "topics"], Code.USAGE, "stand behind the command"),
        (["run", "samples", "--by", "07:00"], Code.USAGE, "--by is for --lane batch"),
        (["run", "samples", "--lane", "batch", "--by", "soon"], Code.USAGE, "soon is no time"),
        (["worker", "--lane", "backfill"], Code.USAGE, "There is no worker for the lane 'backfill'"),
        (["runs", "ls"], Code.UNREACHABLE, "No docsum runs in"),
        (["status"], Code.UNREACHABLE, "No docsum runs in"),
        (["documents", "show", "x"], Code.UNREACHABLE, "No docsum runs in"),
        (["documents", "delete", "x"], Code.UNREACHABLE, "No docsum runs in"),
        (["documents", "delete", "x", "--purge"], Code.USAGE, "cannot be undone: add --yes"),
        (["cost"], Code.UNREACHABLE, "No docsum runs in"),
        (["cost", "--since", "yesterday"], Code.USAGE, "write 7d, 12h or a day such as 2026-11-01"),
        (["cost", "--since", "2200-01-01"], Code.USAGE, "lies ahead"),
        (["cost", "--by", "week"], Code.USAGE, "'run', 'model', 'day', 'reason'"),
    ],
)
def test_wrong_input_gets_one_sentence_and_its_exit_code(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: Code, sentence: str
) -> None:
    ended, out, err = result(capsys, *arguments)
    assert ended == code
    assert sentence in err
    assert "Traceback" not in err
    assert out == ""


def test_a_misspelt_setting_is_a_wrong_configuration(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCSUM_MODEL__TIMEUT", "3s")
    code, _, err = result(capsys, "config", "show")
    assert code == Code.CONFIGURATION
    assert err == "Error: There is no setting DOCSUM_MODEL__TIMEUT. Did you mean DOCSUM_MODEL__TIMEOUT?\n"


@pytest.mark.parametrize("name", ["DOCSUM_API_PORT", "DOCSUM_API__PORTS", "DOCSUM_KAFKA__SASL_PORT_1"])
def test_only_what_kubernetes_injects_may_look_like_a_setting(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("DOCSUM_API_PORT", "tcp://10.0.0.7:8080")  # of a Service docsum-api
    monkeypatch.setenv("DOCSUM_API_PORT_8080_TCP_ADDR", "10.0.0.7")
    monkeypatch.setenv("DOCSUM_API_SERVICE_PORT_HTTP", "8080")
    load()
    monkeypatch.setenv(name, "8080")
    with pytest.raises(ConfigurationError, match=f"no setting {name}"):
        load()


def test_debug_shows_the_traceback_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--debug", "run", "/nowhere"], ["run", "/nowhere", "--debug"]):
        code, _, err = result(capsys, *arguments)
        assert code == Code.USAGE
        assert "Traceback" in err


def _failed(exit_code: int) -> StackFailed:
    return StackFailed(ProcessState("worker-1", ProcessLife.FAILED, "worker-1.log", exit_code=exit_code))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), Code.CONFIGURATION),
        (ModelKeyRejected("x"), Code.CONFIGURATION),
        (_failed(78), Code.CONFIGURATION),
        (_failed(1), Code.FAILURE),
        (StackError("x"), Code.FAILURE),
        (StoreUnavailable("x"), Code.UNREACHABLE),
        (BrokerUnavailable("x"), Code.UNREACHABLE),
        (ModelUnreachable("x"), Code.UNREACHABLE),
        (DownloadFailed("x"), Code.UNREACHABLE),
        (UnusableSource("x"), Code.USAGE),
        (TimeoutError(), Code.TIMEOUT),
        (ValueError("x"), Code.FAILURE),
    ],
)
def test_every_error_has_its_exit_code(error: Exception, code: Code) -> None:
    assert code_of(error) is code


# -- run ---------------------------------------------------------------------------------------------------


def test_standard_input_on_a_paid_model_needs_agreement(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key")
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        code, _, err = result(capsys, "run", "-")
    assert code == Code.USAGE
    assert "add --yes" in err


def test_a_folder_that_workers_elsewhere_may_not_read_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCSUM_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("DOCSUM_CLICKHOUSE__URL", "http://127.0.0.1:1")
    monkeypatch.setenv("DOCSUM_FETCH__FILE_ROOTS", "/mnt/documents")
    code, _, err = result(capsys, "run", str(tmp_path))
    assert code == Code.CONFIGURATION
    assert "The workers may read /mnt/documents" in err


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Sixty letters that a deployment may read; its model costs 2 to 3 cents a letter."""
    folder = tmp_path / "letters"
    folder.mkdir()
    for number in range(60):
        text = f"Letter {number}. " + "The wall of the harbour is to be repaired before the storms. " * 30
        (folder / f"{number}.txt").write_text(text)
    monkeypatch.setenv("DOCSUM_FETCH__FILE_ROOTS", str(folder))
    monkeypatch.setenv("DOCSUM_MODEL__NAME", "claude-fable-5-1")
    return folder


@pytest.mark.usefixtures("store")
def test_a_dry_run_tells_the_price_and_the_command(
    capsys: pytest.CaptureFixture[str], letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCSUM_LIMITS__REQUESTS_PER_MINUTE", "10")
    code, out, err = result(capsys, "run", str(letters), "--dry-run", "--words", "70", "--name", "my letters")
    assert code == Code.OK, err
    for expected in ("60", "price on the live lane", "price on the batch lane", "6 min 0 s", "No provider"):
        assert expected in out
    assert f"To run it: docsum run {letters} --name 'my letters' --words 70" in out


def test_a_dry_run_leaves_out_what_is_unchanged_and_publishes_nothing(
    capsys: pytest.CaptureFixture[str], letters: Path, store: MemoryStore
) -> None:
    recipe = load().recipe()
    for number in range(20):
        path = letters / f"{number}.txt"
        row = SummaryRow(
            document_id=path.as_uri(),
            version=1,
            state=State.DONE,
            source_version=file_version(path.stat()),
            uri=path.as_uri(),
            summary=summary(recipe=recipe),
            attributes={},
            run_id=RUN.id,
            origin=Coordinates("docsum.backfill", 0, number),
            occurred_at=START,
            written_at=START,
        )
        asyncio.run(store.write(Rows(summaries=(row,))))
    before = asyncio.run(store.runs())

    def dry_run(*options: str) -> dict[str, Any]:
        code, out, err = result(capsys, "run", str(letters), "--dry-run", "--json", *options)
        assert code == Code.OK, err
        found: dict[str, Any] = json.loads(out)
        return found

    found = dry_run()
    assert (found["documents"], found["unchanged"], found["read"]) == (60, 20, 40)
    assert found["batch_usd"]["value"] == pytest.approx(found["live_usd"]["value"] / 2)
    assert found["live_usd"]["low"] < found["live_usd"]["value"] < found["live_usd"]["high"]
    for options in (["--force"], ["--words", "60"], ["--model", "claude-opus-5-5"]):
        assert dry_run(*options)["unchanged"] == 0
    assert asyncio.run(store.runs()) == before


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_dear_run_that_nobody_can_be_asked_about_stops(
    capsys: pytest.CaptureFixture[str], letters: Path, options: list[str]
) -> None:
    code, out, err = result(capsys, "run", str(letters), *options)
    assert (code, out) == (Code.USAGE, "")
    assert re.search(r"About \$1\.\d\d live or \$0\.\d\d batch\. Add --yes to agree to that\.", err)
    assert "Nothing has been announced." in err


@pytest.mark.usefixtures("store")
def test_a_price_that_cannot_be_told_from_here_is_not_taken_for_nothing(
    capsys: pytest.CaptureFixture[str], letters: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCSUM_FETCH__FILE_ROOTS", "/mnt/elsewhere")
    manifest = tmp_path / "letters.jsonl"
    lines = [{"document_id": path.name, "uri": path.as_uri()} for path in letters.iterdir()]
    manifest.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    code, _, err = result(capsys, "run", str(manifest))
    assert code == Code.USAGE
    assert "60 documents cannot be read from here, so what they cost is not in it. Add --yes" in err


@pytest.mark.parametrize(("answer", "goes"), [("y\n", True), ("Yes\n", True), ("\n", False), ("", False)])
async def test_a_dear_run_asks_first(
    capsys: pytest.CaptureFixture[str],
    letters: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    goes: bool,
) -> None:
    from docsum.cli.quoting import agreed

    read, write = os.pipe()
    os.write(write, answer.encode())
    os.close(write)
    with os.fdopen(read) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert await agreed(_asked(letters), may_ask=True) == goes
    assert capsys.readouterr().err.endswith(" batch. Go? [y/N] ")


@pytest.mark.parametrize("model", ["claude-haiku-5-5", "local-extractive-1"])
async def test_what_costs_less_than_a_dollar_at_most_is_neither_read_nor_asked_about(
    capsys: pytest.CaptureFixture[str], letters: Path, model: str
) -> None:
    from docsum.cli.quoting import agreed

    cheap = replace(_asked(letters), recipe=Recipe(model), fetch=Fetch())  # nothing may be read
    assert await agreed(cheap, may_ask=False)
    assert capsys.readouterr().err == ""


def _asked(folder: Path) -> Asked:
    from docsum.cli.reading import Asked

    settings = load()
    source = open_lister().open(str(folder), sys.stdin.buffer)
    return Asked(source, settings, settings.fetch, settings.recipe())


async def test_a_sample_is_drawn_once(letters: Path, tmp_path: Path) -> None:
    from docsum.cli.sampling import drawn

    source = open_lister().open(str(letters), sys.stdin.buffer)
    sample = await drawn(RUN.id, source, 7, tmp_path, exists=False)
    again = await drawn(RUN.id, source, 7, tmp_path, exists=True)
    assert (again.manifest, again.tally.strata) == (sample.manifest, sample.tally.strata)
    assert again.tally.documents == 60
    whole = {entry.document_id: entry for entry in source.entries() if isinstance(entry, Listed)}
    drawn_ones = list(open_lister().open(str(sample.manifest), sys.stdin.buffer).entries())
    assert len(drawn_ones) == 7
    for entry in drawn_ones:
        assert isinstance(entry, Listed)
        assert entry == replace(whole[entry.document_id], occurred_at=entry.occurred_at)
    with pytest.raises(Exception, match="exists with another sample"):
        await drawn(RUN.id, source, 8, tmp_path, exists=True)
    other = UUID(int=RUN.id.int + 1)
    with pytest.raises(Exception, match="its sample is not here"):
        await drawn(other, source, 7, tmp_path, exists=True)


def test_the_command_line_changes_the_recipe_of_the_settings() -> None:
    settings = load(summary={"words": 70, "language": "de"})
    recipe = Order("x", RUN.id, words=30, model="claude-haiku-4-5", scanned="send-pdf").recipe(settings)
    assert (recipe.model, recipe.words, recipe.language) == ("claude-haiku-4-5", 30, "de")
    assert recipe.scanned == "send-pdf"


def test_the_same_id_is_the_same_run_or_an_error() -> None:
    again = replace(RUN, created_at=START + timedelta(hours=1), state=RunState.PUBLISHING)
    assert same_run(again, RUN) is RUN
    with pytest.raises(Exception, match="exists with another recipe"):
        same_run(replace(RUN, recipe=Recipe("claude-haiku-5-5")), RUN)


def test_the_demo_leaves_a_deployment_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCSUM_KAFKA__BOOTSTRAP_SERVERS", "kafka:9092")
    monkeypatch.setenv("DOCSUM_CLICKHOUSE__URL", "http://clickhouse:8123")
    for command in ("demo", "up"):
        code, _, err = result(capsys, command)
        assert code == Code.CONFIGURATION
        assert "DOCSUM_KAFKA__BOOTSTRAP_SERVERS" in err


# -- what is read from the store ---------------------------------------------------------------------------


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """A deployment whose store is in memory: one document done, one failed, one skipped."""
    store = MemoryStore()
    await store.save_run(RUN)
    written = START + timedelta(seconds=5)
    rows = [
        RunDocumentRow(RUN.id, "file:///data/letters/a.txt", State.DONE, "file:///a", 1, "", "", written),
        RunDocumentRow(
            RUN.id, "b", State.DEAD_LETTERED, "file:///b", 2, "encrypted", "It needs a password.", written
        ),
        RunDocumentRow(RUN.id, "c", State.SKIPPED, "file:///c", 1, "unchanged", "", written),
    ]
    stored = SummaryRow(
        document_id="file:///data/letters/a.txt",
        version=1,
        state=State.DONE,
        source_version="v1",
        uri="file:///a",
        summary=summary("=2+2 is what it says."),
        attributes={"team": "law"},
        run_id=RUN.id,
        origin=Coordinates("docsum.backfill", 0, 0),
        occurred_at=START,
        written_at=written,
    )
    await store.write(Rows(summaries=(stored,), run_documents=tuple(rows)))

    @asynccontextmanager
    async def open_store(settings: Settings) -> AsyncIterator[MemoryStore]:
        yield store

    monkeypatch.setattr("docsum.bootstrap.open_store", open_store)
    monkeypatch.setenv("DOCSUM_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("DOCSUM_CLICKHOUSE__URL", "http://127.0.0.1:1")
    return store


@pytest.mark.usefixtures("store")
def test_runs_are_listed_for_a_person_and_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = result(capsys, "runs", "ls")
    assert code == Code.OK
    assert "3f2a91c0" in out
    assert "finished" in out
    code, out, _ = result(capsys, "runs", "ls", "--json")
    found = json.loads(out)
    assert (found["run_id"], found["done"], found["dead_lettered"]) == (str(RUN.id), 1, 1)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("text", ["last", "3f2a", str(RUN.id)])
def test_a_run_is_shown_with_what_failed_and_what_to_do(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    code, out, _ = result(capsys, "runs", "show", text)
    assert code == Code.OK
    assert "encrypted" in out
    assert "Remove the password and run again." in out


@pytest.mark.usefixtures("store")
def test_watching_a_finished_run_tells_that_some_failed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = result(capsys, "runs", "watch", "last", "--json")
    assert code == Code.DEAD_LETTERS
    assert [json.loads(line)["remaining"] for line in out.splitlines()] == [0]


@pytest.mark.usefixtures("store")
def test_an_unknown_run_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = result(capsys, "runs", "show", "ffff")
    assert code == Code.USAGE
    assert "There is no run ffff" in err


def test_who_has_paused_resumed_and_cancelled_a_run_is_in_the_audit(
    capsys: pytest.CaptureFixture[str], store: MemoryStore
) -> None:
    waiting = RunDocumentRow(RUN.id, "d", State.QUEUED, "file:///d", 1, "", "", START)
    asyncio.run(store.write(Rows(run_documents=(waiting,))))
    for arguments in (("pause", "last", "--reason", "a check"), ("resume", "last"), ("cancel", "last")):
        assert result(capsys, "runs", *arguments)[0] == Code.OK
    assert [(row.who, row.action, row.detail, row.count) for row in asyncio.run(store.audits())] == [
        (who(), "runs cancel", f"{RUN.id} (letters): Cancelled by {who()}.", 1),
        (who(), "runs resume", f"{RUN.id} (letters)", 0),
        (who(), "runs pause", f"{RUN.id} (letters): a check", 0),
    ]


@pytest.mark.usefixtures("store")
def test_a_document_is_shown_by_its_id_or_its_path(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("file:///data/letters/a.txt", "/data/letters/a.txt", "/data/letters/../letters/a.txt"):
        code, out, _ = result(capsys, "documents", "show", name)
        assert code == Code.OK
        assert "A title" in out
    code, out, _ = result(capsys, "documents", "show", "b", "--json")
    found = json.loads(out)
    assert found["summary"] is None
    assert found["runs"][0]["reason"] == "encrypted"
    code, _, err = result(capsys, "documents", "show", "unheard-of")
    assert code == Code.USAGE
    assert "Nothing is known" in err


@pytest.mark.usefixtures("store")
def test_an_export_holds_every_document(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = result(capsys, "export")
    assert code == Code.OK
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["state"] for line in lines] == ["dead_lettered", "skipped", "done"]
    assert lines[2]["summary"] == "=2+2 is what it says."
    assert "3 documents" in err
    code, out, _ = result(capsys, "export", "--run", "3f2a", "-o", "out.csv")
    assert (code, out) == (Code.OK, "")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["dead_lettered", "skipped", "done"]
    assert rows[2]["summary"] == "'=2+2 is what it says."  # no formula for a spreadsheet
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]  # no draft is left


def test_no_colours_and_no_control_codes_without_a_terminal(
    capsys: pytest.CaptureFixture[str], store: MemoryStore
) -> None:
    _, out, err = result(capsys, "runs", "show", "last")
    assert "\x1b" not in out + err


# -- settings ----------------------------------------------------------------------------------------------


def test_settings_are_shown_with_where_they_come_from_and_secrets_masked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-very-secret")
    monkeypatch.setenv("DOCSUM_RETRY__DELAYS", "1s,2m")
    monkeypatch.setenv("DOCSUM_KAFKA__SCHEMA_REGISTRY_URL", "https://us:also-secret@registry:8081/a@b")
    (tmp_path / ".env").write_text("DOCSUM_SUMMARY__WORDS=99\n")
    found = {setting.name: (setting.value, setting.origin) for setting in described(load())}
    assert found["DOCSUM_MODEL__API_KEY"] == ("********", "ANTHROPIC_API_KEY")
    assert found["DOCSUM_RETRY__DELAYS"] == ("1s,2m", "environment")
    address = "https://us:********@registry:8081/a@b"
    assert found["DOCSUM_KAFKA__SCHEMA_REGISTRY_URL"] == (address, "environment")
    assert found["DOCSUM_SUMMARY__WORDS"] == ("99", ".env")
    assert found["DOCSUM_MODEL__TIMEOUT"] == ("2m", "default")
    code, out, err = result(capsys, "config", "show", "--json")
    assert code == Code.OK
    assert "very-secret" not in out + err
    assert "also-secret" not in out + err


def test_the_key_and_misspelt_settings_are_found_in_a_dotenv_too(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("ANTHROPIC_API_KEY=sk-of-the-file\nOTHERS=1\n")
    settings = load()
    assert settings.model.api_key.get_secret_value() == "sk-of-the-file"
    found = {setting.name: setting for setting in described(settings)}
    assert found["DOCSUM_MODEL__API_KEY"].origin == "ANTHROPIC_API_KEY"
    (tmp_path / ".env").write_text("DOCSUM_MODEL__NAM=x\n")
    with pytest.raises(ConfigurationError, match="no setting DOCSUM_MODEL__NAM"):
        load()
    (tmp_path / ".env").write_bytes(b"DOCSUM_MODEL__NAME=\xff\n")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load()


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as Kubernetes mounts a secret: names that lead to another folder of it."""
    folder = tmp_path / "secrets"
    (folder / "..data").mkdir(parents=True)
    monkeypatch.setenv("DOCSUM_SECRETS_DIR", str(folder))
    return folder


def test_secrets_may_be_files(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (secrets / "..data" / "DOCSUM_MODEL__API_KEY").write_text("from-a-file\n")
    (secrets / "DOCSUM_MODEL__API_KEY").symlink_to("..data/DOCSUM_MODEL__API_KEY")
    (secrets / "docsum_kafka__sasl_password").write_text("low")
    (secrets / "docsum_clickhouse__password").write_text("beaten")
    (secrets / "of_another_program").write_text("x")
    monkeypatch.setenv("DOCSUM_CLICKHOUSE__PASSWORD", "by the environment")
    settings = load()
    assert settings.model.api_key.get_secret_value() == "from-a-file"
    assert settings.kafka.sasl_password.get_secret_value() == "low"
    assert settings.clickhouse.password.get_secret_value() == "by the environment"
    found = {setting.name: setting for setting in described(settings)}
    assert (found["DOCSUM_MODEL__API_KEY"].value, found["DOCSUM_MODEL__API_KEY"].origin) == (
        "********",
        "file",
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("DOCSUM_MODEL__API_KY", b"x", "There is no setting DOCSUM_MODEL__API_KY. Did you mean"),
        ("DOCSUM_MODEL__API_KEY", b"\xff\xfe", "DOCSUM_SECRETS_DIR"),
        ("DOCSUM_MODEL__TIMEOUT", b"soon", "DOCSUM_MODEL__TIMEOUT is wrong"),
        ("other", b"x" * 20_000_000, "DOCSUM_SECRETS_DIR"),
    ],
)
def test_a_wrong_secret_file_is_one_sentence(secrets: Path, name: str, content: bytes, said: str) -> None:
    (secrets / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        load()


def test_a_missing_folder_of_secrets_is_an_error_only_where_it_was_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load()
    monkeypatch.setenv("DOCSUM_SECRETS_DIR", "/nowhere/at/all")
    with pytest.raises(ConfigurationError, match="DOCSUM_SECRETS_DIR"):
        load()


def test_topics_and_tables_are_printed_without_a_deployment(capsys: pytest.CaptureFixture[str]) -> None:
    assert "kafka-topics.sh" in result(capsys, "setup", "topics", "--print", "kafka")[1]
    assert "kind: KafkaTopic" in result(capsys, "setup", "topics", "--print", "strimzi")[1]
    assert "CREATE DATABASE" in result(capsys, "setup", "store", "--print", "sql")[1]
    everything = result(capsys, "setup", "--print", "kafka")[1]
    assert "kafka-topics.sh" in everything and "--allow-principal User:docsum-worker" in everything
    tables = result(capsys, "setup", "--print", "sql")[1]
    assert "CREATE DATABASE" in tables and "GRANT SELECT ON docsum.summaries TO docsum_reader;" in tables
    assert "docsum.tokens TO docsum_reader" not in tables
    assert "kind: KafkaUser" in result(capsys, "setup", "--print", "strimzi")[1]


def test_the_doctor_says_which_setting_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCSUM_TOPICS__PARTITIONS", "none")
    code, out, _ = result(capsys, "doctor")
    assert code == Code.FAILURE
    assert "problem settings: DOCSUM_TOPICS__PARTITIONS is wrong" in out


# -- words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cost", "text"),
    [("0", "$0"), ("0.000123", "$0.000123"), ("0.10", "$0.1"), ("1", "$1.00"), ("22.5", "$22.50")],
)
def test_money_is_readable(cost: str, text: str) -> None:
    assert money(Decimal(cost)) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.4 s"), (42.4, "42 s"), (60, "1 min 0 s"), (3_725, "1 h 2 min")]
)
def test_a_span_is_readable(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_a_first_line_is_cut_and_cannot_command_the_terminal() -> None:
    assert one_line("\n\n\x1b[31mRed and much too long\nsecond", 12) == "[31mRed and…"


def test_wide_characters_take_two_columns() -> None:
    assert one_line("会議議事録", 10) == "会議議事録"
    assert one_line("会議議事録", 9) == "会議議事…"


def test_a_pace_looks_at_the_last_half_minute() -> None:
    pace = Pace()
    pace.add(0, 0)
    assert pace.rate == 0
    pace.add(10, 100)
    assert pace.rate == 10
    for second in range(11, 60):
        pace.add(second, 100)
    assert pace.rate == 0


def test_the_time_that_is_left_is_told_once_everything_is_listed() -> None:
    progress = RunProgress(RUN.id, queued=100, done=50, dead_lettered=2, cost=Decimal("0.5"))
    assert counts(progress, 10, complete=False).endswith("failed 2 · 10.0/s · $0.5")
    assert "10 s left" in counts(progress, 10, complete=True)


def test_finished_is_derived() -> None:
    assert standing(RUN, RunProgress(RUN.id, done=1)) == "finished"
    assert standing(RUN, RunProgress(RUN.id, retrying=1)) == "running"
    interrupted = replace(RUN, state=RunState.INTERRUPTED)
    assert standing(interrupted, RunProgress(RUN.id)) == "publishing-interrupted"


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\tx"])
def test_a_cell_never_is_a_formula(text: str) -> None:
    assert _cell(text) == f"'{text}"


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("07:00", datetime(2026, 11, 29, 7, tzinfo=UTC)),
        ("23:30", datetime(2026, 11, 28, 23, 30, tzinfo=UTC)),
        ("2026-12-01T07:00", datetime(2026, 12, 1, 7, tzinfo=UTC)),
        ("2026-12-01T07:00+02:00", datetime(2026, 12, 1, 5, tzinfo=UTC)),
    ],
)
def test_a_time_that_is_coming(text: str, moment: datetime) -> None:
    assert coming(text, datetime(2026, 11, 28, 22, tzinfo=UTC)) == moment


@pytest.mark.parametrize("text", ["7", "25:00", "soon", "2026-11-01", "7:0"])
def test_what_is_no_time_to_come_is_refused(text: str) -> None:
    with pytest.raises(WrongUsage, match=r"--by|write 07:00"):
        coming(text, datetime(2026, 11, 28, 22, tzinfo=UTC))

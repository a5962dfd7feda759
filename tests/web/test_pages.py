"""What the pages show, from values in memory: every one of them, whatever is in the names and texts."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import pytest

from docsum.api.pages import looks
from docsum.api.pages.looks import distance, percent, prose, squeeze, url, visible
from docsum.errors import BrokerUnavailable, InvalidEvent
from docsum.models import (
    Batch,
    BatchItem,
    BatchState,
    Control,
    ControlState,
    DeliveryState,
    Lane,
    RunState,
    State,
    WebhookDelivery,
)
from tests.support.fakes import START, reference
from tests.web.house import RUN, House, row, worker

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "invoice\u202efdp.exe",
    "x" * 500,
    "line\nline",
    "a & b #?%2F/../",
    "\ud800 lone",
    "\u0000\u001b[31mred",
]


async def test_an_empty_page_says_what_to_do_next() -> None:
    browser = House().browser()
    assert "No runs yet" in (await browser.get("/")).text
    assert "No summaries yet" in (await browser.get("/documents")).text
    assert "Nothing has failed for good" in (await browser.get("/dead-letters")).text
    assert "docsum run FOLDER --lane batch" in (await browser.get("/batches")).text
    assert "docsum worker" in (await browser.get("/workers")).text
    assert "Nothing was paid" in (await browser.get("/spend")).text


async def test_a_list_of_runs_tells_state_progress_rate_cost_and_lane() -> None:
    house = House()
    await house.run(
        row("a"), row("b"), row("c", State.DEAD_LETTERED), row("d", State.QUEUED),
        created_at=START - timedelta(seconds=20),
    )  # fmt: skip
    house.answer("a", "1.50", RUN)
    page = await house.browser().get("/")
    assert "letters running" in page.text
    assert "75 % of 4, 1 failed" in page.text
    assert "0.1/s" in page.text
    assert "$1.50 backfill 20 s ago" in page.text
    assert 'title="2026-11-23 11:59:40 UTC"' in page.html


async def test_older_runs_are_on_the_next_page() -> None:
    house = House()
    for number in range(30):
        moment = START - timedelta(minutes=number)
        await house.run(run_id=UUID(int=number + 1), name=f"run-{number}", created_at=moment)
    browser = house.browser()
    first = await browser.get("/")
    assert "run-24" in first.text and "run-25" not in first.text
    second = await browser.get(first.html.partition('rel="next" href="')[2].partition('"')[0])
    assert "run-25" in second.text and "run-24" not in second.text
    assert (await browser.get("/?after=rubbish")).status == 422


async def test_troubles_stand_on_top_with_what_to_do() -> None:
    house = House(errors=[BrokerUnavailable("Kafka at broker:9092 does not answer.")], backlog=None)
    page = await house.browser().get("/")
    assert "1 thing needs a look Kafka at broker:9092 does not answer." in page.text
    assert page.title == "1 trouble · Runs · docsum"


async def test_a_run_tells_how_far_it_is_and_why_it_waits() -> None:
    house = House()
    await house.run(
        row("a", written_at=START), row("b", State.HELD), row("c", State.DEAD_LETTERED, reason="encrypted"),
        name="contracts",
    )  # fmt: skip
    await house.store.save_control(
        Control(RUN, ControlState.PAUSED, "Look at the scans.", budget=Decimal(20), changed_at=START)
    )
    house.answer("a", "2.5", RUN)
    page = await house.browser().get(f"/runs/{RUN}")
    assert page.title == "Paused at 67 % · contracts · docsum"
    assert "It is paused: Look at the scans." in page.text
    assert "$2.50 of $20.00" in page.text
    assert "Documents over time: at most 2 in 1 s" in page.text
    assert "all 3 done 1 dead-lettered 1 held 1" in page.text
    assert f'href="/runs/{RUN}/resume"' in page.html
    assert f'href="/runs/{RUN}/pause"' not in page.html


async def test_a_run_shows_its_documents_by_state_and_by_text() -> None:
    house = House()
    await house.run(
        *(row(f"doc-{n:03}") for n in range(60)), row("lost", State.DEAD_LETTERED, reason="empty")
    )
    browser = house.browser()
    first = await browser.get(f"/runs/{RUN}")
    assert "doc-049" in first.text and "doc-050" not in first.text
    following = first.html.partition('rel="next" href="')[2].partition('"')[0]
    assert "doc-050" in (await browser.get(following)).text
    failed = await browser.get(f"/runs/{RUN}?state=dead_lettered")
    assert "lost" in failed.text and "doc-001" not in failed.text
    assert "doc-017" in (await browser.get(f"/runs/{RUN}?q=017")).text
    assert (
        "No document of this run has “ nowhere ” in its id"
        in (await browser.get(f"/runs/{RUN}?q=nowhere")).text
    )


async def test_the_rest_of_a_run_comes_apart() -> None:
    house = House()
    await house.run(row("a", State.QUEUED), lane=Lane.BATCH, webhook="https://hooks.example.org/x")
    house.answer("a", "2.5", RUN)
    batch = Batch(
        "b1b1b1b1b1b1", 0, BatchState.APPLIED, 10, START, START, succeeded=8, expired=2, cost=Decimal("0.5")
    )
    await house.store.add_batch(batch, [BatchItem("f", "a", 1, RUN, 0, "m", 1, 1, batch.intent, "c")])
    await house.store.save_webhook_delivery(
        WebhookDelivery(
            "m1", RUN, "run.paused", "https://hooks.example.org/x", "{}", START, START, START, answer="503"
        )
    )
    page = await house.browser().get(f"/runs/{RUN}/more", part=True)
    assert "Slowest documents" in page.text and "1.5 s $2.50" in page.text
    assert "b1b1b1b1b1b1 applied" in page.text and "2 expired" in page.text
    assert "run.paused" in page.text and "503" in page.text
    assert "<html" not in page.html
    assert DeliveryState.PENDING.value in page.text


async def test_what_is_over_is_asked_for_no_more() -> None:
    house = House()
    await house.run(row("a", State.QUEUED))
    browser = house.browser()
    part = await browser.get(f"/runs/{RUN}", part=True)
    assert 'hx-trigger="every 2s"' in part.html and part.title == "0 % · letters · docsum"
    await house.run(row("a", written_at=START + timedelta(seconds=1)))
    over = await browser.get(f"/runs/{RUN}", part=True)
    assert "hx-trigger" not in over.html and over.title == "Finished · letters · docsum"


async def test_a_document_shows_its_summary_beside_the_facts() -> None:
    house = House()
    await house.run(row("doc-1"))
    await house.summary(warnings=("numbers_not_in_text",), coverage=0.5, truncated=True)
    house.answer()
    await house.dead_letter()
    browser = house.browser()
    assert "doc-1 A title" in (await browser.get("/documents?q=TITLE")).text
    page = await browser.get("/documents/show?id=doc-1")
    for said in ("A summary.", "numbers_not_in_text", "50 % of the text, cut at a limit", "team law",
                 "Paid, ever $0.25", "letters done", "docsum.dlq[0]@0"):  # fmt: skip
        assert said in page.text, said
    assert (await browser.get("/documents/show?id=unknown")).status == 404


async def test_dead_letters_are_grouped_with_what_to_do() -> None:
    house = House()
    for number in range(3):
        await house.dead_letter(number, f"doc-{number}")
    await house.dead_letter(9, "doc-9", "scanned", state="parked")
    browser = house.browser()
    page = await browser.get("/dead-letters")
    assert "encrypted 3 The document needs a password. Remove the password and run again." in page.text
    assert "scanned" not in page.text
    assert "scanned" in (await browser.get("/dead-letters?state=parked")).text
    listed = await browser.get("/dead-letters/list?reason=encrypted")
    assert listed.text.count("docsum.dlq[0]@") == 3
    assert (await browser.get("/dead-letters?state=nonsense")).status == 422


async def test_one_dead_letter_shows_event_headers_and_attempts() -> None:
    house = House()
    place = await house.dead_letter()
    house.codec.known[b"event of doc-1"] = reference(title="The lease")
    page = await house.browser().get(f"/dead-letters/show?id={place}")
    for said in ("The lease", "encrypted The document needs a password.", "0xff", "extract encrypted"):
        assert said in page.text, said
    assert "<b>" not in page.html.replace("<bdi", "")


async def test_what_cannot_be_decoded_is_dumped() -> None:
    house = House()
    place = await house.dead_letter()
    house.codec.known[b"event of doc-1"] = InvalidEvent("It is no JSON.")
    page = await house.browser().get(f"/dead-letters/show?id={place}")
    assert "There is no event: It is no JSON." in page.text
    assert f"0000  {b'event of doc-1'.hex(' '):48} event of doc-1" in page.html


async def test_workers_show_what_they_do_and_what_waits() -> None:
    house = House()
    hold = "2 held at summarise: model_unreachable since 11:58:00 UTC, next try 12:00:05 UTC. Nobody answers."
    await house.store.beat(worker(holds=(hold,), gate="3 of 64 calls"))
    page = await house.browser().get("/workers")
    for said in ("worker-1", "0-1", "3 of 64 calls", hold, "docsum.documents live 3", "Held 2 events"):
        assert said in page.text, said
    assert "Check the network and ANTHROPIC_BASE_URL" in page.text


@pytest.mark.parametrize("by", ["run", "model", "day", "reason"])
async def test_money_is_counted_by_what_is_asked_for(by: str) -> None:
    house = House(daily_budget=Decimal(10))
    await house.run(row("doc-1"))
    house.answer(run_id=RUN)
    house.answer("doc-2", "0.75")
    page = await house.browser().get(f"/spend?by={by}&since=ever")
    assert "Today (UTC) $1.00 of $10.00" in page.text
    expected = {"run": "live events", "model": "m 2", "day": "2026-11-23", "reason": "ok a usable answer"}
    assert expected[by] in page.text
    assert page.text.count("$1.00") >= 2


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
async def test_whatever_is_in_a_name_stays_text(name: str) -> None:
    house = House()
    known = name.replace("\ud800", "?").replace("\0", "?")
    await house.run(
        row(known, State.DEAD_LETTERED, reason="encrypted", message=name), name=name, source=name,
        recipe=replace(house.app.state.service.recipe, instructions=name),
    )  # fmt: skip
    await house.summary(
        known, name, title=name, key_points=(name,), warnings=(name,), document_type=name, language=name
    )
    place = await house.dead_letter(0, known, message=name, document_version=99)
    house.codec.known[b"event of " + known.encode()] = reference(known, title=name, attributes={name: name})
    await house.store.beat(worker(name, gate=name))
    browser = house.browser()
    for path in (
        "/", f"/runs/{RUN}", f"/runs/{RUN}?q={url(name)}", f"/runs/{RUN}/more", f"/runs/{RUN}/cancel",
        "/documents", f"/documents?q={url(name)}", f"/documents/show?id={url(known)}", "/dead-letters",
        "/dead-letters/list?reason=encrypted", f"/dead-letters/list?reason={url(name[:90])}",
        f"/dead-letters/show?id={place}", "/workers", "/spend",
    ):  # fmt: skip
        page = await browser.get(path)
        assert page.status == 200, (path, page.text)
        shown = re.sub(r'type="search" value="[^"]*"', "", page.html)  # what was asked for, to ask again
        for bad in ("<script>alert", "<img src=x", "onmouseover='", "49{%", "\u202e", "\x1b", "\x00"):
            assert bad not in shown, (path, bad)
    page = await browser.get(f"/documents/show?id={url(known)}")
    if "\u202e" in name:
        assert r"invoice\u202efdp.exe" in page.text


async def test_clickhouse_down_is_said_and_what_is_known_is_shown() -> None:
    house = House()
    house.down()
    browser = house.browser()
    runs = await browser.get("/")
    assert runs.status == 200
    assert "ClickHouse at http://store:8123 does not answer." in runs.text
    assert "The runs cannot be shown" in runs.text
    workers = await browser.get("/workers")
    assert workers.status == 200 and "3 events" in workers.text and "In flight not known" in workers.text
    for path in ("/documents", "/dead-letters", "/batches", "/spend", f"/runs/{RUN}"):
        page = await browser.get(path)
        assert page.status == 503 and "<html" in page.html, path
        assert "ClickHouse at http://store:8123 does not answer." in page.text
        assert "work goes on by itself" in page.text
    assert (await browser.get("/v1/runs")).headers["content-type"] == "application/problem+json"


async def test_kafka_down_leaves_what_clickhouse_tells() -> None:
    house = House(errors=[BrokerUnavailable("Kafka at broker:9092 does not answer.")], backlog=None)
    await house.run(row("a"))
    browser = house.browser()
    assert "letters" in (await browser.get("/")).text
    workers = await browser.get("/workers")
    assert "Waiting not known" in workers.text and "Kafka does not answer" in workers.text


async def test_what_is_not_there_is_a_page_with_a_sentence() -> None:
    house = House()
    browser = house.browser()
    gone = await browser.get(f"/runs/{RUN}")
    assert gone.status == 404 and f"There is no run {RUN}." in gone.text and "<nav" in gone.html
    assert (await browser.get("/runs/rubbish")).status == 422
    assert (await browser.get("/nowhere")).status == 404
    elsewhere = await browser.client.get("/", headers={"Host": "docsum.example.org"})
    assert elsewhere.status_code == 403 and "answers to 127.0.0.1 and localhost only" in elsewhere.text
    assert elsewhere.headers["content-type"].startswith("text/html")
    api = await browser.get("/v1/nowhere")
    assert api.status == 404 and api.headers["content-type"] == "application/problem+json"


async def test_files_of_the_page_are_found_and_nothing_else() -> None:
    browser = House().browser()
    page = await browser.get("/")
    for name, media_type in (
        ("page.css", "text/css"),
        ("htmx.min.js", "text/javascript"),
        ("page.js", "text/javascript"),
    ):
        address = page.html.partition(f"/static/{name}?v=")[2].partition('"')[0]
        found = await browser.get(f"/static/{name}?v={address}")
        assert found.headers["content-type"].startswith(media_type)
        assert "immutable" in found.headers["cache-control"]
    for name in ("nothing.css", "..%2Flooks.py", "looks.py", "%2e%2e/session.py"):
        assert (await browser.get(f"/static/{name}")).status == 404


async def test_names_that_strangers_ask_for_are_not_kept() -> None:
    def kept() -> int:
        caches = [each for each in vars(looks).values() if hasattr(each, "cache_info")]
        return sum(each.cache_info().currsize for each in caches)

    browser, seen = House(is_open=False).browser(), set()
    for name in "abcdef":
        assert (await browser.get(f"/static/{name}.css")).status == 404
        seen.add(kept())
    assert len(seen) == 1


async def test_no_page_has_inline_scripts_or_styles() -> None:
    house = House()
    await house.run(row("a", State.QUEUED))
    browser = house.browser()
    for path in ("/", f"/runs/{RUN}", "/runs/new", "/workers", "/spend"):
        page = await browser.get(path)
        assert "script-src 'self'; style-src 'self'" in page.headers["content-security-policy"]
        assert " style=" not in page.html and "<style" not in page.html and "<script>" not in page.html
        assert " onclick=" not in page.html


async def test_a_run_that_was_interrupted_can_go_on() -> None:
    house = House()
    await house.run(row("a", State.QUEUED), state=RunState.INTERRUPTED, problem="The folder is not there.")
    page = await house.browser().get(f"/runs/{RUN}")
    assert "The folder is not there." in page.text and f'href="/runs/{RUN}/resume"' in page.html


def test_of_a_long_name_both_ends_are_shown() -> None:
    assert squeeze("a" * 30 + "b" * 30, 9) == "aaa…bbbbb"
    assert squeeze("short", 9) == "short"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "just now"), (59, "59 s ago"), (61, "1 min ago"), (5_400, "1 h ago"), (90_000, "25 h ago"),
     (200_000, "2 d ago"), (-90, "in 1 min"), (-5, "in 5 s")],
)  # fmt: skip
def test_times_are_told_in_one_unit(seconds: float, said: str) -> None:
    assert distance(seconds) == said


@pytest.mark.parametrize(
    ("share", "said"), [(0, "0 %"), (0.001, "<1 %"), (0.624, "62 %"), (0.9999, "99 %"), (1, "100 %")]
)
def test_a_share_is_whole_only_at_its_end(share: float, said: str) -> None:
    assert percent(share) == said


def test_what_joins_letters_stays_and_what_turns_them_does_not() -> None:
    assert visible("10\u202f000\u00a0€") == "10 000 €"
    assert visible("exe.\u202efdp") == r"exe.\u202efdp"
    assert str(prose("می\u200cخواهم <b>")) == "می\u200cخواهم &lt;b&gt;"
    assert r"\u202e" in str(prose("\u202e"))

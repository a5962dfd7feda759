"""What can be done on the pages, by whom, after which question; and what is refused."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal

import pytest

from docsum.models import (
    ALL_WORK,
    Control,
    ControlState,
    Scope,
    State,
)
from tests.support.fakes import START, reference
from tests.support.waiting import within_turns
from tests.web.house import HOST, RUN, House, row

READ, SUBMIT, ADMIN = Scope.READ, Scope.SUBMIT, Scope.ADMIN
DOCUMENTS = "doc-1 file:///documents/1.txt\nfile:///documents/2.txt"


async def audits(house: House) -> list[tuple[str, str, str]]:
    return [(each.who, each.action, each.detail) for each in await house.store.audits()]


# -- forms that are not ours -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        f"/runs/{RUN}/pause", f"/runs/{RUN}/resume", f"/runs/{RUN}/cancel", "/runs/new",
        "/dead-letters/replay",
        "/dead-letters/discard", "/pause-all", "/resume-all", "/sign-out", "/sign-in",
    ],
)  # fmt: skip
@pytest.mark.parametrize("token", ["", "0" * 64, "not ascii: é"])
async def test_a_form_without_our_token_is_refused(path: str, token: str) -> None:
    house = House()
    await house.run(row("a", State.QUEUED))
    browser = house.browser()
    await browser.get("/")
    page = await browser.post(path, {"form": token, "reason": "evil"})
    assert page.status == 403
    assert "nothing was done" in page.text and "<html" in page.html
    assert not await audits(house)


async def test_a_form_of_another_browser_is_refused() -> None:
    house = House()
    await house.run(row("a", State.QUEUED))
    theirs = (await house.browser().get(f"/runs/{RUN}/cancel")).form_token
    mine = house.browser()
    await mine.get("/")
    assert (await mine.post(f"/runs/{RUN}/cancel", {"form": theirs})).status == 403
    assert (await house.store.control(RUN)).state is ControlState.RUNNING


async def test_the_pages_of_others_and_other_bodies_are_refused() -> None:
    house = House()
    browser = house.browser()
    token = (await browser.get("/pause-all")).form_token
    fields = {"form": token, "reason": "evil"}
    assert (await browser.post("/pause-all", fields, Origin="http://evil.example")).status == 403
    assert (await browser.post("/pause-all", fields, Origin="null")).status == 403
    json = await browser.client.post("/pause-all", json=fields)
    assert json.status_code == 422
    assert not await audits(house)
    assert (await browser.post("/pause-all", fields, Origin=f"http://{HOST}")).status == 200


async def test_our_own_forms_come_with_an_origin() -> None:
    """Without a referrer policy of that kind browsers say `Origin: null`."""
    page = await House().browser().get("/")
    assert page.headers["referrer-policy"] == "same-origin"


# -- who may -----------------------------------------------------------------------------------------------


async def test_without_a_token_there_is_only_the_door() -> None:
    house = House(is_open=False)
    await house.run(row("a"))
    browser = house.browser()
    page = await browser.get(f"/runs/{RUN}?q=a&state=done")
    assert "Sign in" in page.text and "letters" not in page.text
    assert f'value="/runs/{RUN}?q=a&amp;state=done"' in page.html
    part = await browser.client.get("/", headers={"HX-Request": "true"}, follow_redirects=False)
    assert part.status_code == 401 and part.headers["hx-refresh"] == "true"


async def test_signing_in_keeps_the_token_in_a_cookie_that_only_pages_read() -> None:
    house = House(is_open=False)
    await house.run(row("a"))
    secret = await house.token(READ)
    browser = house.browser()
    page = await browser.sign_in(secret, f"/runs/{RUN}")
    assert page.title == "Finished · letters · docsum" and "Signed in as ops" in page.text
    assert browser.cookies["docsum_token"] == secret
    assert secret not in page.html
    assert (await browser.get("/v1/runs")).status == 401
    await browser.post("/sign-out", {"form": page.form_token})
    assert "docsum_token" not in browser.cookies
    assert "Sign in" in (await browser.get("/")).text


@pytest.mark.parametrize(("scheme", "secure"), [("http", False), ("https", True)])
async def test_the_cookie_is_hidden_from_scripts_and_other_sites(scheme: str, secure: bool) -> None:
    house = House(is_open=False)
    secret = await house.token(READ)
    browser = house.browser(scheme)
    asked = await browser.get("/sign-in")
    answer = await browser.client.post(
        "/sign-in", data={"form": asked.form_token, "token": secret}, follow_redirects=False
    )
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert ("Secure" in cookie) == secure


async def test_a_wrong_or_revoked_token_does_not_open() -> None:
    house = House(is_open=False)
    browser = house.browser()
    page = await browser.sign_in("docsum_wrong")
    assert page.status == 403 and "not valid" in page.text
    assert "docsum_token" not in browser.cookies
    page = await browser.sign_in(await house.token(SUBMIT))
    assert page.status == 403 and "may not read" in page.text
    browser.client.cookies.set("docsum_token", "docsum_guessed")
    assert "Sign in" in (await browser.get("/")).text


@pytest.mark.parametrize(
    "after", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/ x"]
)
async def test_after_signing_in_one_stays_here(after: str) -> None:
    house = House(is_open=False)
    secret = await house.token(READ)
    browser = house.browser()
    asked = await browser.get("/sign-in")
    fields = {"form": asked.form_token, "token": secret, "next": after}
    answer = await browser.client.post("/sign-in", data=fields, follow_redirects=False)
    assert answer.headers["location"] == "/"


@pytest.mark.parametrize(
    ("scopes", "shown", "hidden"),
    [
        ((READ,), [], ["/runs/new", f"{RUN}/pause", "/cancel", "/replay?", "/discard?", "/pause-all"]),
        ((READ, SUBMIT), ["/runs/new", f"{RUN}/pause", "/cancel"], ["/replay?", "/discard?", "/pause-all"]),
        ((READ, ADMIN), ["/replay?", "/discard?", "/pause-all"], ["/runs/new", '/pause"', "/cancel"]),
    ],
)
async def test_what_a_token_may_not_do_is_not_shown_and_refused(
    scopes: tuple[Scope, ...], shown: list[str], hidden: list[str]
) -> None:
    house = House(is_open=False)
    await house.run(row("a", State.QUEUED))
    place = await house.dead_letter()
    house.codec.known[b"event of doc-1"] = reference()
    browser = house.browser()
    await browser.sign_in(await house.token(*scopes))
    pages = ["/", f"/runs/{RUN}", "/dead-letters", f"/dead-letters/show?id={place}", "/workers", "/documents"]
    html = "".join([(await browser.get(path)).html for path in pages])
    links = " ".join(re.findall(r'href="([^"]+)"', html))
    assert all(each in links for each in shown)
    assert not any(
        f"{each} " in f"{links} " if each.endswith('"') else each in links
        for each in hidden
        if each != '/pause"'
    )
    for path, scope in (
        ("/runs/new", SUBMIT), (f"/runs/{RUN}/cancel", SUBMIT), ("/pause-all", ADMIN),
        ("/dead-letters/replay?reason=encrypted", ADMIN), ("/dead-letters/discard?reason=encrypted", ADMIN),
    ):  # fmt: skip
        page = await browser.get(path)
        assert page.status == (200 if scope in scopes else 403), path
        if scope not in scopes:
            assert f"has not the scope '{scope}'" in page.text
            token = (await browser.get("/")).form_token
            sent = await browser.post(
                path.partition("?")[0], {"form": token, "reason": "x", "of": "encrypted"}
            )
            assert sent.status == 403
    assert not await audits(house)


# -- runs --------------------------------------------------------------------------------------------------


async def test_a_run_is_started_after_a_look_at_what_it_will_be() -> None:
    house = House()
    browser = house.browser()
    asked = await browser.get("/runs/new")
    fields = asked.hidden() | {
        "documents": DOCUMENTS, "name": "two", "lane": "backfill", "budget": "12.50", "words": "80",
        "language": "en", "limit": "2", "force": "yes", "webhook": "https://example.org/told",
        "instructions": "Who wants\r\nwhat?",
    }  # fmt: skip
    look = await browser.post("/runs/new", fields)
    assert "Tells https://example.org/told" in look.text and "bought again" in look.text
    assert "Start the run two ?" in look.text and "2 documents, listed by you" in look.text
    assert "$12.50" in look.text and not await house.store.runs()
    page = await browser.post("/runs/new", {**look.hidden(), "confirmed": "yes"})
    assert page.title == "0 % · two · docsum"
    again = await browser.post("/runs/new", {**look.hidden(), "confirmed": "yes"})
    assert again.title == page.title
    (run,) = await house.store.runs()
    assert (run.recipe.words, run.recipe.language, run.recipe.instructions) == (80, "en", "Who wants\nwhat?")
    assert run.control and run.control.budget == Decimal("12.5")
    assert (run.limit, run.force, run.webhook) == (2, True, "https://example.org/told")
    names = [each.document_id for each in await house.store.documents_of(run.id)]
    assert names == ["doc-1", "file:///documents/2.txt"]
    assert ("local", "runs begin", f"{run.id} (two): upload") in await audits(house)


async def test_a_source_is_checked_and_can_be_changed_before_it_starts() -> None:
    house = House()
    browser = house.browser()
    asked = await browser.get("/runs/new")
    look = await browser.post("/runs/new", asked.hidden() | {
        "source": "/letters/2026", "lane": "batch", "by": "2126-12-01T07:00",
    })  # fmt: skip
    assert "Every document of /letters/2026" in look.text and "Lane batch" in look.text
    assert "By 2126-12-01 07:00" in look.text
    back = await browser.post("/runs/new", {**look.hidden(), "back": "yes"})
    assert 'value="/letters/2026"' in back.html and '<option value="batch" selected>' in back.html


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "Say what to summarise"),
        ({"source": "/a", "documents": DOCUMENTS}, "not both"),
        ({"source": "/secret/papers"}, "The workers may not read /secret"),
        ({"source": "letters"}, "give an absolute path"),
        ({"documents": "a file:///a\nb ftp://b"}, "Documents, line 2: the last word of a line is an address"),
        ({"source": "/a", "budget": "much"}, "Budget: write an amount"),
        ({"source": "/a", "words": "5"}, "Words: Input should be greater"),
        ({"source": "/a", "words": "many"}, "Words: write a whole number."),
        ({"source": "/a", "language": "English"}, "Language: write same"),
        ({"source": "/a", "lane": "express"}, "Lane:"),
        ({"source": "/a", "limit": "0"}, "Limit: Input should be greater"),
        ({"source": "/a", "by": "soon", "lane": "batch"}, "By:"),
        ({"source": "/a", "by": "2026-12-01T07:00"}, "by is for the lane batch"),
        ({"source": "/a\u202eb"}, "Source: it holds a character that cannot be printed"),
    ],
)
async def test_a_wrong_form_says_what_is_wrong_and_keeps_what_was_written(
    fields: dict[str, str], said: str
) -> None:
    house = House()
    browser = house.browser()
    asked = await browser.get("/runs/new")
    page = await browser.post("/runs/new", asked.hidden() | {"name": "kept"} | fields)
    assert page.status == 422 and said in page.text
    assert 'value="kept"' in page.html
    assert not await house.store.runs()


async def test_a_run_is_paused_resumed_and_cancelled_with_a_question_before_each() -> None:
    house = House()
    await house.run(row("a", State.QUEUED))
    browser = house.browser()
    asked = await browser.get(f"/runs/{RUN}/pause")
    assert "Pause letters?" in asked.text
    assert (await house.store.control(RUN)).state is ControlState.RUNNING
    page = await browser.confirm(f"/runs/{RUN}/pause", reason="Look at the scans.")
    assert "It is paused: Look at the scans." in page.text
    page = await browser.confirm(f"/runs/{RUN}/resume", accept="yes")
    control = await house.store.control(RUN)
    assert control.state is ControlState.RUNNING and control.unguarded
    page = await browser.confirm(f"/runs/{RUN}/cancel", reason="Wrong folder.")
    assert page.title == "Cancelled at 100 % · letters · docsum"
    assert [action for _, action, _ in await audits(house)] == ["runs cancel", "runs resume", "runs pause"]
    refused = await browser.confirm(f"/runs/{RUN}/pause")
    assert refused.status == 409 and "that is final" in refused.text


async def test_a_spent_run_asks_for_a_larger_budget() -> None:
    house = House()
    await house.run(row("a", State.HELD))
    house.answer("a", "5", RUN)
    await house.store.save_control(
        Control(RUN, ControlState.PAUSED, "Its budget is spent.", budget=Decimal(5), changed_at=START)
    )
    browser = house.browser()
    asked = await browser.get(f"/runs/{RUN}/resume")
    assert "It has $5.00 spent of $5.00." in asked.text and 'value="10"' in asked.html
    assert (await browser.confirm(f"/runs/{RUN}/resume", budget="5")).status == 409
    assert (await browser.confirm(f"/runs/{RUN}/resume", budget="lots")).status == 422
    await browser.confirm(f"/runs/{RUN}/resume", budget="10")
    assert (await house.store.control(RUN)).budget == Decimal(10)


async def test_an_action_on_a_run_that_is_not_there_is_a_page() -> None:
    browser = House().browser()
    for what in ("pause", "resume", "cancel"):
        assert (await browser.get(f"/runs/{RUN}/{what}")).status == 404


# -- dead letters ------------------------------------------------------------------------------------------


async def test_a_replay_shows_first_what_it_would_do_then_how_far_it_is() -> None:
    house = House()
    place = await house.dead_letter()
    await house.dead_letter(1, "doc-2", replay_count=2)
    house.codec.known = {b"event of doc-1": reference(), b"event of doc-2": reference("doc-2")}
    browser = house.browser()
    asked = await browser.get("/dead-letters/replay?reason=encrypted")
    assert "Replay 1 dead letter?" in asked.text and "encrypted 1 1 0" in asked.text
    assert not house.publisher.copies and not await audits(house)
    page = await browser.confirm("/dead-letters/replay?reason=encrypted", rate="50")
    assert "Replay" in page.text
    await within_turns(lambda: len(house.publisher.copies) == 1)
    address = re.search(r"/dead-letters/replays/[0-9a-f-]{36}", page.html)
    assert address
    service = house.app.state.service
    await within_turns(lambda: service.replays.newest[0].state == "done")
    done = await browser.get(address[0], part=True)
    assert "All of them have gone." in done.text and "Replayed 1 of 1 Parked 1" in done.text
    assert "hx-trigger" not in done.html
    assert (await audits(house))[0][1] == "dlq replay"
    assert "replayed" in (await browser.get(f"/dead-letters/show?id={place}")).text


async def test_a_replay_whose_first_ones_have_no_end_yet_does_not_say_that_they_failed() -> None:
    house = House()
    for number in range(12):
        await house.dead_letter(number, f"doc-{number}")
    page = await house.browser().confirm("/dead-letters/replay?reason=encrypted", rate="50", sample="yes")
    address = re.search(r"/dead-letters/replays/[0-9a-f-]{36}", page.html)
    assert address
    service = house.app.state.service
    await within_turns(lambda: service.replays.newest[0].state == "stopped", 20_000)
    done = await house.browser().get(address[0], part=True)
    assert "0 helped, 0 failed again, 10 under way" in done.text
    assert "the cause is still there" not in done.text
    assert "Too many of the first ones are still under way, so nothing more goes" in done.text


async def test_one_dead_letter_can_be_replayed_and_discarded_alone() -> None:
    house = House()
    place, other = await house.dead_letter(), await house.dead_letter(1, "doc-2")
    browser = house.browser()
    assert "Replay 1 dead letter?" in (await browser.get(f"/dead-letters/replay?id={place}")).text
    asked = await browser.get(f"/dead-letters/discard?id={place}")
    assert "Discard this dead letter?" in asked.text
    page = await browser.confirm(f"/dead-letters/discard?id={place}", reason="An archive.")
    assert "1 dead letter is discarded." in page.text
    states = {each.dead_letter: each.state for each in house.store.dead_letter_rows.values()}
    assert states == {place: "discarded", other: "open"}
    assert await audits(house) == [("local", "dlq discard", f"{place}: An archive.")]
    assert (await browser.get(f"/dead-letters/discard?id={place}")).status == 409


async def test_what_fails_while_the_question_stands_open_is_not_discarded() -> None:
    house = House()
    place, browser = await house.dead_letter(), house.browser()
    asked = await browser.get("/dead-letters/discard?reason=encrypted")
    assert "Discard this dead letter?" in asked.text
    house.clock.advance(timedelta(minutes=5))
    later = await house.dead_letter(1, "doc-2", failed_at=house.clock.now())
    house.clock.advance(timedelta(minutes=5))
    fields = {**asked.hidden(), "reason": "Archives."}
    assert (await browser.post("/dead-letters/discard", {**fields, "until": "soon"})).status == 422
    page = await browser.post("/dead-letters/discard", fields)
    assert "1 dead letter is discarded." in page.text
    states = {each.dead_letter: each.state for each in house.store.dead_letter_rows.values()}
    assert states == {place: "discarded", later: "open"}


async def test_dead_letters_are_not_given_up_without_a_reason() -> None:
    house = House()
    await house.dead_letter()
    browser = house.browser()
    assert (await browser.confirm("/dead-letters/discard?reason=encrypted", reason=" ")).status == 422
    assert not await audits(house)


@pytest.mark.parametrize("query", ["", "?id=rubbish", "?reason="])
async def test_a_replay_must_say_which(query: str) -> None:
    browser = House().browser()
    assert (await browser.get(f"/dead-letters/replay{query}")).status == 422
    assert (await browser.get(f"/dead-letters/discard{query}")).status == 422


async def test_a_replay_that_nobody_knows_is_a_page() -> None:
    page = await House().browser().get(f"/dead-letters/replays/{RUN}")
    assert page.status == 404 and "what it moved stays moved" in page.text


# -- all work ----------------------------------------------------------------------------------------------


async def test_all_work_is_paused_with_a_reason_and_goes_on() -> None:
    house = House(is_open=False)
    browser = house.browser()
    await browser.sign_in(await house.token(READ, ADMIN, name="night shift"))
    assert (await browser.confirm("/pause-all", reason="")).status == 422
    page = await browser.confirm("/pause-all", reason="The provider is changed")
    assert "All work is paused by night shift" in page.text and 'href="/resume-all"' in page.html
    assert (await house.store.control(ALL_WORK)).state is ControlState.PAUSED
    page = await browser.confirm("/resume-all")
    assert 'href="/pause-all"' in page.html
    assert (await house.store.control(ALL_WORK)).state is ControlState.RUNNING
    assert [each[:2] for each in await audits(house)] == [
        ("night shift", "resume --all"),
        ("night shift", "pause --all"),
    ]
    assert "The provider is changed" in (await browser.get("/spend")).text

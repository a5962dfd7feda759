"""The page in a real browser, on a real local stack: Chromium, Kafka, the ClickHouse engine, workers."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    expect,
    sync_playwright,
)

from docsum.local.loopback import free_port
from tests.support import documents
from tests.support.deployment import Deployment, ModelServer, until

pytestmark = pytest.mark.timeout(300)

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
TEXT = "The council met on day {}. It agreed to repair the bridge over the river before winter. "
HOSTILE = '"onmouseover="alert(1)" <script>alert(1)<∕script> \u202efdp.txt'
WITHIN = 30_000  # milliseconds, for what workers do
_WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => window.violations.push(e.violatedDirective));
"""


class Stack:
    """The local stack, and a folder that its workers may read."""

    def __init__(self, folder: Path) -> None:
        self.papers = folder / "papers"
        self.papers.mkdir()
        for number in range(30):
            text = f"Minutes {number}\n\n" + TEXT.format(number) * 20
            (self.papers / f"minutes-{number:02}.txt").write_text(text)
        (self.papers / HOSTILE).write_text(TEXT.format("hostile") * 20)
        self.locked = self.papers / "locked.pdf"
        self.locked.write_bytes(documents.encrypted_pdf())
        (self.papers / "scan.pdf").write_bytes(documents.scanned_pdf())
        self.port = free_port()
        self.deployment = Deployment(
            folder, DOCSUM_API__PORT=str(self.port), DOCSUM_FETCH__FILE_ROOTS=str(folder)
        )
        self.deployment.docsum("up", "-d")
        self.url = f"http://127.0.0.1:{self.port}"
        self.model = self.deployment.state.addresses["model"]

    def slow(self, seconds: float) -> None:
        """How long a call takes from now on; 0: as it did."""
        rules = [{"kind": "slow_headers", "seconds": seconds}] if seconds else []
        ModelServer.put(_At(self.model), "/_faults", rules)  # type: ignore[arg-type]  # it needs no more


class _At:
    def __init__(self, url: str) -> None:
        self.url = url


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    found = Stack(tmp_path_factory.mktemp("page"))
    yield found
    found.deployment.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path, "The tests of the page need Chromium: .ci/need-chromium installs it."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """A browser tab that notes whatever should not happen."""

    def __init__(self, browser: Browser, stack: Stack, **options: Any) -> None:  # Any: of a context
        self.context: BrowserContext = browser.new_context(base_url=stack.url, **options)
        self.context.add_init_script(_WATCH)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", self._request)
        self.forgives = False  # answers that say an error are expected

    def _console(self, message: ConsoleMessage) -> None:
        is_status = "the server responded with a status of" in message.text
        if message.type in ("error", "warning") and not (self.forgives and is_status):
            self.said.append(message.text)

    def _request(self, request: Request) -> None:
        self.asked.append(request.url)

    def close(self) -> None:
        """Fails for console errors, requests to elsewhere, and breaches of the content policy."""
        violations = self.page.evaluate("window.violations")
        self.context.close()
        assert not self.said, self.said
        assert not violations, violations
        assert {urlsplit(url).hostname for url in self.asked} <= {"127.0.0.1"}, self.asked


@pytest.fixture
def tab(chromium: Browser, stack: Stack) -> Iterator[Tab]:
    made = Tab(chromium, stack, viewport={"width": 1280, "height": 800})
    yield made
    made.close()


def start(page: Page, source: Path, name: str) -> None:
    """By the form, to the page of the run."""
    page.goto("/")
    page.get_by_role("link", name="Start a run").first.click()
    page.get_by_label("Source").fill(str(source))
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Look at it first").click()
    expect(page.get_by_role("heading")).to_contain_text(f"Start the run {name}")
    page.get_by_role("button", name="Start the run").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(name)


# In the order in which they stand: the first one makes what the others look at.


def test_a_run_is_started_and_watched_to_its_end_without_a_reload(tab: Tab, stack: Stack) -> None:
    page = tab.page
    start(page, stack.papers, "papers")
    page.evaluate("window.sameDocument = true")
    expect(page).to_have_title("Finished · papers · docsum", timeout=WITHIN)
    expect(page.get_by_role("status").first).to_contain_text("100 % of 33 documents")
    expect(page.get_by_role("link", name="2 failed")).to_be_visible()
    expect(page.get_by_text("Slowest documents")).to_be_visible(timeout=WITHIN)
    assert page.evaluate("window.sameDocument"), "it was loaded anew"
    expect(page.locator("#live")).not_to_have_attribute("hx-trigger", re.compile("every"))
    seen = len(tab.asked)
    page.wait_for_timeout(4_500)  # two times two seconds: nobody asks any more
    assert all("/more" in url for url in tab.asked[seen:])


def test_hostile_names_are_shown_as_text(tab: Tab) -> None:
    page = tab.page
    page.goto("/documents?q=onmouseover")
    link = page.get_by_role("link", name=re.compile("onmouseover"))
    expect(link).to_contain_text(r"\u202efdp.txt")
    link.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("onmouseover")
    expect(page.get_by_text("It agreed to repair the bridge").first).to_be_visible()
    assert page.locator("[onmouseover]").count() == 0


def test_a_dead_letter_is_looked_at_tried_and_replayed(tab: Tab, stack: Stack) -> None:
    page = tab.page
    page.goto("/dead-letters")
    page.get_by_role("link", name="encrypted", exact=True).click()
    page.get_by_role("link", name=re.compile(r"docsum\.dlq\[\d+\]@\d+")).click()
    letter = page.url
    expect(page.get_by_text("Remove the password and run again.")).to_be_visible()
    expect(page.get_by_role("table", name="The event")).to_contain_text("locked.pdf")
    stack.locked.write_bytes(documents.pdf(1))
    page.get_by_role("link", name="Replay…").click()
    expect(page.get_by_role("table")).to_contain_text("encrypted")
    expect(page.get_by_text("This is a dry run")).to_be_visible()
    page.get_by_role("button", name="Replay 1 dead letter").click()
    expect(page).to_have_title("Done · Replay · docsum", timeout=WITHIN)
    expect(page.get_by_text("1 helped, 0 failed again")).to_be_visible()
    page.goto(letter)
    expect(page.locator(".state").first).to_have_text("resolved", timeout=WITHIN)


def test_a_dead_letter_is_discarded_with_a_reason(tab: Tab) -> None:
    page = tab.page
    page.goto("/dead-letters")
    page.get_by_role("link", name="Discard… scanned").click()
    page.get_by_role("button", name="Discard it").click()  # the browser asks for the reason
    expect(page.get_by_label("Why")).to_be_focused()
    page.get_by_label("Why").fill("A delivery note.")
    page.get_by_role("button", name="Discard it").click()
    expect(page.get_by_text("1 dead letter is discarded.")).to_be_visible()
    page.goto("/spend")
    expect(page.get_by_role("table", name="What people did")).to_contain_text("A delivery note.")


def test_a_run_is_paused_and_goes_on(tab: Tab, stack: Stack) -> None:
    page = tab.page
    more = stack.papers.parent / "more"
    more.mkdir()
    for number in range(200):
        (more / f"letter-{number:03}.txt").write_text(f"Letter {number}\n\n" + TEXT.format(f"x{number}") * 20)
    stack.slow(2)
    start(page, more, "letters")
    page.get_by_role("link", name="Pause…").click(timeout=WITHIN)
    page.get_by_label("Why").fill("Not before noon")
    page.get_by_role("button", name="Pause the run").click()
    expect(page.get_by_text("It is paused: Not before noon")).to_be_visible(timeout=WITHIN)
    expect(page).to_have_title(re.compile("^Paused at .* letters"), timeout=WITHIN)
    expect(page.get_by_role("link", name=re.compile(r"held \d+"))).to_be_visible(timeout=WITHIN)
    stack.slow(0)
    page.get_by_role("link", name="Go on…").click()
    page.get_by_role("button", name="Go on").click()
    expect(page).to_have_title("Finished · letters · docsum", timeout=4 * WITHIN)
    expect(page.get_by_role("link", name="done 200")).to_be_visible()


def test_all_work_is_paused_and_goes_on(tab: Tab) -> None:
    page = tab.page
    page.goto("/workers")
    page.get_by_role("link", name="Pause all work…").click()
    page.get_by_label("Why").fill("The provider is changed")
    page.get_by_role("button", name="Pause all work").click()
    expect(page.get_by_text("All work is paused")).to_be_visible(timeout=WITHIN)
    page.reload()
    page.get_by_role("link", name="Go on with all work…").click()
    page.get_by_role("button", name="Go on with all work").click()
    expect(page.get_by_text("All work is paused")).to_be_hidden(timeout=WITHIN)


def pages(page: Page) -> list[str]:
    """Every page that there is, by address."""
    page.goto("/")
    run = page.locator("table.runs tbody th a").last.get_attribute("href")
    page.goto("/documents")
    document = page.locator("tbody th a").first.get_attribute("href")
    page.goto("/dead-letters/list?state=all")
    letter = page.locator("tbody th a").first.get_attribute("href")
    page.goto("/dead-letters")
    replay = page.get_by_role("link", name=re.compile("docsum.dlq")).first.get_attribute("href")
    assert run and document and letter and replay
    return [
        "/", "/runs/new", run, f"{run}?state=dead_lettered", f"{run}/cancel", f"{run}/resume", "/documents",
        document, "/documents?q=nothing-like-it", "/dead-letters", "/dead-letters?state=all",
        "/dead-letters/list?state=all", letter, replay, "/dead-letters/replay?everything=true", "/batches",
        "/workers", "/spend?since=ever", "/spend?by=day", "/pause-all", "/resume-all",
    ]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_barrier(chromium: Browser, stack: Stack, scheme: Any) -> None:
    made = Tab(chromium, stack, viewport={"width": 1280, "height": 800}, color_scheme=scheme)
    axe = AXE.read_text()
    paper = None
    for address in pages(made.page):
        made.page.goto(address)
        paper = paper or made.page.evaluate("getComputedStyle(document.body).backgroundColor")
        made.page.evaluate(axe)
        found = made.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        bad = [
            (each["id"], [node["html"][:200] for node in each["nodes"]][:3])
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
        ]
        assert not bad, (address, bad)
    assert paper == {"light": "rgb(246, 247, 249)", "dark": "rgb(20, 23, 27)"}[scheme]
    made.close()


def test_every_page_fits_a_phone(chromium: Browser, stack: Stack) -> None:
    made = Tab(chromium, stack, viewport={"width": 360, "height": 740}, has_touch=True)
    axe = AXE.read_text()
    for address in pages(made.page):
        made.page.goto(address)
        assert made.page.evaluate("document.documentElement.scrollWidth") <= 360, address
        made.page.evaluate(axe)
        found = made.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        bad = [each["id"] for each in found["violations"] if each["impact"] in ("serious", "critical")]
        assert not bad, (address, bad)
    made.close()


def test_the_keyboard_reaches_everything_and_shows_where_it_is(tab: Tab) -> None:
    page = tab.page
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Start a run")).to_be_focused()
    style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert style == "solid"
    page.goto("/documents")
    page.get_by_label("Find by id or title").fill("minutes-0")
    with page.expect_response(lambda answer: "/documents" in answer.url, timeout=WITHIN):
        page.keyboard.type("7")
    expect(page.get_by_label("Find by id or title")).to_have_value("minutes-07")
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(1)


def is_poll(request: Request) -> bool:
    return request.headers.get("hx-request") == "true"


def test_a_hidden_tab_asks_nothing(tab: Tab) -> None:
    page = tab.page
    page.goto("/workers")
    with page.expect_request(is_poll, timeout=WITHIN):
        pass
    page.evaluate("Object.defineProperty(document, 'hidden', {get: () => window.away, configurable: true})")
    page.evaluate("window.away = true")
    page.wait_for_timeout(500)
    seen = len(tab.asked)
    page.wait_for_timeout(4_500)
    assert len(tab.asked) == seen
    with page.expect_request(is_poll, timeout=WITHIN):
        page.evaluate("window.away = false")


def test_without_scripts_everything_can_be_done(chromium: Browser, stack: Stack) -> None:
    context = chromium.new_context(base_url=stack.url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/workers")
    page.get_by_role("link", name="Pause all work…").click()
    page.get_by_label("Why").fill("No scripts here")
    page.get_by_role("button", name="Pause all work").click()
    expect(page.get_by_role("heading", name="Workers")).to_be_visible()
    page.goto("/resume-all")
    page.get_by_role("button", name="Go on with all work").click()
    expect(page.get_by_role("heading", name="Workers")).to_be_visible()
    context.close()


def test_elsewhere_a_token_is_asked_for(chromium: Browser, stack: Stack) -> None:
    """The same Kafka and ClickHouse, named by settings: not the local stack any more."""
    port = free_port()
    environment = stack.deployment.reached.environment() | {"DOCSUM_API__PORT": str(port)}
    elsewhere = Deployment(stack.papers.parent / "elsewhere", **environment)
    token = elsewhere.docsum("tokens", "create", "night-shift", "--scope", "read").strip()
    process = elsewhere.start("api")
    made = Tab(chromium, stack, viewport={"width": 1280, "height": 800})
    made.forgives = True
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/livez"), 60, "the API answers")
        page = made.page
        page.goto(f"http://127.0.0.1:{port}/workers")
        page.get_by_label("Token").fill("docsum_wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("This token is not valid")
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Sign in").click()
        expect(page).to_have_title("Workers · docsum")
        expect(page.get_by_text("Signed in as night-shift")).to_be_visible()
        expect(page.get_by_role("link", name="Pause all work…")).to_be_hidden()
        assert page.evaluate("document.cookie") == ""
        page.goto(f"http://127.0.0.1:{port}/pause-all")
        expect(page.get_by_role("alert")).to_contain_text("has not the scope 'admin'")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Token")).to_be_visible()
    finally:
        process.terminate()
        process.communicate(timeout=30)
    made.close()


def answers(url: str) -> bool:
    with suppress(OSError):
        urlopen(url, timeout=5).read()
        return True
    return False


def test_while_clickhouse_hangs_the_page_says_so_and_recovers(tab: Tab, stack: Stack) -> None:
    page = tab.page
    tab.forgives = True
    page.goto("/spend?since=ever")
    pid = stack.deployment.pid("clickhouse")
    assert pid
    os.kill(pid, signal.SIGSTOP)
    try:
        stale = re.compile(r"Not up to date since [\d:]+ UTC: ClickHouse .*does not answer")
        expect(page.get_by_text(stale)).to_be_visible(timeout=WITHIN)
        expect(page.get_by_role("table").first).to_be_visible()  # what was known stays
        page.goto("/", timeout=WITHIN)
        expect(page.get_by_text(re.compile("ClickHouse at .* does not answer"))).to_be_visible(timeout=WITHIN)
        page.goto("/workers", timeout=WITHIN)
        expect(page.get_by_role("table", name="What waits, by topic")).to_be_visible(timeout=WITHIN)
        page.goto("/documents", timeout=WITHIN)
        expect(page.get_by_role("link", name="Try again")).to_be_visible()
        expect(page.get_by_role("heading", name="Something does not answer")).to_be_visible()
    finally:
        os.kill(pid, signal.SIGCONT)
    page.goto("/")
    expect(page.get_by_role("link", name="papers")).to_be_visible(timeout=WITHIN)

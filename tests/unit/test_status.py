"""`docsum status` from values: what is wrong, what to do, what is shown, and the exit code."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest
from rich.console import Console

from docsum.cli.output import Code
from docsum.cli.status import ends_with
from docsum.cli.status_view import fields, picture
from docsum.errors import BrokerUnavailable, StoreMisconfigured, StoreUnavailable
from docsum.health import Health, Stored
from docsum.models import (
    ALL_WORK,
    LIVE_EVENTS,
    Backlog,
    Control,
    ControlState,
    DeadLetterGroup,
    Lane,
    Member,
    Recipe,
    Run,
    RunProgress,
    RunState,
    Waiting,
    WorkerStatus,
)
from docsum.settings import Kafka, Settings
from docsum.troubles import compact, next_command, troubles
from tests.support.fakes import START

RUN = Run(
    UUID(int=77), "letters", "/letters", Recipe("m"), Lane.BACKFILL, RunState.PUBLISHED, START, START
)  # fmt: skip
SETTINGS = Settings(home=Path("/home"), kafka=Kafka(bootstrap_servers="broker:9092"))
MEMBER = Member("worker-1", "10.0.0.7", ("docsum.documents[0]", "docsum.documents[1]"))
HOLD = (
    "12 held at summarise: model_unreachable since 11:58:00 UTC, next try 12:00:05 UTC. Nobody answers at m."
)


def ago(seconds: float) -> datetime:
    return START - timedelta(seconds=seconds)


def worker(name: str = "worker-1", *, silent: float = 1, **fields: object) -> WorkerStatus:
    beat = WorkerStatus(name, "host", 1, Lane.LIVE, ago(900), ago(silent), MEMBER.partitions, in_flight=3)
    return replace(beat, **fields)  # type: ignore[arg-type]  # a builder


def backlog(*topics: Waiting, members: tuple[Member, ...] = (MEMBER,), held: int = 0) -> Backlog:
    return Backlog(topics, held, 5, members)


def stored(
    *,
    workers: tuple[WorkerStatus, ...] = (worker(),),
    controls: tuple[Control, ...] = (),
    runs: tuple[tuple[Run, RunProgress], ...] = (),
    **more: object,
) -> Stored:
    told = Stored(workers, controls, "", runs, Decimal("1.5"), ())
    return replace(told, **more)  # type: ignore[arg-type]  # a builder


def health(**parts: object) -> Health:
    whole = Health(START, backlog=backlog(Waiting("docsum.documents", 0)), stored=stored())
    return replace(whole, **parts)  # type: ignore[arg-type]  # a builder


def paused(target: UUID, reason: str = "A reason", **fields: object) -> Control:
    control = Control(target, ControlState.PAUSED, reason, changed_at=ago(120))
    return replace(control, **fields)  # type: ignore[arg-type]  # a builder


def shown(seen: Health, width: int = 120) -> str:
    console = Console(width=width, record=True, highlight=False)
    with console.capture() as said:
        for part in picture(seen, troubles(seen), SETTINGS, {}, width):
            console.print(part)
    return said.get()


def sentences(seen: Health) -> str:
    return " ".join(map(str, troubles(seen)))


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), ""), ((3,), "3"), ((0, 1, 2, 3), "0-3"), ((0, 1, 3, 10, 9, 11), "0-1,3,9-11")],
)
def test_partitions_are_told_in_ranges(numbers: tuple[int, ...], text: str) -> None:
    assert compact(f"docsum.{topic}[{n}]" for n in numbers for topic in ("documents", "retry.10s")) == text


# -- what is wrong -------------------------------------------------------------------------------------------


def test_all_is_well() -> None:
    assert troubles(health()) == []
    assert ends_with(health()) is Code.OK


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BrokerUnavailable("Kafka at b does not answer."), Code.UNREACHABLE),
        (StoreUnavailable("ClickHouse at c does not answer."), Code.UNREACHABLE),
        (StoreMisconfigured("The table x lacks y: run `docsum setup store`."), Code.CONFIGURATION),
    ],
)
def test_a_part_that_does_not_answer_is_told_first_with_a_remedy(error: Exception, code: Code) -> None:
    seen = health(errors=[error], stored=stored(controls=(paused(ALL_WORK),)))
    first = str(troubles(seen)[0])
    assert first.startswith(str(error))
    assert "work goes on by itself" in first or "`docsum setup store`" in first
    assert ends_with(seen) is code


def test_paused_work_says_who_why_since_and_what_ends_it() -> None:
    seen = health(stored=stored(controls=(paused(ALL_WORK, "New prices"),), paused_by="ann"))
    assert sentences(seen) == (
        "All work is paused by ann, for 2 min 0 s: New prices. `docsum resume --all` goes on."
    )
    assert next_command(troubles(seen)) == "`docsum resume --all`"
    assert ends_with(seen) is Code.PAUSED


def test_a_guarded_live_topic_is_told_and_runs_go_on() -> None:
    seen = health(stored=stored(controls=(paused(LIVE_EVENTS, "Most documents fail."),)))
    assert "The live events are paused, for 2 min 0 s: Most documents fail." in sentences(seen)
    assert ends_with(seen) is Code.OK


def test_a_spent_budget_of_the_day_rests_until_a_person_grants_more() -> None:
    spent = health(daily_budget=Decimal(1))
    assert "$1.50 are spent of today's budget of $1.00" in sentences(spent)
    assert ends_with(spent) is Code.PAUSED
    granted = Control(ALL_WORK, budget=Decimal(3), changed_at=ago(60))
    more = replace(spent, stored=stored(controls=(granted,)))
    assert (troubles(more), more.budget_today, ends_with(more)) == ([], Decimal(3), Code.OK)
    yesterday = replace(granted, changed_at=ago(13 * 3600))
    assert replace(spent, stored=stored(controls=(yesterday,))).budget_is_spent


def test_a_paused_run_says_how_it_goes_on_and_is_no_failure() -> None:
    run = replace(RUN, control=paused(RUN.id, "Its budget is spent", budget=Decimal("2.5")))
    seen = health(stored=stored(runs=((run, RunProgress(RUN.id, held=3, cost=Decimal(3))),)))
    assert sentences(seen) == (
        "The run letters is paused: Its budget is spent. `docsum runs resume 00000000 --budget 5` goes on."
    )
    assert ends_with(seen) is Code.OK


def test_events_without_a_worker_are_told() -> None:
    waits = backlog(Waiting("docsum.documents", 1_200), members=())
    seen = health(backlog=waits, stored=stored(workers=()))
    assert sentences(seen) == "1,200 events wait and no worker is there. Start one: `docsum worker`."
    assert ends_with(seen) is Code.UNREACHABLE
    assert ends_with(replace(seen, backlog=replace(waits, members=(MEMBER,)))) is Code.OK


def test_a_silent_worker_is_told_until_others_have_its_partitions() -> None:
    lost = worker("worker-2", silent=45)
    alone = health(stored=stored(workers=(worker(partitions=("docsum.documents[5]",)), lost)))
    expected = "worker-2 on host has been silent for 45 s; nobody else has its partitions 0-1."
    assert expected in sentences(alone)
    replaced = health(stored=stored(workers=(worker(), lost)))
    assert troubles(replaced) == []
    assert "silent for 45 s" in shown(replaced)


def test_a_worker_that_froze_before_it_told_its_partitions_is_found_by_those_that_the_broker_lists() -> None:
    born = worker("worker-2", silent=45, partitions=())
    listed = Member("worker-2", "host", ("docsum.documents[7]",))
    seen = health(backlog=backlog(members=(MEMBER, listed)), stored=stored(workers=(worker(), born)))
    assert "nobody else has its partitions 7" in sentences(seen)


def test_workers_without_a_partition_are_told_once_the_others_have_one_each() -> None:
    def seen(*shares: tuple[str, ...]) -> str:
        workers = tuple(worker(f"worker-{n}", partitions=share) for n, share in enumerate(shares))
        batch = worker("batch-1", lane=Lane.BATCH, partitions=("docsum.batch[0]", "docsum.batch[1]"))
        return sentences(health(stored=stored(workers=(*workers, batch))))

    ones = [(f"docsum.documents[{n}]", f"docsum.backfill[{n}]") for n in range(12)]
    assert seen(*ones) == ""
    told = "24 workers of the live lane share 12 partitions: at most 12 of them are useful"
    assert told in seen(*ones, *[()] * 12)
    joining = MEMBER.partitions, ()
    assert seen(*joining) == seen((), ()) == ""


def test_a_hold_is_told_once_with_what_to_do_and_who_else_says_so() -> None:
    both = (worker("worker-1", holds=(HOLD,)), worker("worker-2", holds=(HOLD,)))
    (trouble,) = troubles(health(stored=stored(workers=both)))
    assert trouble.what == f"worker-1: {HOLD} (2 workers say so)"
    assert trouble.do


def test_a_pause_is_not_told_again_as_a_hold_unless_nobody_else_knows() -> None:
    hold = "48 held at admit: paused since 11:00:00 UTC, next try 12:00:05 UTC. New prices"
    whole = stored(workers=(worker(holds=(hold,)),), controls=(paused(ALL_WORK),))
    assert len(troubles(health(stored=whole))) == 1
    silent_store = health(stored=Stored(), pages=[worker(holds=(hold,))])
    assert hold in sentences(silent_store)


def test_a_budget_that_what_is_on_its_way_would_overspend_is_told_by_those_who_wait_for_it() -> None:
    hold = (
        "12 held at admit: daily_budget since 11:00:00 UTC, next try 12:00:02 UTC. $1.50 are spent today, "
        "about $9.00 are on their way, DOCSUM_BUDGET__DAILY_USD allows $10.00."
    )
    seen = health(stored=stored(workers=(worker(holds=(hold,)),)), daily_budget=Decimal(10))
    assert [trouble.what for trouble in troubles(seen)] == [f"worker-1: {hold}"]
    spent = replace(seen, stored=replace(seen.stored, spent_today=Decimal(10)))
    (trouble,) = troubles(spent)
    assert trouble.what.startswith("$10.00 are spent of today's budget of $10.00")


def test_events_that_retention_has_deleted_are_told() -> None:
    seen = health(backlog=backlog(Waiting("docsum.backfill", 0, lost=7)))
    assert "Retention has deleted 7 events of docsum.backfill" in sentences(seen)


# -- what is shown -------------------------------------------------------------------------------------------


def test_a_person_sees_lanes_with_ages_workers_runs_dead_letters_and_money() -> None:
    waits = backlog(
        Waiting("docsum.backfill", 4_012, oldest=ago(3_700)),
        Waiting("docsum.documents", 12, oldest=ago(5)),
        Waiting("docsum.retry.10s", 3, oldest=ago(90), due=START + timedelta(seconds=8)),
        Waiting("docsum.retry.30s", 1, oldest=ago(300), due=START + timedelta(seconds=20)),
        held=9,
    )
    failed = DeadLetterGroup("scanned", "open", 22, 22, START, START, "")
    seen = health(
        backlog=waits,
        stored=stored(
            workers=(worker(gate="3 of 64 calls", cost_in_flight=Decimal("0.02")),),
            runs=((RUN, RunProgress(RUN.id, queued=5, done=7)),),
            dead_letters=(failed,),
        ),
        daily_budget=Decimal(5),
    )
    said = shown(seen).splitlines()
    assert [line.split() for line in said if line.startswith((" live", " backfill", " retry", " held"))] == [
        ["live", "12", "5.0", "s"],
        ["backfill", "4,012", "1", "h", "1", "min"],
        ["retry", "4", "5", "min", "0", "s", "next", "try", "in", "8.0", "s"],
        ["held", "9", "rests", "until", "its", "run", "is", "resumed"],
    ]
    text = "\n".join(said)
    assert "Dead letters: 22 open (22 scanned)" in text
    assert "Spent today (UTC): $1.50 of $5.00, about $0.02 in flight." in text
    assert "3 of 64 calls" in text
    assert max(map(len, shown(seen, 80).splitlines())) <= 80


def test_without_a_store_the_broker_says_which_workers_there_are() -> None:
    seen = health(stored=Stored(), errors=[StoreUnavailable("ClickHouse is down.")])
    assert "10.0.0.7   0-1" in shown(seen)
    assert "5 in Kafka, settled ones too" in shown(seen)


def test_the_word_of_a_worker_counts_more_than_its_last_heartbeat() -> None:
    seen = health(stored=stored(workers=(worker(silent=50),)), pages=[worker(in_flight=9)])
    assert [each.in_flight for each in seen.living] == [9]


def test_a_program_reads_null_for_what_nobody_told() -> None:
    told = fields(health(), [], SETTINGS)
    assert (told["spent_today_usd"], told["runs"], told["held"]) == (Decimal("1.5"), [], 0)
    untold = fields(health(backlog=None, stored=Stored()), [], SETTINGS)
    empty = ("lanes", "lag", "held", "members", "controls", "runs", "spent_today_usd")
    assert all(untold[name] is None for name in empty)

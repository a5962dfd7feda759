"""How `docsum status` looks: troubles first, then lanes, workers, runs and money; or all of it as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from docsum.cli.output import count_cells, table
from docsum.health import Health, state_of
from docsum.models import ALL_WORK, LIVE_EVENTS, Control, ControlState, Lane
from docsum.runs import run_fields, standing
from docsum.topics import RETRY, lane_of
from docsum.troubles import Trouble, compact
from docsum.words import clean, money, span

if TYPE_CHECKING:
    from rich.console import RenderableType

    from docsum.models import Waiting
    from docsum.settings import Settings
    from docsum.topics import Topology

_REASONS = 4  # of dead letters that are named


# -- for a person --------------------------------------------------------------------------------------------


def picture(
    health: Health, found: Sequence[Trouble], settings: Settings, rates: Mapping[UUID, float], width: int
) -> list[RenderableType]:
    """The parts, the most important first. `rates` of runs are known to whoever looks more than once."""
    from rich.text import Text

    parts: list[RenderableType] = [
        Text.assemble((trouble.what, "red"), f" {trouble.do}") for trouble in found
    ]
    parts += _processes(health, settings)
    if health.backlog is not None:
        parts.append(_lanes(health, settings))
    parts += _workers(health)
    if health.stored.runs:
        parts.append(_runs(health, rates, width))
    parts += map(Text, _counts(health))
    return parts


def _processes(health: Health, settings: Settings) -> list[RenderableType]:
    """One line while all is well."""
    from rich.text import Text

    if health.processes is None:
        return []
    if all(process.state == "ready" for process in health.processes):
        names = ", ".join(process.name for process in health.processes)
        return [Text(f"In {settings.home}: {names}.")]
    from docsum.cli.stack import processes

    return [processes(health.processes)]


def _lanes(health: Health, settings: Settings) -> RenderableType:
    found = table("lane", "waiting", "oldest", "what comes next", right=("waiting",))
    for lane, topics in _by_lane(health, settings.topology()):
        events = sum(topic.events for topic in topics)
        oldest, due = _first(topic.oldest for topic in topics), _first(topic.due for topic in topics)
        found.add_row(lane, f"{events:,}", _ago(oldest, health), _due(due, health))
    assert health.backlog is not None
    if health.backlog.held:
        found.add_row("held", f"{health.backlog.held:,}", "", "rests until its run is resumed")
    return found


def _by_lane(health: Health, topology: Topology) -> list[tuple[str, list[Waiting]]]:
    topics = health.backlog.topics if health.backlog else ()
    return [
        (lane, [topic for topic in topics if lane_of(topic.topic, topology) == lane])
        for lane in (*(lane.value for lane in Lane), RETRY)
    ]


def _ago(moment: datetime | None, health: Health) -> str:
    return span(max(0.0, (health.at - moment).total_seconds())) if moment else ""


def _due(due: datetime | None, health: Health) -> str:
    if due is None:
        return ""
    seconds = (due - health.at).total_seconds()
    return f"next try in {span(seconds)}" if seconds > 0 else "due now"


def _workers(health: Health) -> list[RenderableType]:
    """By their own word; where nobody has heard them, as the broker lists them."""
    if health.workers:
        found = table(
            "worker", "lane", "state", "partitions", "in flight", "model calls", right=("in flight",)
        )
        for worker in health.workers:
            found.add_row(
                worker.worker, worker.lane.value, state_of(worker, health), compact(worker.partitions),
                str(worker.in_flight), worker.gate,
            )  # fmt: skip
        return [found]
    if health.stored.workers is None and health.backlog is not None and health.backlog.members:
        found = table("worker, says Kafka", "host", "partitions")
        for member in health.backlog.members:
            found.add_row(member.name, member.host, compact(member.partitions))
        return [found]
    return []


def _runs(health: Health, rates: Mapping[UUID, float], width: int) -> RenderableType:
    names = ("name",) if width >= 100 else ()
    numbers = ("done", "skipped", "retrying", "failed", "waiting", "cost")
    left = ("left",) if any(rates.values()) else ()
    found = table("run", *names, "state", *numbers, *left, right=numbers)
    for run, progress in health.stored.runs or ():
        rate = rates.get(run.id, 0.0)
        found.add_row(
            str(run.id)[:8],
            *([clean(run.name)] if names else ()),
            standing(run, progress),
            *count_cells(progress),
            *([f"{span(progress.remaining / rate)}, {rate:,.1f}/s" if rate else ""] if left else ()),
        )
    return found


def _counts(health: Health) -> list[str]:
    lines = []
    stored = health.stored
    if stored.dead_letters:
        total = sum(group.count for group in stored.dead_letters)
        named = [f"{group.count:,} {group.reason}" for group in stored.dead_letters[:_REASONS]]
        more = ", …" if len(stored.dead_letters) > _REASONS else ""
        lines.append(f"Dead letters: {total:,} open ({', '.join(named)}{more}); `docsum dlq ls`.")
    elif stored.dead_letters is None and health.backlog is not None and health.backlog.dead_letters:
        lines.append(f"Dead letters: {health.backlog.dead_letters:,} in Kafka, settled ones too.")
    if stored.spent_today is not None:
        budget = f" of {money(health.budget_today)}" if health.budget_today is not None else ""
        flying = f", about {money(health.cost_in_flight)} in flight" if health.cost_in_flight else ""
        lines.append(f"Spent today (UTC): {money(stored.spent_today)}{budget}{flying}.")
    return lines


# -- for a program -------------------------------------------------------------------------------------------


def fields(health: Health, found: Sequence[Trouble], settings: Settings) -> dict[str, object]:
    """Everything that is known. What was not told is null, never 0."""
    backlog, stored, topology = health.backlog, health.stored, settings.topology()
    return {
        "at": health.at,
        "home": str(settings.home),
        "troubles": [asdict(trouble) for trouble in found],
        "rests": health.rests,
        "processes": [asdict(process) for process in health.processes or ()],
        "lanes": [_lane_fields(lane, topics) for lane, topics in _by_lane(health, topology)]
        if backlog
        else None,
        "lag": [_topic_fields(topic, topology) for topic in backlog.topics] if backlog else None,
        "held": backlog.held if backlog else None,
        "dead_letters": {
            "in_topic": backlog.dead_letters if backlog else None,
            "open": {group.reason: group.count for group in stored.dead_letters}
            if stored.dead_letters is not None
            else None,
        },
        "members": [asdict(member) for member in backlog.members] if backlog else None,
        "workers": [
            {**asdict(worker), "lane": worker.lane.value, "state": state_of(worker, health)}
            for worker in health.workers
        ],
        "controls": [
            {
                "target": _target(control),
                "state": control.state.value,
                "reason": control.reason,
                "since": control.changed_at,
                "by": stored.paused_by if control.target == ALL_WORK else "",
                "budget_usd": control.budget,
            }
            for control in stored.controls
            if control.state is ControlState.PAUSED or control.budget
        ]
        if stored.controls is not None
        else None,
        "runs": [run_fields(*run) for run in stored.runs] if stored.runs is not None else None,
        "spent_today_usd": stored.spent_today,
        "daily_budget_usd": health.budget_today,
        "cost_in_flight_usd": health.cost_in_flight,
    }


def _lane_fields(lane: str, topics: Sequence[Waiting]) -> dict[str, object]:
    return {
        "lane": lane,
        "waiting": sum(topic.events for topic in topics),
        "oldest_at": _first(topic.oldest for topic in topics),
        "next_due_at": _first(topic.due for topic in topics),
    }


def _topic_fields(topic: Waiting, topology: Topology) -> dict[str, object]:
    return {
        "topic": topic.topic,
        "lane": lane_of(topic.topic, topology),
        "lag": topic.events,
        "lost": topic.lost,
        "oldest_at": topic.oldest,
        "next_due_at": topic.due,
    }


def _first(moments: Iterable[datetime | None]) -> datetime | None:
    return min((moment for moment in moments if moment), default=None)


def _target(control: Control) -> str:
    return {ALL_WORK: "all work", LIVE_EVENTS: "live events"}.get(control.target, str(control.target))

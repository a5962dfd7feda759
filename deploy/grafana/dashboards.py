"""The dashboards as code: `make dashboards` writes the JSON beside this file, and a test compares them.

Figures of the whole come from every process of the API alike, so they are taken by `max`, never added up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.common import DataSourceRef, LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import Dashboard, VariableRefresh
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).parent
PROMETHEUS, CLICKHOUSE = "prometheus", "grafana-clickhouse-datasource"
_KINDS: dict[str, Any] = {
    "lines": timeseries.Panel,
    "number": stat.Panel,
    "table": table.Panel,
    "heat": heatmap.Panel,
}
_WIDTHS = {"lines": 12, "number": 4, "table": 24, "heat": 12}  # of 24
_HEIGHTS = {"lines": 8, "number": 4, "table": 8, "heat": 8}


@dataclass(frozen=True)
class Panel:
    """One panel; `queries` by legend."""

    title: str
    meaning: str
    queries: Mapping[str, str]
    unit: str = "short"
    kind: str = "lines"


@dataclass(frozen=True)
class Page:
    """One dashboard. `variables`: name -> the query that fills it."""

    name: str  # of the file, and the end of the uid
    title: str
    meaning: str
    panels: Sequence[Panel]
    source: str = PROMETHEUS
    variables: Mapping[str, str] | None = None
    since: str = "now-6h"


def quantiles(metric: str, by: str = "") -> dict[str, str]:
    """Median, 95 % and 99 % of a histogram."""
    labels = f"le, {by}" if by else "le"
    named = f" {{{{{by}}}}}" if by else ""
    return {
        f"p{round(share * 100)}{named}": (
            f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))"
        )
        for share in (0.5, 0.95, 0.99)
    }


def each(metric: str, by: str, selector: str = "") -> dict[str, str]:
    """A counter's rate, by a label."""
    return {f"{{{{{by}}}}}": f"sum by ({by}) (rate({metric}{selector}[$__rate_interval]))"}


def now(metric: str, by: str = "", selector: str = "") -> dict[str, str]:
    """A figure of the whole, by a label."""
    if not by:
        return {metric: f"max({metric}{selector})"}
    return {f"{{{{{by}}}}}": f"max by ({by}) ({metric}{selector})"}


LAG = "max by (topic, partition, lane) (docsum_consumer_lag_messages)"
RETRY_LAG = 'max by (topic, partition) (docsum_consumer_lag_messages{lane="retry"})'
OLDEST = "min by (lane) (docsum_oldest_unprocessed_timestamp_seconds)"
ENDED = "docsum_documents_total"
DONE = 'outcome=~"done|skipped"'

OVERVIEW = Page(
    "overview",
    "docsum: overview",
    "Is it keeping up, is it losing anything, what does it cost.",
    (
        Panel(
            "Events waiting",
            "Records that the workers have not finished, without the batch lane.",
            {"waiting": 'sum(max by (topic, partition) (docsum_consumer_lag_messages{lane!="batch"}))'},
            kind="number",
        ),
        Panel(
            "Oldest live event",
            "How long the oldest unfinished live event has been there.",
            {
                "age": 'max(time() - min by (topic, partition) (docsum_oldest_unprocessed_timestamp_seconds{lane="live"}))'
            },
            "s",
            "number",
        ),
        Panel(
            "Time to the end",
            "Events waiting by the speed of now, without the batch lane.",
            {
                "eta": 'sum(max by (topic, partition) (docsum_consumer_lag_messages{lane!="batch"}))'
                f" / clamp_min(sum(rate({ENDED}{{{DONE}}}[$__rate_interval])), 0.001)"
            },
            "s",
            "number",
        ),
        Panel(
            "Not dead-lettered",
            "Share of the deliveries that came to an end in this time. The objective is 99 %.",
            {
                "share": f'1 - sum(increase({ENDED}{{outcome="dead_lettered"}}[$__range]))'
                f' / clamp_min(sum(increase({ENDED}{{outcome=~"done|skipped|dead_lettered"}}[$__range])), 1)'
            },
            "percentunit",
            "number",
        ),
        Panel(
            "Live, stored in 5 minutes",
            "Share of the live events of this time, from first publication. The objective is 99 %.",
            {
                "share": 'sum(increase(docsum_end_to_end_seconds_bucket{lane="live", le="300.0"}[$__range]))'
                ' / clamp_min(sum(increase(docsum_end_to_end_seconds_count{lane="live"}[$__range])), 1)'
            },
            "percentunit",
            "number",
        ),
        Panel(
            "Spent today",
            "US dollars of the ledger since midnight UTC.",
            now("docsum_spend_today_usd"),
            "currencyUSD",
            "number",
        ),
        Panel("Ends of deliveries", "By outcome, per second.", each(ENDED, "outcome"), "ops"),
        Panel(
            "Events waiting, by topic",
            "The batch topic holds its events for hours: that is how it works.",
            {"{{topic}}": f"sum by (topic) ({LAG})"},
        ),
        Panel(
            "Age of the oldest event, by lane",
            "Of the first unfinished record; 0 where everything is finished.",
            {"{{lane}}": f"time() - {OLDEST}"},
            "s",
        ),
        Panel(
            "From publication to summary",
            "Live events; replays are left out.",
            {
                name: query.replace("_bucket[", '_bucket{lane="live"}[')
                for name, query in quantiles("docsum_end_to_end_seconds").items()
            },
            "s",
        ),
        Panel(
            "Held at their step, by reason",
            "Waiting for something that is everyone's trouble; costs time, never attempts.",
            {"{{reason}}": "topk(5, sum by (reason) (docsum_held_documents))"},
        ),
        Panel(
            "Nothing is begun",
            "1 while a lane is paused or the budget is spent.",
            now("docsum_work_paused", "lane"),
        ),
        Panel(
            "At work",
            "Documents in the workers, and requests at the model.",
            {
                "documents": "sum(docsum_in_flight_documents)",
                "requests": "sum(docsum_model_requests_in_flight)",
            },
        ),
        Panel("Workers", "By their heartbeats of the last hour.", now("docsum_workers", "state")),
        Panel("Kafka and ClickHouse", "1 while they answer.", now("docsum_dependency_up", "dependency")),
    ),
)

CALLS = "docsum_model_requests_total"
MODEL = Page(
    "model",
    "docsum: model and money",
    "How the model answers, what keeps calls waiting, and what they cost.",
    (
        Panel(
            "Duration of requests",
            "Those with a usable answer.",
            {
                "{{le}}": "sum by (le) (increase(docsum_model_request_duration_seconds_bucket"
                '{outcome="ok"}[$__rate_interval]))'
            },
            "s",
            "heat",
        ),
        Panel(
            "Duration of requests, by outcome",
            "95 % are faster.",
            {
                "{{outcome}}": "histogram_quantile(0.95, sum by (le, outcome) "
                "(rate(docsum_model_request_duration_seconds_bucket[$__rate_interval])))"
            },
            "s",
        ),
        Panel("Requests, by outcome", "Per second.", each(CALLS, "outcome"), "reqps"),
        Panel(
            "Requests without a usable answer, by reason",
            "`rate_limited` is a 429; `invalid`, `truncated` and `refused` were paid for.",
            each(CALLS, "reason", '{outcome!="ok"}'),
            "reqps",
        ),
        Panel(
            "Requests in flight",
            "And how many there may be, for now, and how many wait.",
            {
                "in flight": "sum(docsum_model_requests_in_flight)",
                "allowed": "sum(docsum_model_concurrency_limit)",
                "waiting": "sum(docsum_model_requests_waiting)",
            },
        ),
        Panel(
            "Slowed down by the provider",
            "Seconds in which no request starts; the longest of all workers.",
            {"retry after": "max(docsum_model_retry_after_seconds)"},
            "s",
        ),
        Panel(
            "Use of the limits per minute",
            "Share of each limit that was used in the last minute; none where there is no limit.",
            {
                "{{unit}}": "sum by (unit) (docsum_model_used_per_minute)"
                " / clamp_min(sum by (unit) (docsum_model_limit_per_minute), 1)"
            },
            "percentunit",
        ),
        Panel("Tokens", "Per second, by kind.", each("docsum_model_tokens_total", "type")),
        Panel(
            "Cost per hour",
            "US dollars, by lane and model, at the speed of now.",
            {
                "{{lane}} {{model}}": "sum by (lane, model) (rate(docsum_model_cost_usd_total[$__rate_interval])) * 3600"
            },
            "currencyUSD",
        ),
        Panel(
            "Spent today, and the budget",
            "US dollars since midnight UTC, and what may be spent, if there is a budget.",
            {
                "spent": "max(docsum_spend_today_usd)",
                "budget": "max(docsum_daily_budget_usd)",
            },
            "currencyUSD",
        ),
        Panel(
            "Answers used again",
            "Summaries per second that cost nothing.",
            each("docsum_model_reused_answers_total", "lane"),
            "ops",
        ),
        Panel("Open batches", "By state.", now("docsum_open_batches", "state")),
        Panel("Requests in open batches", "By state.", now("docsum_open_batch_requests", "state")),
        Panel(
            "Age of the oldest open batch",
            "The provider answers within 24 hours.",
            {"{{state}}": "time() - min by (state) (docsum_oldest_open_batch_timestamp_seconds)"},
            "s",
        ),
    ),
)

RETRIES = Page(
    "retries",
    "docsum: retries and dead letters",
    "What comes back, what rests, what is given up, and why.",
    (
        Panel(
            "Waiting to be tried again",
            "Records in the retry topics.",
            {"{{topic}}": f"sum by (topic) ({RETRY_LAG})"},
        ),
        Panel(
            "At rest and given up",
            "Records of paused runs; records in the dead-letter topic, settled ones too; paused runs.",
            {
                "held": "max(docsum_held_backlog_messages)",
                "dead letters": "max(docsum_dead_letter_backlog_messages)",
                "paused runs": "max(docsum_paused_runs)",
            },
        ),
        Panel(
            "Open dead letters, by reason",
            "The ten largest.",
            {"{{reason}}": "topk(10, max by (reason) (docsum_open_dead_letters))"},
        ),
        Panel(
            "Failures, by reason",
            "Per second, whatever became of them; the ten largest.",
            {
                "{{outcome}} {{reason}}": "topk(10, sum by (outcome, reason)"
                " (rate(docsum_failures_total[$__rate_interval])))"
            },
            "ops",
        ),
        Panel(
            "Share of dead letters, by topic",
            "Of the deliveries that came to an end.",
            {
                "{{topic}}": f'sum by (topic) (rate({ENDED}{{outcome="dead_lettered"}}[$__rate_interval]))'
                f" / clamp_min(sum by (topic) (rate({ENDED}"
                '{outcome=~"done|skipped|dead_lettered"}[$__rate_interval])), 0.0001)'
            },
            "percentunit",
        ),
        Panel(
            "Begun to wait, by reason",
            "Per second: deliveries that are held at their step.",
            each("docsum_holds_total", "reason"),
            "ops",
        ),
        Panel(
            "The flood guard",
            "Times in the last hour that it paused a run, or the live events.",
            {"{{reason}}": "sum by (reason) (increase(docsum_guard_trips_total[1h]))"},
        ),
        Panel(
            "Deleted before they were finished",
            "Records that retention has taken: now below the start of the log, and found so far.",
            {
                "below the start {{topic}}": "max by (topic) (docsum_messages_below_log_start)",
                "found {{topic}}": "sum by (topic) (docsum_expired_messages_total)",
            },
        ),
        Panel(
            "Share of the retention that has passed",
            "Of the oldest unfinished record; at 1 it is deleted.",
            {
                "{{topic}}": "(time() - min by (topic) (docsum_oldest_unprocessed_timestamp_seconds))"
                " / max by (topic) (docsum_retention_seconds)",
                "{{topic}} ": "(time() - scalar(min(docsum_oldest_held_timestamp_seconds)))"
                ' / max by (topic) (docsum_retention_seconds{topic=~".+[.]held"})',
            },
            "percentunit",
        ),
    ),
)

MINE = '{instance=~"$instance"}'
WORKERS = Page(
    "workers",
    "docsum: workers and store",
    "Who does the work, and how the store takes it.",
    (
        Panel("Members", "1 while a worker is a member.", {"{{instance}}": f"docsum_worker_member{MINE}"}),
        Panel(
            "Partitions",
            "Of all topics, by worker.",
            {"{{instance}}": f"docsum_worker_assigned_partitions{MINE}"},
        ),
        Panel(
            "Rebalances",
            "Times in the last hour that a worker was given its partitions anew.",
            {"{{instance}}": f"increase(docsum_rebalances_total{MINE}[1h])"},
        ),
        Panel("Documents at work", "By worker.", {"{{instance}}": f"docsum_in_flight_documents{MINE}"}),
        Panel(
            "Seconds of work, by outcome",
            "From start to durable outcome, waiting included; 95 % are faster.",
            {
                "{{outcome}}": "histogram_quantile(0.95, sum by (le, outcome) "
                f"(rate(docsum_processing_seconds_bucket{MINE}[$__rate_interval])))"
            },
            "s",
        ),
        Panel(
            "Out of order",
            "Open breakers: models, and hosts or buckets of documents.",
            {"{{kind}}": f"sum by (kind) (docsum_open_breakers{MINE})"},
        ),
        Panel(
            "Finished, by topic",
            "Offsets per second, as the broker has them.",
            {
                "{{topic}}": "sum by (topic) (max by (topic, partition) "
                "(deriv(docsum_committed_offset[$__rate_interval])))"
            },
            "ops",
        ),
        Panel(
            "Seconds of an insert",
            "Those that worked.",
            quantiles("docsum_store_flush_duration_seconds"),
            "s",
        ),
        Panel("Rows stored", "Per second, by table.", each("docsum_store_rows_total", "table"), "wps"),
        Panel(
            "Inserts that failed",
            "Per second, by reason.",
            each("docsum_store_flush_failures_total", "reason"),
        ),
        Panel(
            "Waiting to be stored",
            "Documents and answers, by worker.",
            {"{{instance}}": f"docsum_store_buffered_rows{MINE}"},
        ),
        Panel(
            "Store out of reach",
            "1 while a worker cannot store anything, and buys nothing.",
            {"{{instance}}": f"docsum_store_unavailable{MINE}"},
        ),
        Panel(
            "Memory",
            "Of the processes, without the children that read documents.",
            {"{{instance}}": 'process_resident_memory_bytes{job=~"docsum.*", instance=~"$instance"}'},
            "bytes",
        ),
        Panel(
            "Processor time",
            "Cores of the processes, without those children.",
            {
                "{{instance}}": 'rate(process_cpu_seconds_total{job=~"docsum.*", instance=~"$instance"}'
                "[$__rate_interval])"
            },
        ),
        Panel("Versions", "Processes by version.", {"{{version}}": "count by (version) (docsum_build_info)"}),
    ),
    variables={"instance": "label_values(docsum_build_info, instance)"},
)

RUN = "run_id = toUUID('$run')"
RUNS = Page(
    "runs",
    "docsum: runs",
    "One run: how far it is, what it costs, what failed. From the views of the database.",
    (
        Panel(
            "Finished",
            "Share of its documents with an end.",
            {
                "finished": "SELECT (done_count + failed_count + skipped_count + cancelled) / "
                "greatest(done_count + failed_count + skipped_count + cancelled + remaining, 1) AS finished "
                f"FROM run_progress WHERE {RUN}"
            },
            "percentunit",
            "number",
        ),
        Panel(
            "Remaining",
            "Queued, retrying or held.",
            {"remaining": f"SELECT remaining FROM run_progress WHERE {RUN}"},
            kind="number",
        ),
        Panel(
            "Time to the end",
            "By the speed of the last ten minutes.",
            {
                "eta": "SELECT any(p.remaining) / greatest(count() / 600, 0.001) AS eta FROM run_documents AS d "
                "INNER JOIN run_progress AS p ON p.run_id = d.run_id "
                f"WHERE d.{RUN} AND d.state IN ('done', 'skipped', 'dead_lettered') "
                "AND d.written_at > now64(3) - INTERVAL 10 MINUTE"
            },
            "s",
            "number",
        ),
        Panel(
            "Cost so far",
            "US dollars, of every call.",
            {"cost": f"SELECT toFloat64(cost) AS cost FROM run_progress WHERE {RUN}"},
            "currencyUSD",
            "number",
        ),
        Panel(
            "Cost of the whole run",
            "As it will be if the rest costs as much as what is done.",
            {
                "projected": "SELECT toFloat64(cost) * (done_count + skipped_count + failed_count + remaining)"
                " / greatest(done_count + skipped_count + failed_count, 1) AS projected "
                f"FROM run_progress WHERE {RUN}"
            },
            "currencyUSD",
            "number",
        ),
        Panel(
            "Nothing to buy",
            "Share of its finished documents that were skipped.",
            {
                "skipped": "SELECT skipped_count / greatest(done_count + skipped_count, 1) AS skipped "
                f"FROM run_progress WHERE {RUN}"
            },
            "percentunit",
            "number",
        ),
        Panel(
            "Ends per minute",
            "Its documents, by state.",
            {
                "documents": "SELECT $__timeInterval_ms(written_at) AS time, state, count() AS documents "
                f"FROM run_documents WHERE {RUN} AND $__timeFilter_ms(written_at) "
                "GROUP BY time, state ORDER BY time"
            },
        ),
        Panel(
            "Cost",
            "US dollars, by model.",
            {
                "cost": "SELECT $__timeInterval_ms(answered_at) AS time, model, toFloat64(sum(cost)) AS cost "
                f"FROM answers WHERE {RUN} AND $__timeFilter_ms(answered_at) "
                "GROUP BY time, model ORDER BY time"
            },
            "currencyUSD",
        ),
        Panel(
            "Seconds of the calls",
            "Median, 95 % and 99 %.",
            {
                "seconds": "SELECT $__timeInterval_ms(answered_at) AS time, "
                "quantile(0.5)(latency_ms) / 1000 AS p50, quantile(0.95)(latency_ms) / 1000 AS p95, "
                "quantile(0.99)(latency_ms) / 1000 AS p99 "
                f"FROM answers WHERE {RUN} AND $__timeFilter_ms(answered_at) GROUP BY time ORDER BY time"
            },
            "s",
        ),
        Panel(
            "Tokens",
            "As the provider counted them.",
            {
                "tokens": "SELECT $__timeInterval_ms(answered_at) AS time, sum(input_tokens) AS input, "
                "sum(output_tokens) AS output, sum(cache_read_tokens) AS cache_read "
                f"FROM answers WHERE {RUN} AND $__timeFilter_ms(answered_at) GROUP BY time ORDER BY time"
            },
        ),
        Panel(
            "What failed, by reason",
            "Every failed try of this time, those that were tried again included.",
            {
                "failures": "SELECT reason, stage, disposition, count() AS failures, "
                "uniqExact(document_id) AS documents, max(failed_at) AS last, any(message) AS message "
                f"FROM failures WHERE {RUN} AND $__timeFilter_ms(failed_at) "
                "GROUP BY reason, stage, disposition ORDER BY failures DESC LIMIT 50"
            },
            kind="table",
        ),
        Panel(
            "Open dead letters",
            "The newest 50; `docsum dlq show` says more.",
            {
                "dead letters": "SELECT failed_at, document_id, reason, message, attempts, kafka_topic, "
                f"kafka_partition, kafka_offset FROM dead_letters WHERE {RUN} AND state = 'open' "
                "ORDER BY failed_at DESC LIMIT 50"
            },
            kind="table",
        ),
        Panel(
            "The slowest documents",
            "By the sum of their calls.",
            {
                "slowest": "SELECT document_id, sum(latency_ms) / 1000 AS seconds, count() AS calls, "
                f"toFloat64(sum(cost)) AS cost FROM answers WHERE {RUN} "
                "GROUP BY document_id ORDER BY seconds DESC LIMIT 20"
            },
            kind="table",
        ),
        Panel(
            "Runs",
            "The newest 20.",
            {
                "runs": "SELECT r.created_at AS created, r.name AS name, r.source AS source, r.lane AS lane, "
                "r.state AS state, p.done_count AS done, p.skipped_count AS skipped, p.failed_count AS failed, "
                "p.remaining AS remaining, toFloat64(p.cost) AS cost FROM runs AS r "
                "LEFT JOIN run_progress AS p ON p.run_id = r.run_id ORDER BY created DESC LIMIT 20"
            },
            kind="table",
        ),
    ),
    source=CLICKHOUSE,
    variables={
        "run": "SELECT concat(name, ' ', toString(created_at)) AS __text, toString(run_id) AS __value "
        "FROM runs ORDER BY created_at DESC LIMIT 100"
    },
    since="now-24h",
)

PAGES = (OVERVIEW, MODEL, RETRIES, WORKERS, RUNS)


class SqlQuery(Dataquery, Builder[Dataquery]):
    """A query for Grafana's ClickHouse plugin, which the SDK does not know."""

    def __init__(self, sql: str, kind: str) -> None:
        self._sql = sql
        self._lines = kind == "lines"

    def build(self) -> Dataquery:
        return self

    def to_json(self) -> dict[str, Any]:
        """As plugin version 4 keeps it."""
        return {
            "datasource": {"type": CLICKHOUSE, "uid": "${datasource}"},
            "editorType": "sql",
            "format": 0 if self._lines else 1,
            "queryType": "timeseries" if self._lines else "table",
            "rawSql": self._sql,
            "refId": "A",
        }


def built(page: Page) -> Dashboard:
    """The dashboard as Grafana reads it."""
    made = (
        dashboard.Dashboard(page.title)
        .uid(f"docsum-{page.name}")
        .description(page.meaning)
        .tags(["docsum"])
        .time(page.since, "now")
        .refresh("30s")
        .readonly()
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Source").type(page.source))
    )
    for name, query in (page.variables or {}).items():
        made = made.with_variable(_variable(page, name, query))
    for panel in page.panels:
        made = made.with_panel(_panel(page, panel))
    return made.build()


def _source(page: Page) -> DataSourceRef:
    return DataSourceRef(type_val=page.source, uid="${datasource}")


def _variable(page: Page, name: str, query: str) -> dashboard.QueryVariable:
    made = (
        dashboard.QueryVariable(name)
        .datasource(_source(page))
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    )
    return made.multi(True).include_all(True).all_value(".*") if page.source == PROMETHEUS else made


def _panel(page: Page, panel: Panel) -> Any:  # Any: the builders of the kinds have no common type
    made: Any = (
        _KINDS[panel.kind]()
        .title(panel.title)
        .description(panel.meaning)
        .datasource(_source(page))
        .unit(panel.unit)
        .span(_WIDTHS[panel.kind])
        .height(_HEIGHTS[panel.kind])
    )
    if panel.kind == "number":
        made = made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if panel.kind == "lines":  # hidden unless it is asked for
        legend = common.VizLegendOptions().show_legend(True).placement(LegendPlacement.BOTTOM)
        made = made.legend(legend.display_mode(LegendDisplayMode.LIST)).min(0)
    for letter, (name, query) in zip("ABCDEF", panel.queries.items(), strict=False):
        if page.source == CLICKHOUSE:
            made = made.with_target(SqlQuery(query, panel.kind))
        else:
            target = prometheus.Dataquery().expr(query).legend_format(name).ref_id(letter)
            made = made.with_target(
                target.format(PromQueryFormat.HEATMAP) if panel.kind == "heat" else target
            )
    return made


def generated() -> dict[str, str]:
    """Every file, by name."""
    return {
        f"docsum-{page.name}.json": json.dumps(built(page), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
        for page in PAGES
    }


if __name__ == "__main__":
    for name, text in generated().items():
        (FOLDER / name).write_text(text)

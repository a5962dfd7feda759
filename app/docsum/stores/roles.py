"""Roles in ClickHouse, as SQL for those who run it themselves: to write, to purge, to see views only.

Not proven on a server. The embedded engine understands every statement and runs those about views, but keeps
no roles. SQL SECURITY is known since ClickHouse 24.2.
"""

from __future__ import annotations

from docsum.settings import ClickHouse
from docsum.stores.migrate import identifier, on_cluster
from docsum.stores.tables import VIEWS

#: What is nobody's but docsum's own.
_OURS = ("tokens", "webhook_deliveries")


def script(settings: ClickHouse) -> str:
    """Roles, grants and what lets a reader of views do without the tables. May be run again."""
    database = identifier(settings.database, "DOCSUM_CLICKHOUSE__DATABASE")
    cluster = on_cluster(settings.cluster)
    writer, purger, reader = (f"{database}_{role}" for role in ("writer", "purger", "reader"))
    views = [f"{database}.{view}" for view in VIEWS if view not in _OURS]
    statements = [
        f"CREATE ROLE IF NOT EXISTS {writer} {cluster}",
        f"GRANT {cluster} SELECT, INSERT ON {database}.* TO {writer}",
        f"CREATE ROLE IF NOT EXISTS {purger} {cluster}",
        f"GRANT {cluster} SELECT, INSERT, ALTER UPDATE, ALTER DELETE ON {database}.* TO {purger}",
        f"CREATE ROLE IF NOT EXISTS {reader} {cluster}",
        *(f"GRANT {cluster} SELECT ON {view} TO {reader}" for view in views),
        *(
            f"ALTER TABLE {view} {cluster} MODIFY SQL SECURITY DEFINER DEFINER = CURRENT_USER"
            for view in views
        ),
    ]
    return "".join(
        (
            "-- Roles: not yet proven on a server.\n",
            f"-- {writer}: workers, the API and commands. {purger}: `docsum documents delete --purge`,\n",
            f"-- and the API where it may purge. {reader}: dashboards; views only, no table.\n",
            "-- Run it again after `docsum setup store`: a view that is made anew forgets its definer.\n",
            f"-- Then: CREATE USER ... IDENTIFIED ...; GRANT {writer} TO ...\n",
            *(f"{' '.join(statement.split())};\n" for statement in statements),
        )
    )

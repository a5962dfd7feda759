#!/usr/bin/env bash
# A copy of docsum's tables, and back: with curl, over HTTP, on a server, a cluster or the local stack.
#   deploy/store.sh backup FOLDER      while everything runs
#   deploy/store.sh restore FOLDER     into the empty tables of `docsum setup store`
# It takes the store's settings as docsum does: DOCSUM_CLICKHOUSE__URL, __DATABASE, __USER, __PASSWORD.
set -euo pipefail

usage() { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
[ $# = 2 ] || usage
folder=$2 url=${DOCSUM_CLICKHOUSE__URL:?is not set} database=${DOCSUM_CLICKHOUSE__DATABASE:-docsum}

# The secret stays off the command line, where every process of the machine could read it.
ask() { # ask STATEMENT FILE [curl's options]: the answer is in FILE, or the server's own words are told
  local statement=$1 answer=$2; shift 2
  curl --silent --show-error --fail-with-body --globoff --output "$answer" "$@" --config <(
    printf 'header = "X-ClickHouse-User: %s"\nheader = "X-ClickHouse-Key: %s"\n' \
      "${DOCSUM_CLICKHOUSE__USER:-default}" "${DOCSUM_CLICKHOUSE__PASSWORD:-}"
    printf 'url = "%s/?database=%s&query=%s"\n' "$url" "$database" "${statement// /%20}"
  ) || { head -c 1000 "$answer" >&2; return 1; }
}
tell() { ask "$1" "$work" && cat "$work"; }
work=$(mktemp); trap 'rm -f "$work"' EXIT

# What follows from others comes first and the money last: while work goes on, a copied summary has its answer then.
# schema_migrations is of the tables, not of the rows: `docsum setup store` writes it.
tables() {
  tell "SELECT name FROM system.tables WHERE database='$database' AND endsWith(engine,'MergeTree') AND name!='schema_migrations' ORDER BY name='answer_versions',name='summary_versions',name FORMAT TSV"
}

backup() {
  local list table
  list=$(tables)
  mkdir -m 700 "$folder"
  for table in $list; do
    ask "SELECT * FROM $table FORMAT Native" "$folder/$table.native"
    echo "$table: $(wc -c < "$folder/$table.native") bytes"
  done
  touch "$folder/complete"
}

restore() {
  [ -f "$folder/complete" ] || { echo "$folder holds no complete copy." >&2; exit 1; }
  local list table rows
  list=$(tables)
  for table in $list; do
    rows=$(tell "SELECT count() FROM $table FORMAT TSV")
    [ "$rows" = 0 ] || { echo "$table is not empty ($rows rows): restore into a database of its own." >&2; exit 1; }
  done
  for table in $list; do
    [ -s "$folder/$table.native" ] || continue  # empty, or younger than the copy
    ask "INSERT INTO $table FORMAT Native" "$work" --request POST --upload-file - < "$folder/$table.native"
    echo "$table: $(tell "SELECT count() FROM $table FORMAT TSV") rows"
  done
}

case $1 in backup) backup ;; restore) restore ;; *) usage ;; esac

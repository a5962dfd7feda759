#!/bin/sh
# Announce documents from a shell: one a line on standard input, with tabs between its fields. JSON, by kcat.
#
# DOCUMENT_ID, URI and, if you know it, SOURCE_VERSION. A line without a URI says that the document is gone.
#
#   apt-get install kcat
#   printf 'invoice-42\ts3://invoices/42.pdf\tetag-1\n' | sh publish.sh localhost:9092 docsum.documents
set -eu
if [ $# -ne 2 ]; then
  echo "usage: publish.sh BROKERS TOPIC < LINES" >&2
  exit 2
fi
# Key, tab, value; nothing behind the tab is a null value (-Z).
awk -F '\t' '
  function quoted(text) { gsub(/\\/, "&&", text); gsub(/"/, "\\\\&", text); return "\"" text "\"" }
  $2 == "" { printf "%s\t\n", $1; next }
  {
    printf "%s\t{\"document_id\": %s, \"uri\": %s, \"source_version\": %s}\n",
      $1, quoted($1), quoted($2), quoted($3)
  }
' |
  # librdkafka places keys elsewhere than Java does, unless it is told.
  kcat -P -b "$1" -t "$2" -K '\t' -Z -X partitioner=murmur2_random -X enable.idempotence=true

"""The billing ledger of the local model server: what was bought, and whether the answer arrived."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from array import array
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import numpy as np

from docsum.local.model_api import Json, compact
from docsum.local.model_replies import Reply, boundary_of
from docsum.local.model_requests import Ask

# Made once: `json.dumps` with options makes a new encoder for each call.
_canonical = json.JSONEncoder(separators=(",", ":"), check_circular=False, sort_keys=True).encode

_SLOT = len('"accepted"')
_ENTRY = re.compile(
    rb'"input_tokens":(\d+),"output_tokens":(\d+),.*"fingerprint":"([0-9a-f]{16})[0-9a-f]{48}"'
)


class Outcome(StrEnum):
    """What became of a billed request; SERVED means that the whole reply went to a live connection."""

    ACCEPTED = "accepted"
    SERVED = "served"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where an entry's outcome stands in the ledger file."""

    generation: int
    at: int


class Ledger:
    """Every billed request, one JSON line each, in a file that outlives a SIGKILL of this process.

    A line is written before the request is answered, and its outcome is overwritten in place, padded with
    spaces; so the file is at any moment the list of entries, and memory holds eight bytes a request.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise OSError(f"another model server uses {path}; stop it or choose another --home") from error
        self._generation = 0
        self._clear()
        self._recover()

    def close(self) -> None:
        os.close(self._file)

    def reset(self) -> None:
        """Forget every entry; replies under way are not recorded any more."""
        os.ftruncate(self._file, 0)
        self._generation += 1
        self._clear()

    def accept(self, ask: Ask, reply: Reply, request_id: str, tier: str = "standard") -> Receipt:
        """Write the entry; after this the request has been paid for. A tier of `batch` is half the price."""
        fingerprint = fingerprint_of(ask)
        entry = {
            "n": self._accepted + 1,
            "request_id": request_id,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "model": ask.model.id,
            "input_tokens": ask.input_tokens,
            "output_tokens": reply.output_tokens,
            "stop_reason": reply.stop_reason,
            "user_id": ask.user_id,
            "service_tier": tier,
            "fingerprint": fingerprint,
            "outcome": Outcome.ACCEPTED,
        }
        line = (compact(entry) + "\n").encode()
        if os.pwrite(self._file, line, self._end) != len(line):
            raise OSError(f"{self.path} could not be written")
        self._end += len(line)
        self._count(ask.input_tokens, reply.output_tokens, fingerprint[:16])
        return Receipt(self._generation, self._end - _SLOT - len("}\n"))

    def settle(self, receipt: Receipt, outcome: Outcome) -> None:
        if receipt.generation != self._generation:
            return
        self._write_outcome(receipt.at, outcome)

    def totals(self) -> Json:
        return {
            "accepted": self._accepted,
            "served": self._outcomes[Outcome.SERVED],
            "lost": self._outcomes[Outcome.LOST],
            "in_flight": self._accepted - sum(self._outcomes.values()),
            "input_tokens": self._input_tokens,
            "output_tokens": self._output_tokens,
        }

    def entries(self) -> Iterator[bytes]:
        """The entries of this moment as NDJSON, in pieces."""
        end = self._end
        for start in range(0, end, 1 << 20):
            yield os.pread(self._file, min(1 << 20, end - start), start)

    def fingerprints(self) -> Callable[[], Json]:
        """A report on what was paid for more than once; the call that makes it may run in a thread."""
        prefixes, end = np.array(self._prefixes, dtype=np.uint64), self._end

        def report() -> Json:
            distinct, counts = np.unique(prefixes, return_counts=True)
            again = counts > 1
            repeated = zip(distinct[again].tolist(), counts[again].tolist(), strict=True)
            worst = sorted(repeated, key=lambda pair: (-pair[1], pair[0]))[:100]
            wanted = {f"{prefix:016x}": count for prefix, count in worst}
            names = self._full_names(wanted, end)
            paid = {names[prefix]: count for prefix, count in wanted.items()}
            return {"distinct": len(distinct), "repeated": int(again.sum()), "paid_more_than_once": paid}

        return report

    def _full_names(self, prefixes: Collection[str], end: int) -> dict[str, str]:
        names: dict[str, str] = {}
        with self.path.open("rb") as file:
            while len(names) < len(prefixes) and file.tell() < end:
                start = (line := file.readline()).rindex(b'"fingerprint":"') + len('"fingerprint":"')
                name = line[start : start + 64].decode()
                if name[:16] in prefixes:
                    names.setdefault(name[:16], name)
        return names

    def _clear(self) -> None:
        self._end = self._accepted = self._input_tokens = self._output_tokens = 0
        self._outcomes = dict.fromkeys((Outcome.SERVED, Outcome.LOST), 0)
        self._prefixes = array("Q")

    def _count(self, input_tokens: int, output_tokens: int, prefix: str | bytes) -> None:
        self._accepted += 1
        self._input_tokens += input_tokens
        self._output_tokens += output_tokens
        self._prefixes.append(int(prefix, 16))

    def _write_outcome(self, at: int, outcome: Outcome) -> None:
        os.pwrite(self._file, f'"{outcome}"'.ljust(_SLOT).encode(), at)
        self._outcomes[outcome] += 1

    def _recover(self) -> None:
        """Read what an earlier process left: a half-written line goes, an unanswered request was lost."""
        with self.path.open("rb") as file:
            for line in file:
                numbers = _ENTRY.search(line)
                if not line.endswith(b"}\n") or numbers is None:
                    break
                self._end += len(line)
                self._count(int(numbers[1]), int(numbers[2]), numbers[3])
                at = self._end - _SLOT - len("}\n")
                outcome = Outcome(line[-_SLOT - 2 : -2].strip().strip(b'"').decode())
                if outcome is Outcome.ACCEPTED:
                    self._write_outcome(at, Outcome.LOST)
                else:
                    self._outcomes[outcome] += 1
        os.ftruncate(self._file, self._end)


def fingerprint_of(ask: Ask) -> str:
    """sha256 of the request without `max_tokens` and without the random id of the document tags, as hex."""
    text = _canonical({name: value for name, value in ask.body.items() if name != "max_tokens"})
    if boundary := boundary_of(ask.texts[-1]):
        text = text.replace(f'id=\\"{boundary}\\"', 'id=\\"\\"')
    return hashlib.sha256(text.encode()).hexdigest()

"""`docsum run s3://...` as a user runs it, on a real stack beside a real S3 server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.deployment import Deployment
from tests.support.object_store import Fault, FaultProxy, S3Server, environment, s3_server
from tests.support.texts import write_documents

pytestmark = pytest.mark.timeout(400)


class House:
    """One stack for all tests here: starting it takes most of the time."""

    def __init__(self, folder: Path, s3: S3Server, proxy: FaultProxy) -> None:
        self.folder = folder
        self.s3 = s3
        self.proxy = proxy
        self.deployment = Deployment(folder, DOCSUM_RETRY__DELAYS="1s,2s", **environment(proxy.url))

    def run(self, *arguments: str, ok: tuple[int, ...] = (0,)) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.deployment.docsum("run", *arguments, "--json", ok=ok))
        return found

    def rows(self, run_id: str) -> dict[str, dict[str, Any]]:
        exported = self.deployment.docsum("export", "--run", run_id).splitlines()
        return {row["document_id"]: row for row in map(json.loads, exported)}

    def fill(self, bucket: str, prefix: str, count: int, seed: int) -> None:
        """Documents under `prefix`, `00000.txt` and so on."""
        documents = self.folder / bucket
        write_documents(documents, count, seed)
        for path in documents.iterdir():
            self.s3.put(bucket, f"{prefix}/{path.name}", path.read_bytes())

    def fetched(self) -> list[str]:
        """Objects that were asked for since the last look."""
        asked = [seen.path for seen in self.proxy.requests(r"\.txt$")]
        self.proxy.seen.clear()
        return asked


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    with s3_server(folder) as s3, FaultProxy(s3.url) as proxy:
        made = House(folder, s3, proxy)
        try:
            yield made
        finally:
            made.deployment.close()


@pytest.fixture
def bucket(house: House) -> str:
    return house.s3.bucket()


def test_a_prefix_is_summarised_and_the_second_time_only_what_changed_is_fetched(
    house: House, bucket: str
) -> None:
    house.fill(bucket, "reports/2026", 5, seed=1)
    house.s3.put(bucket, "reports/2026/", b"")
    house.s3.put(bucket, "reports-of-others/a.txt", b"not meant")
    first = house.run(f"s3://{bucket}/reports")
    assert (first["done"], first["total"]) == (5, 5)
    assert len(house.fetched()) == 5
    second = house.run(f"s3://{bucket}/reports")
    assert (second["done"], second["skipped"]) == (0, 5)
    assert house.fetched() == []
    house.s3.put(bucket, "reports/2026/00003.txt", b"The harbour is closed for good. Nobody repairs it.\n")
    third = house.run(f"s3://{bucket}/**/*.txt")
    assert (third["done"], third["skipped"]) == (2, 4)  # with the other reports
    assert len(house.fetched()) == 2
    row = house.rows(third["run_id"])[f"s3://{bucket}/reports/2026/00003.txt"]
    assert "closed for good" in row["summary"]


def test_a_manifest_reads_what_is_allowed_and_says_what_is_in_the_way_of_the_rest(
    house: House, bucket: str
) -> None:
    house.fill(bucket, "open", 2, seed=2)
    assert house.run(f"s3://{bucket}/open/00000.txt")["done"] == 1  # opens this one object alone
    uris = {
        "one": f"s3://{bucket}/open/00000.txt",
        "gone": f"s3://{bucket}/open/00000.txt/gone.txt",
        "closed": f"s3://{bucket}/open/00001.txt",
        "elsewhere": "https://example.org/a.txt",
    }
    manifest = house.folder / "list.jsonl"
    manifest.write_text("\n".join(json.dumps({"document_id": i, "uri": u}) for i, u in uris.items()))
    shown = house.run(str(manifest), ok=(3,))
    assert (shown["done"], shown["dead_lettered"]) == (1, 3)
    rows = house.rows(shown["run_id"])
    assert {name: rows[name]["reason"] for name in ("gone", "closed", "elsewhere")} == {
        "gone": "source_not_found",
        "closed": "source_not_allowed",
        "elsewhere": "source_not_allowed",
    }
    assert "DOCSUM_FETCH__BUCKETS" in rows["closed"]["message"]
    assert "DOCSUM_FETCH__HOSTS" in rows["elsewhere"]["message"]


def test_a_store_that_asks_for_a_pause_is_tried_again_and_a_refusal_ends_as_one(
    house: House, bucket: str
) -> None:
    house.fill(bucket, "busy", 3, seed=3)
    house.proxy.faults = [
        Fault("busy/00000.txt", status=503, code="SlowDown", times=3),
        Fault("busy/00001.txt", status=403, code="AccessDenied"),
    ]
    shown = house.run(f"s3://{bucket}/busy", ok=(3,))
    house.proxy.faults = []
    assert (shown["done"], shown["dead_lettered"]) == (2, 1)
    rows = house.rows(shown["run_id"])
    assert rows[f"s3://{bucket}/busy/00000.txt"]["attempt"] == 2
    refused = rows[f"s3://{bucket}/busy/00001.txt"]
    assert (refused["reason"], refused["attempt"]) == ("source_forbidden", 3)
    assert "403 AccessDenied" in refused["message"]


def test_what_cannot_be_listed_is_said_before_anything_is_announced(house: House, bucket: str) -> None:
    house.deployment.docsum("run", f"s3://{bucket}/nothing", ok=(2,))
    house.deployment.docsum("run", "s3://there-is-no-such-bucket/a", ok=(1,))
    house.deployment.docsum("run", "ftp://example.org/a", ok=(2,))

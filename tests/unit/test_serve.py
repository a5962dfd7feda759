"""What a worker process needs before it can be one."""

from __future__ import annotations

from pathlib import Path

import pytest

from docsum.errors import ConfigurationError
from docsum.serve import state_folder


def test_a_home_that_is_not_there_yet_is_made(tmp_path: Path) -> None:
    home = tmp_path / "a" / "home"
    for _ in range(2):
        assert state_folder(home) == home / "faust"
    assert (home / "faust").is_dir()


def test_a_home_that_cannot_be_made_is_a_setting_to_correct(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="set DOCSUM_HOME to a folder"):
        state_folder(tmp_path / "file" / "home")

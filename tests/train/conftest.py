"""What tests of trainings share."""

from pathlib import Path

import pytest
from support.cli import pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures(tmp_path / "data" / "train", classes=2, each=8)
    return tmp_path / "data"

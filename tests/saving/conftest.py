"""What tests of saving have in common."""

from pathlib import Path

import pytest
from support.saving import tiny

import vitfold


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches for the network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that is only read."""
    directory = tmp_path_factory.mktemp("saved")
    vitfold.save(vitfold.fold(tiny(), "tome", r=3), directory, backbone=True)
    return directory


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path

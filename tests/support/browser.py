"""A browser without a screen, where the machine has one, and a page as a user opens it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import vitfold

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

WAIT = 120.0
"""Seconds: machines that run tests may be busy."""

TEXT = """
import torch
from timm.models.vision_transformer import VisionTransformer


def build():
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=64, patch_size=8, embed_dim=48, num_heads=3, depth=4, num_classes=10
    )
"""
"""A file with a small model."""


def chromium() -> str:
    """The program; without one, or without what drives it, the test is skipped."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    pytest.importorskip("playwright", reason="playwright is not installed")
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no Chromium on this machine: {', '.join(NAMES)}")
    return program


@contextmanager
def explored(folder: Path, *options: str) -> Iterator[str]:
    """The address of `vitfold explore` of a small model, in a process of its own."""
    (folder / "model.py").write_text(TEXT)
    log = folder / "log.txt"
    command = [sys.executable, "-m", "vitfold", "explore", "model.py:build", "--port", "0"]
    source = str(Path(vitfold.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "TMPDIR": str(folder)}
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--no-browser", *options],
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            yield _address(process, log)
        finally:
            process.terminate()
            process.wait(WAIT)
    assert not list(folder.glob("vitfold-explore-*")), "files of the page are left"


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    end = time.monotonic() + WAIT
    while time.monotonic() < end and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("http"):
                return line.split()[0]
        time.sleep(0.1)
    raise AssertionError(f"no page: {log.read_text()}")

"""What docs/serving.md says is so; its examples run with those of all pages, in test_pages.py."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.small import vit
from support.stand_ins import SERVED
from torch import nn

import vitfold
from vitfold.cli import names
from vitfold.cli.commands import load
from vitfold.data import preprocessing
from vitfold.exporting import inside, verify

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A folded model, in a directory with a photograph."""
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    seed = torch.Generator().manual_seed(0)
    few = torch.randint(256, (5, 6, 3), generator=seed, dtype=torch.uint8)
    Image.fromarray(few.numpy()).resize((60, 45), Image.Resampling.BICUBIC).save("photo.jpg")
    return vitfold.fold(vit(depth=2).float(), "tome", r=4)


@pytest.mark.exhaustive
@pytest.mark.skipif(shutil.which("c++") is None, reason="it takes a compiler")
def test_the_example_of_a_compiled_program_gives_the_models_answer(folded: nn.Module) -> None:
    vitfold.export(folded, "served-aoti", target="aoti", repeats=1)
    (code,) = [block for block in BLOCKS if '"served-aoti/' in block]
    shown: dict[str, Any] = {}
    exec(code, shown)
    with torch.no_grad():
        expected = folded(preprocessing(folded)(Image.open("photo.jpg")).unsqueeze(0))
    result = torch.as_tensor(shown["logits"])
    assert result.shape == expected.shape
    assert torch.nn.functional.cosine_similarity(result, expected).min() > 0.98


def test_every_example_and_every_target_is_looked_at() -> None:
    places = {*SERVED, "served-aoti"}
    assert len(BLOCKS) == len(places)
    commands = re.findall(r"^vitfold export .*-o ([\w-]+)$", TEXT, re.MULTILINE)
    assert places < set(commands)
    for target in names.TARGETS:
        assert f"| `{target}` |" in TEXT


def test_commands_have_options_that_there_are() -> None:
    known = {name for parameter in load("export").params for name in parameter.opts}
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", TEXT))
    assert len(used) > 5
    assert used <= known


def test_figures_are_those_of_the_code() -> None:
    assert f"above {verify.LIMIT:.0e}".replace("1e-03", "1e-3") in TEXT
    assert f"up to {verify.MOST} of the images" in TEXT
    assert f"differ by {inside.LEVELS:.0f} of 255" in TEXT
    assert f"cosine of {inside.NEAR} at least" in TEXT


def test_the_report_is_described_as_it_is(tmp_path: Path) -> None:
    model = vit(depth=2).float()
    told = vitfold.export(model, tmp_path / "out", target="torch", repeats=1).to_json()
    for name in (*told, *told["agreement"]):
        assert f"`{name}`" in TEXT, name

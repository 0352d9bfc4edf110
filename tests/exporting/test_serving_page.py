"""What docs/serving.md shows works as it stands there."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.small import vit
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


EXAMPLES = [
    ("served-onnx", "onnx", {}),
    ("served-openvino", "openvino", {}),
    ("pictures", "openvino", {"preprocess": True}),
    ("served-torch", "torch", {}),
    pytest.param("served-aoti", "aoti", {}, marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize(("place", "target", "options"), EXAMPLES)
def test_an_example_gives_the_models_answer(
    place: str, target: str, options: dict[str, Any], folded: nn.Module
) -> None:
    if target == "openvino":
        pytest.importorskip("openvino")
    if target == "aoti" and shutil.which("c++") is None:
        pytest.skip("it takes a compiler")
    vitfold.export(folded, place, target=target, repeats=1, **options)
    (code,) = [block for block in BLOCKS if f'"{place}/' in block]
    shown: dict[str, Any] = {}
    exec(code, shown)
    with torch.no_grad():
        expected = folded(preprocessing(folded)(Image.open("photo.jpg")).unsqueeze(0))
    result = torch.as_tensor(shown["logits"])
    assert result.shape == expected.shape
    assert torch.nn.functional.cosine_similarity(result, expected).min() > 0.98


def test_every_example_and_every_target_is_looked_at() -> None:
    places = {getattr(example, "values", example)[0] for example in EXAMPLES}
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

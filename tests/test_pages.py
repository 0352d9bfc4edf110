"""Every block of README.md and of the pages of docs runs as it stands there."""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import reading
from support.cli import pictures, vitfold_
from support.corpora import image
from support.holders import HOLDERS
from support.pages import PAGES, ROOT, blocks, command_lines, folding_lines, inline_code, text
from support.stand_ins import STAND_INS, no_download

import vitfold
from vitfold.folding.families.registry import REGISTRY

FOLDING = sorted({line for page in PAGES for line in folding_lines(page)})

WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_blocks_of_a_page_run_in_their_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert page in STAND_INS, f"{page} has blocks of Python: support/stand_ins.py knows none"
    desk = STAND_INS[page](monkeypatch)
    for block in blocks(page, "python"):
        names = next(desk, None)
        assert names is not None, f"{block}: support/stand_ins.py does not know this block"
        block.run(names)
    left = next(desk, None)
    assert left is None, f"{page}: support/stand_ins.py knows a block that is not there"


@pytest.mark.parametrize("line", FOLDING)
def test_a_line_of_a_table_folds_what_the_library_holds(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [holder] = [make for words, make in HOLDERS.items() if words in line]
    desk = holder(monkeypatch)
    names, answer = next(desk)
    dense = answer()
    model = eval(line, {"vitfold": vitfold, **names})
    assert vitfold.folded(model) is not None
    folded = answer()
    assert folded.shape == dense.shape
    assert not torch.equal(folded, dense)
    vitfold.unfold(model)
    assert torch.equal(answer(), dense)
    assert next(desk, None) is None


def test_every_library_has_its_line() -> None:
    for words in HOLDERS:
        assert any(words in line for line in FOLDING), words


def test_no_page_is_looked_for_that_is_gone() -> None:
    assert set(STAND_INS) == set(WITH_PYTHON)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_looked_at(page: str) -> None:
    for block in blocks(page):
        assert block.language in ("python", "toml", "sh", ""), str(block)
        if block.language == "toml":
            assert tomllib.loads(block.code), str(block)


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_are_read_by_what_they_call(page: str, in_the_root: None) -> None:
    """Options exist and take such values; scripts, extras and targets of make exist."""
    for place, words in command_lines(page):
        read(place, words)
    for code in inline_code(page):
        if code.startswith(("vitfold ", "python benchmarks/", "python scripts/", "pip ", "make ")):
            read(f"{page}: {code}", code.split(), whole=False)


def read(place: str, words: list[str], whole: bool = True) -> None:
    """Parse a command of a page. In prose it may leave out its arguments."""
    try:
        reading.parse(words, set(extras()), makefile_targets())
    except Exception as error:
        if whole or not reading.incomplete(error):
            pytest.fail(f"{place}: {type(error).__name__}: {error}")


@pytest.fixture
def in_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Where commands of the repository are called, with the method that a page shows beside."""
    (code,) = (block.code for block in blocks("docs/adding-a-method.md", "python"))
    (tmp_path / "tail.py").write_text(code.partition("vitfold.fold(")[0])
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(tmp_path))
    for folder in "benchmarks", "scripts":
        monkeypatch.syspath_prepend(str(ROOT / folder))
    yield
    sys.modules.pop("tail", None)
    vitfold.METHODS.pop("tail", None)


def extras() -> dict[str, list[str]]:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return dict(content["project"]["optional-dependencies"])


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_extras_that_a_page_names_exist(page: str) -> None:
    for names in re.findall(r"vitfold\[([\w,-]+)\]", text(page)):
        assert set(names.split(",")) <= set(extras()), names


def test_the_readme_lists_extras_that_exist() -> None:
    (line,) = re.findall(r"^As a package: .*", text("README.md"), re.MULTILINE)
    listed = set(re.findall(r"`(\w+)`", line))
    assert len(listed) > 5
    assert listed <= set(extras())


@pytest.mark.parametrize(
    "line",
    [
        "vitfold bench deit_small_patch16_224 --no-such-option",
        "vitfold bench deit_small_patch16_224 --repeats many",
        "vitfold bend deit_small_patch16_224",
        "vitfold trace",
        "python benchmarks/speed.py --no-such-option",
        "python benchmarks/no_such_script.py",
        "pip install vitfold[nothing]",
        "make nothing",
        "docker run vitfold",
    ],
)
def test_what_no_command_takes_is_found(line: str, in_the_root: None) -> None:
    with pytest.raises(pytest.fail.Exception, match=line.split()[0]):
        read(line, line.split())


@pytest.fixture
def own_registry() -> Iterator[None]:
    """What a page registers is gone after its test."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


RUN = [
    "vitfold families",
    "vitfold bench tiny.py:TinyViT --model-kwargs depth=6 --r 8",
    "vitfold trace deit_small_patch16_224 photo.jpg --method lgtm --r 16",
    "vitfold embed vit_base_patch16_siglip_224 photographs/ -o embeddings/ --r 8",
]
"""What runs in a few seconds, on narrow models in place of those that are downloaded."""


@pytest.mark.parametrize("line", RUN)
def test_what_is_quick_runs(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_registry: None
) -> None:
    assert any(line in text(page) for page in PAGES), "no page has it any more"
    monkeypatch.chdir(tmp_path)
    no_download(monkeypatch, embed_dim=48, num_heads=3)
    image(0).save("photo.jpg")
    pictures(tmp_path / "photographs")
    code = (block.code for block in blocks("docs/adding-a-family.md", "python")[:2])
    Path("tiny.py").write_text("\n".join(code).rpartition("model = ")[0])
    assert vitfold_(monkeypatch, *line.split()[1:]) == 0

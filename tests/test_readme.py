"""Links between the pages, and the site that is made of them."""

import re
from pathlib import Path

import pytest
from support import pages

import vitfold

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)", page.read_text("utf-8")):
        if link.startswith("https://"):
            continue
        target = page if not link else (page.parent / link).resolve()
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            named = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
            assert anchor in named, f"{link}#{anchor}"


def test_the_site_is_whole(tmp_path: Path) -> None:
    """Links lead somewhere, every page is reached, and the reference names what there is."""
    built = pages.mkdocs("build", "--strict", "-d", tmp_path)
    assert built.returncode == 0, built.stderr
    reference = (tmp_path / "reference.html").read_text("utf-8")
    for name in {*vitfold.__all__} - {"METHODS"}:
        assert f'id="vitfold.{name}"' in reference, name
    [places] = (tmp_path / "benchmarks").glob("measured-*-int8-openvino.csv")
    assert places.read_text("utf-8").startswith("benchmark,")
    assert (tmp_path / "benchmarks" / "runtimes-cpu.csv").read_text("utf-8").count("\n") > 20

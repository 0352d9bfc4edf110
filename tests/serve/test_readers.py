"""What the page on embedding shows works as it stands there: readers, and an index."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support import corpora

import vitfold
from vitfold.serve.embedder import Embedder

PAGE = Path(__file__).parents[2] / "docs" / "embedding.md"

BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_blocks_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    corpora.folder(tmp_path / "photographs", 12)
    (tmp_path / "photographs" / "tall.jpg").write_bytes(_tall())
    names: dict[str, object] = {}
    assert len(BLOCKS) == 3
    first = BLOCKS[0].replace("certificate=100", f'certificate=100, dtype="{dtype}", workers=0')
    exec(first, names)
    result = names["result"]
    assert isinstance(result, vitfold.Embedded)
    assert result.rows == 13
    exec(BLOCKS[1], names)
    expected = {row["id"]: row["embedding"] for row in corpora.rows(tmp_path / "corpus")}
    frame, dataset, wide = (names[name] for name in ("frame", "dataset", "wide"))
    pairs = [
        dict(zip(frame["id"], frame["embedding"], strict=True)),  # type: ignore[index]
        dict(zip(dataset["id"], dataset["embedding"], strict=True)),  # type: ignore[index]
        dict(wide.fetchall()),  # type: ignore[attr-defined]
    ]
    for found, count in zip(pairs, (13, 13, 12), strict=True):
        assert len(found) == count
        for name, embedding in found.items():
            assert np.array_equal(np.array(embedding, dtype), np.array(expected[name], dtype))
    exec(BLOCKS[2], names)
    neighbours = names["neighbours"]
    assert isinstance(neighbours, list)
    assert neighbours[0] == corpora.rows(tmp_path / "corpus")[0]["id"]
    assert len(set(neighbours)) == 5


def _tall() -> bytes:
    import io

    out = io.BytesIO()
    corpora.image(99, (30, 50)).save(out, "JPEG")
    return out.getvalue()


def test_preprocessing_in_two_parts_is_that_of_the_model() -> None:
    """In eight bits where images are read, and the rest where the model computes: the same bits."""
    from vitfold.data import preprocessing
    from vitfold.serve.decoding import Decoder
    from vitfold.serve.embedder import preparation_of
    from vitfold.serve.settings import Settings

    model = corpora.model()
    preparation = preparation_of(model)
    picture = corpora.image(3, (90, 70))
    eight = Decoder(preparation).transform(picture)
    assert eight.dtype == torch.uint8
    ours = Embedder(model, preparation, Settings(), torch.device("cpu")).prepared(
        eight[None].numpy()
    )
    assert torch.equal(ours[0], preprocessing(model)(picture))

"""One shard: its images embedded, its file written whole, and a record of both.

A shard is done when its record is there: that is written last, and says what its file must be. The
same images give the same file, bit for bit, whoever writes it.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitfold.errors import DataError
from vitfold.files import whole, writing
from vitfold.serve.decoding import Decoded
from vitfold.serve.embedder import Embedder
from vitfold.serve.entries import Entry
from vitfold.serve.libraries import arrow, parquet
from vitfold.serve.listing import digest

Failure = dict[str, str]
"""id, path and reason of an image that is not among the rows."""

NO_NUMBER = "the model gives it an embedding with NaN or infinity in it"


@dataclass(frozen=True)
class Record:
    """What became of the images of a shard.

    file: relative to the directory of the corpus.
    """

    shard: int
    file: str
    images: int
    rows: int
    bytes: int
    sha256: str
    failures: list[Failure]

    @property
    def adds_up(self) -> bool:
        """Whether every image is a row or a failure."""
        return self.images == self.rows + len(self.failures)


@dataclass(frozen=True)
class Shards:
    """The shards in the directory of a corpus.

    shapes: what the model gives for an image: `embedding` and `tokens`, None where it gives none.
    dtype: of embeddings.
    """

    directory: Path
    shapes: dict[str, list[int] | None]
    dtype: str

    def file(self, number: int) -> Path:
        """The file of a shard."""
        return self.directory / "embeddings" / f"{number:06d}.parquet"

    def record_file(self, number: int) -> Path:
        """The file of its record."""
        return self.directory / "work" / "records" / f"{number:06d}.json"

    def record(self, number: int) -> Record | None:
        """What became of a shard; None where nothing has yet."""
        try:
            text = self.record_file(number).read_text(encoding="utf-8")
            return Record(**json.loads(text))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):  # it is damaged, and made anew
            return None

    def done(self, number: int) -> Record | None:
        """The same of a shard whose file is what it was."""
        record = self.record(number)
        try:
            holds = record is not None and digest(self.file(number)) == record.sha256
        except OSError:
            holds = False
        return record if holds else None

    def columns(self) -> dict[str, tuple[str, Any]]:
        """Columns of numbers, and what they are of: the dtype, and how many there are of each."""
        dtypes = {"embedding": self.dtype, "tokens": "float16"}
        sizes = {name: shape for name, shape in self.shapes.items() if shape is not None}
        return {name: (dtypes[name], int(np.prod(shape))) for name, shape in sizes.items()}

    def schema(self) -> Any:
        """What a shard's file holds."""
        pa = arrow()
        numbers = [
            (name, pa.list_(pa.type_for_alias(dtype), size))
            for name, (dtype, size) in self.columns().items()
        ]
        text, sides = [("id", pa.string()), ("path", pa.string())], ("width", "height")
        return pa.schema([*text, *numbers, *((side, pa.int32()) for side in sides)])

    def write(self, number: int, entries: Sequence[Entry], parts: "Sequence[Part]") -> Record:
        """Write a shard, and its record after it."""
        pa, schema = arrow(), self.schema()
        kept = [entries[place] for part in parts for place in part.places]
        columns = {"id": [entry.id for entry in kept], "path": [entry.path for entry in kept]}
        arrays = {name: pa.array(column, pa.string()) for name, column in columns.items()}
        for name, (_, size) in self.columns().items():
            flat = pa.array(np.concatenate([part.numbers[name].reshape(-1) for part in parts]))
            arrays[name] = pa.FixedSizeListArray.from_arrays(flat, size)
        sizes = np.concatenate([part.sizes for part in parts])
        arrays |= {"width": pa.array(sizes[:, 0]), "height": pa.array(sizes[:, 1])}
        table = pa.table([arrays[name] for name in schema.names], schema=schema)
        file = self.file(number)
        with writing(file, DataError), whole(file) as path:
            parquet().write_table(table, path, compression="zstd", use_dictionary=False)
            record = Record(
                number,
                str(file.relative_to(self.directory)),
                len(entries),
                len(kept),
                path.stat().st_size,
                digest(path),
                [failure for part in parts for failure in part.failures],
            )
        self._keep(record)
        return record

    def _keep(self, record: Record) -> None:
        path = self.record_file(record.shard)
        with writing(path, DataError), whole(path) as part:
            part.write_text(json.dumps(asdict(record)), encoding="utf-8")


@dataclass(frozen=True, eq=False)
class Part:
    """What one batch of a shard comes to.

    places: the places in the shard of the images that are rows.
    numbers: `[rows, ...]` by column.
    sizes: `[rows, 2]`.
    """

    places: list[int]
    numbers: dict[str, Any]
    sizes: Any
    failures: list[Failure]


def embed_shard(
    embedder: Embedder,
    shards: Shards,
    number: int,
    entries: Sequence[Entry],
    batches: Iterable[Decoded],
) -> Iterator[Record | Part]:
    """Embed a shard and write it: what each batch comes to, and its record in the end.

    batches: its images decoded, in the order of its entries.
    """
    parts: list[Part] = []
    start = 0
    for decoded in batches:
        count = len(decoded.reasons)
        parts.append(part_of(embedder, start, entries[start : start + count], decoded))
        start += count
        yield parts[-1]
    yield shards.write(number, entries, parts)


def part_of(embedder: Embedder, start: int, entries: Sequence[Entry], decoded: Decoded) -> Part:
    """Embed a batch: the rows of what was read, and failures of all else."""
    embedding, tokens = embedder(decoded)
    numbers = {"embedding": embedding, "tokens": tokens}
    numbers = {name: rows for name, rows in numbers.items() if rows is not None}
    reasons = list(decoded.reasons)
    for place, entry in enumerate(entries):
        if reasons[place] is None and not all(
            np.isfinite(n[place]).all() for n in numbers.values()
        ):
            reasons[place] = f"{entry.path}: {NO_NUMBER}"
    good = [place for place, reason in enumerate(reasons) if reason is None]
    failures = [
        {"id": entry.id, "path": entry.path, "reason": reason}
        for entry, reason in zip(entries, reasons, strict=True)
        if reason is not None
    ]
    kept = {name: rows[good] for name, rows in numbers.items()}
    return Part([start + place for place in good], kept, decoded.sizes[good], failures)

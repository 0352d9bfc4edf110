"""The end of a run: what came in, what went out, what failed, and that this adds up."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitfold.errors import DataError
from vitfold.files import whole, writing
from vitfold.serve.job import Job
from vitfold.serve.libraries import arrow, parquet
from vitfold.serve.listing import in_parts
from vitfold.serve.shards import Failure, Record, Shards

FILE, FAILURES = "manifest.json", "failures.parquet"

RUN = ("run", "certificate")
"""What a manifest has of the last run that did anything."""

MANY = 4096
"""How many failures are written at a time."""


@dataclass(frozen=True)
class Embedded:
    """A corpus that is embedded.

    images: how many there are; each is one of `rows` or of `failed`.
    manifest: what is in manifest.json.
    """

    directory: Path
    images: int
    rows: int
    failed: int
    manifest: Mapping[str, Any]

    @property
    def files(self) -> list[Path]:
        """The files of Parquet with the embeddings, in order."""
        return [self.directory / shard["file"] for shard in self.manifest["shards"]]


def records(shards: Shards, count: int) -> Iterator[Record]:
    """The records of all shards; refused where one is not there, or does not add up."""
    for number in range(count):
        record = shards.record(number)
        if record is None or not record.adds_up:
            path = shards.record_file(number)
            raise DataError(f"{path} is not there or does not add up: run the same again")
        yield record


def write_failures(directory: Path, failures: Iterable[Failure]) -> None:
    """Write every image that could not be read, with the reason; a file without rows where there
    is none."""
    pa = arrow()
    schema = pa.schema([(name, pa.string()) for name in ("id", "path", "reason")])
    path = directory / FAILURES
    with writing(path, DataError), whole(path) as part:
        writer = parquet().ParquetWriter(part, schema, compression="zstd")
        for rows in in_parts(failures, MANY):
            writer.write_table(pa.Table.from_pylist(rows, schema))
        writer.close()


def finish(
    shards: Shards, job: Job, count: int, before: Mapping[str, Any], run: dict[str, Any]
) -> Embedded:
    """Write failures and manifest of a corpus whose shards are all there; refused where images are
    neither rows nor failures.

    before: the manifest that was there, whose figures stay where there are no new ones.
    """
    entries = [_entry(record) for record in records(shards, count)]
    run = {name: before[name] for name in RUN if name in before} | run
    rows, failed = (sum(entry[name] for entry in entries) for name in ("rows", "failed"))
    if job.images != rows + failed:
        raise DataError(
            f"{shards.directory}: {job.images} images came in, and {rows} + {failed} are rows and "
            "failures: run the same again"
        )
    write_failures(
        shards.directory, (f for record in records(shards, count) for f in record.failures)
    )
    manifest = _manifest(job, rows, failed, entries, run)
    write(shards.directory / FILE, manifest)
    return Embedded(shards.directory, job.images, rows, failed, manifest)


def _manifest(
    job: Job, rows: int, failed: int, entries: list[dict[str, Any]], run: dict[str, Any]
) -> dict[str, Any]:
    return {
        "format": job.format,
        "counts": {"in": job.images, "out": rows, "failed": failed},
        "skipped": job.skipped,
        "source": job.source,
        "model": job.model,
        "fold": job.fold,
        "preparation": job.preparation,
        "settings": job.settings,
        "shapes": job.shapes,
        "versions": job.versions,
        **run,
        "listing": job.listing,
        "shards": entries,
    }


def write(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest, whole."""
    with writing(path, DataError), whole(path) as part:
        part.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def read(directory: Path) -> dict[str, Any]:
    """The manifest of a directory; empty where there is none that can be read."""
    try:
        content = json.loads((directory / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _entry(record: Record) -> dict[str, Any]:
    return {
        "file": record.file,
        "rows": record.rows,
        "failed": len(record.failures),
        "bytes": record.bytes,
        "sha256": record.sha256,
    }

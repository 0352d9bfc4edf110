"""The engine of one machine: processes decode ahead, and this one computes."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from vitfold.serve.entries import Entry
from vitfold.serve.pool import Pool
from vitfold.serve.shards import Part, embed_shard
from vitfold.serve.work import Tally, Work


def run(work: Work, tally: Tally) -> None:
    """Embed all shards that are to be done, one after another; what follows is decoded
    meanwhile."""
    embedder, pool = work.embedder(), Pool(work.preparation, work.workers)
    shards: deque[Sequence[Entry]] = deque()
    decoded = pool.stream(_batches(work, shards))
    try:
        for number in work.todo:
            first = next(decoded)  # which reads the entries of its shard
            entries = shards.popleft()
            rest = islice(decoded, -(-len(entries) // work.settings.batch_size) - 1)
            batches = chain([first], rest)
            for result in embed_shard(embedder, work.shards, number, entries, batches):
                if isinstance(result, Part):
                    images = len(result.places) + len(result.failures)
                    tally.add(images, result.failures, pool.decoded)
    finally:
        decoded.close()  # type: ignore[attr-defined]


def _batches(work: Work, shards: deque[Sequence[Entry]]) -> Iterator[Sequence[Entry]]:
    """The batches of all shards; the entries of each shard that is begun are kept."""
    listing = work.open()
    for number in work.todo:
        entries = listing.shard(number)
        shards.append(entries)
        yield from work.batches(entries)

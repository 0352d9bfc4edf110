"""A group of processes of which there is one: enough for torch to put its own way of calling
around a model."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def one_process(place: Path) -> Iterator[None]:
    """Within it, the group.

    place: where it keeps its file.
    """
    from torch.distributed import FileStore, destroy_process_group, init_process_group

    init_process_group("gloo", store=FileStore(str(place / "s"), 1), rank=0, world_size=1)
    try:
        yield
    finally:
        destroy_process_group()

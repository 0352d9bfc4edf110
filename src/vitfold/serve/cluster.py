"""The engine of Ray Data, on one machine or a cluster: tasks read shards, an actor for each device
embeds them. What runs where and when, and again where a process is lost, is Ray's."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from importlib.machinery import PathFinder
from typing import Any

import torch
from torch import nn

from vitfold.errors import DataError, VitfoldError, one_line
from vitfold.saving.sources import file
from vitfold.serve import libraries
from vitfold.serve.decoding import Decoded, Decoder, joined
from vitfold.serve.embedder import Embedder
from vitfold.serve.shards import Record, embed_shard
from vitfold.serve.work import Tally, Work
from vitfold.tools.results import version

PATIENCE = 5.0
"""Seconds in which somebody answers at an address."""

SETTINGS = b"\x04"
"""The kind of the first frame of HTTP/2, in which Ray speaks."""

GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + SETTINGS + b"\0" * 5
"""How that begins."""


def run(work: Work, tally: Tally, address: str | None = None) -> None:
    """Embed all shards that are to be done; each comes back as one small row.

    address: of a cluster; None: this machine, or what is connected already.
    """
    ray = libraries.ray()
    with connected(ray, address), sendable(ray, work.model):
        model = _sent(ray, work.model)
        sent = replace(work, model=None, device=torch.device(work.device.type))
        rows = [{"shard": number} for number in work.todo]
        shards = ray.data.from_items(rows, override_num_blocks=len(rows))
        done = shards.map(
            read_shard,
            fn_args=(sent,),
            num_cpus=1,
            compute=ray.data.TaskPoolStrategy(work.workers or None),
        ).map(
            Worker,
            fn_constructor_args=(sent, model),
            # Of one kind with what reads, Ray would do both in one process, one after the other.
            num_cpus=0,
            num_gpus=1 if work.device.type == "cuda" else 0,
            compute=ray.data.ActorPoolStrategy(size=_devices(ray, work.device)),
        )
        try:
            for row in done.iter_rows():
                record = work.shards.record(row["shard"])
                if record is None:
                    raise DataError(f"shard {row['shard']} has no record: run the same again")
                tally.add(record.images, record.failures)
        except VitfoldError:
            raise
        except ray.exceptions.RayError as error:
            raise _plain(error) from error


def _sent(ray: Any, model: nn.Module | None) -> Any:
    """The model where all processes can have it; tried by one of them, since Ray would try again
    for ever with those that cannot."""
    try:
        sent = ray.put(model)
    except Exception as error:  # what cannot be pickled raises what it likes
        why = one_line(_cause(error))
        raise DataError(f"the model cannot be sent to Ray's processes: {why}") from error
    try:
        theirs = ray.get(ray.remote(num_cpus=0, max_retries=0)(_version_there).remote(sent))
    except ray.exceptions.RayError as error:
        why = one_line(_cause(error))
        raise DataError(f"Ray's processes cannot take the model: {why}") from error
    if theirs != version("vitfold"):
        raise DataError(
            f"Ray's processes have vitfold {theirs}, and here is {version('vitfold')}: install the "
            "same on every machine"
        )
    return sent


def _version_there(_: nn.Module) -> str | None:
    """What is installed where a model arrives."""
    return version("vitfold")


def _devices(ray: Any, device: torch.device) -> int:
    """How many actors embed: one for each GPU of the cluster, or on each of its machines."""
    if device.type != "cuda":
        return max(1, sum(bool(node["Alive"]) for node in ray.nodes()))
    return max(1, int(ray.cluster_resources().get("GPU", 0)))


def _plain(error: Exception) -> DataError:
    """What ended the work, in one line."""
    cause = _cause(error)
    if isinstance(cause, VitfoldError):
        return DataError(str(cause))
    return DataError(
        f"Ray gave up: {one_line(cause)}: run the same again to go on; where one image ends the "
        "process that reads it, --engine local says which"
    )


def _cause(error: BaseException) -> BaseException:
    """What was raised first."""
    while isinstance(inner := getattr(error, "cause", None) or error.__cause__, BaseException):
        error = inner
    return error


@contextmanager
def connected(ray: Any, address: str | None) -> Iterator[None]:
    """Within it, Ray runs; one that was not there before ends after it."""
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of what it does itself
    _check_answers(address)
    try:
        ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **options)
    # It ends the process where what answers is no Ray.
    except (ConnectionError, ValueError, RuntimeError, OSError, SystemExit) as error:
        why = "what answers there is no Ray" if isinstance(error, SystemExit) else one_line(error)
        if address and isinstance(error, ConnectionError) and "RAY_AUTH_MODE" not in os.environ:
            why += ": where it asks for a token, set RAY_AUTH_MODE=token"
        raise DataError(f"Ray cannot be reached at {address or 'this machine'}: {why}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str | None) -> None:
    """Refuse an address at which nobody answers: Ray would wait there for minutes."""
    host, colon, port = (address or "").rpartition("//")[2].rpartition(":")
    if not (colon and port.isdecimal()):
        return  # a word of Ray's, or what it refuses itself
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PATIENCE) as wire:
            wire.sendall(GREETING)
            if os.environ.get("RAY_USE_TLS", "0") == "0" and wire.recv(9)[3:4] != SETTINGS:
                raise OSError("what answers there is no Ray")
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise DataError(f"Ray cannot be reached at {address}: {why}") from error


@contextmanager
def sendable(ray: Any, model: nn.Module | None) -> Iterator[None]:
    """Within it, classes of a model that came from a file are sent with it, and what lies beside
    that file: nobody else can import them."""
    names = {type(module).__module__ for module in (model.modules() if model is not None else ())}
    alone = [sys.modules[name] for name in names if name in sys.modules and not _importable(name)]
    alone += [module for module in file.beside() if module not in alone]
    pickling = ray.cloudpickle
    for module in alone:
        pickling.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in alone:
            pickling.unregister_pickle_by_value(module)


def _importable(name: str) -> bool:
    # __main__ is sent in any case.
    return name == "__main__" or PathFinder.find_spec(name.partition(".")[0]) is not None


def read_shard(row: dict[str, Any], work: Work) -> dict[str, Any]:
    """The row of a shard with what is read of it: pixels of all its images."""
    torch.set_num_threads(1)
    decoder, entries = Decoder(work.preparation), work.open().shard(int(row["shard"]))
    decoded = joined([decoder(batch) for batch in work.batches(entries)])
    reasons = [reason or "" for reason in decoded.reasons]
    return {**row, "pixels": decoded.pixels, "sizes": decoded.sizes, "reasons": reasons}


class Worker:
    """Embeds shards, on a device of its own.

    The model is made ready at the first of them: an error before that Ray would try again forever.
    """

    def __init__(self, work: Work, model: Any) -> None:
        self.work, self.model = work, model

    @cached_property
    def embedder(self) -> Embedder:
        """The model, ready."""
        return replace(self.work, model=libraries.ray().get(self.model)).embedder()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A small row for a shard that is written."""
        number = int(row["shard"])
        entries = self.work.open().shard(number)
        size = self.work.settings.batch_size
        decoded = (_part(row, start, start + size) for start in range(0, len(entries), size))
        *_, record = embed_shard(self.embedder, self.work.shards, number, entries, decoded)
        assert isinstance(record, Record)
        return {"shard": number, "rows": record.rows}


def _part(row: dict[str, Any], start: int, stop: int) -> Decoded:
    """A batch of what was read of a shard."""
    reasons = [str(reason) or None for reason in row["reasons"][start:stop]]
    return Decoded(row["pixels"][start:stop], row["sizes"][start:stop], reasons)

"""Processes that decode images ahead of the one that computes.

Batches come in the order in which they were asked for. A process that is killed, or that does not
come back, takes none with it: what it had is read again, in the end each image in a process of its
own, and an image that kills that too is one that cannot be read.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import connection

import torch

from vitfold.serve.decoding import Decoded, Decoder, Preparation, failed, joined
from vitfold.serve.entries import Entry

TRIES = 3
"""How often what kills a process is tried again."""

PATIENCE = 300.0
"""Seconds after which a process does not come back."""

DEADLY = "cannot be read: the process that read it was killed or did not come back, each of 3 times"

Lost = (BrokenExecutor, TimeoutError)


@dataclass(eq=False)
class Task:
    """A batch that is read ahead."""

    entries: Sequence[Entry]
    future: Future[Decoded] = field(default_factory=Future)
    losses: int = 0


class Pool:
    """So many processes that decode; with none, this process does."""

    def __init__(self, preparation: Preparation, workers: int, patience: float = PATIENCE) -> None:
        self.preparation, self.workers, self.patience = preparation, workers, patience
        self.executor: ProcessPoolExecutor | None = None
        self.decoded = 0
        """Images that were decoded, whether anybody has taken them or not."""

    def stream(self, batches: Iterable[Sequence[Entry]]) -> Iterator[Decoded]:
        """The batches decoded, in their order; some are always on the way."""
        if not self.workers:
            decode = Decoder(self.preparation)
            for entries in batches:
                self.decoded += len(entries)
                yield decode(entries)
            return
        try:
            yield from self._ahead(iter(batches))
        finally:
            self.close()

    def close(self) -> None:
        """End all processes, also those that do not come back."""
        if self.executor is None:
            return
        processes = list((self.executor._processes or {}).values())
        results = self.executor._result_queue
        self.executor.shutdown(wait=False, cancel_futures=True)
        for process in processes:  # there is no public way before Python 3.14
            process.kill()
            process.join()
        if results is not None:
            # Whoever waits for the rest of what a killed process was sending would wait for ever.
            results._writer.close()  # type: ignore[attr-defined]
        self.executor = None

    def _ahead(self, batches: Iterator[Sequence[Entry]]) -> Iterator[Decoded]:
        tasks: deque[Task] = deque()
        while True:
            while len(tasks) < 2 * self.workers + 1 and (entries := next(batches, None)):
                tasks.append(Task(entries))
                self._submit(tasks, tasks[-1])
            if not tasks:
                return
            try:
                decoded = self._result(tasks[0].future)
            except Lost as error:
                if isinstance(error, TimeoutError) and not self._has_lost():
                    tasks[0].losses = TRIES  # it is this one that does not come back
                self._again(tasks)
                continue
            tasks.popleft()
            yield decoded

    def _result(self, future: Future[Decoded]) -> Decoded:
        """What a process sends; one that is killed while it sends leaves others waiting, which is
        looked for every second."""
        end = time.monotonic() + self.patience
        while True:
            try:
                return future.result(1)
            except TimeoutError:
                if time.monotonic() > end or self._has_lost():
                    raise

    def _has_lost(self) -> bool:
        processes = (self.executor and self.executor._processes) or {}
        return bool(connection.wait([process.sentinel for process in processes.values()], 0))

    def _submit(self, tasks: Iterable[Task], task: Task) -> None:
        try:
            self._send(task)
        except BrokenExecutor:
            self._again(tasks)

    def _send(self, task: Task) -> None:
        if self.executor is None:
            self.executor = _executor(self.preparation, self.workers)
        task.future = self.executor.submit(_decode, task.entries)
        task.future.add_done_callback(self._count)

    def _count(self, future: Future[Decoded]) -> None:
        if not future.cancelled() and future.exception() is None:
            self.decoded += len(future.result().reasons)

    def _again(self, tasks: Iterable[Task]) -> None:
        """Begin anew with other processes. A batch that was first when they were lost, again and
        again, is read image by image."""
        self.close()
        for place, task in enumerate(tasks):
            done = task.future.done() and not task.future.cancelled()
            if done and task.future.exception() is None:
                continue
            task.losses += not place
            if task.losses >= TRIES:
                task.future = Future()
                task.future.set_result(joined([self._alone(entry) for entry in task.entries]))
                self.decoded += len(task.entries)
            else:
                self._send(task)

    def _alone(self, entry: Entry) -> Decoded:
        """One image, in a process of its own."""
        for _ in range(TRIES):
            alone = Pool(self.preparation, 1, self.patience / 5)
            try:
                alone._send(task := Task([entry]))
                return alone._result(task.future)
            except Lost:
                continue
            finally:
                alone.close()
        return failed([entry], self.preparation.shape, DEADLY)


def _executor(preparation: Preparation, workers: int) -> ProcessPoolExecutor:
    # Elsewhere than on Linux, a copy of a process that has threads is not safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    return ProcessPoolExecutor(workers, context, _begin, (preparation,))


DECODERS: list[Decoder] = []
"""The decoder of this process."""


def _begin(preparation: Preparation) -> None:
    """What a process that decodes does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that computes
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    torch.set_num_threads(1)
    DECODERS[:] = [Decoder(preparation)]


def _end_with(parent: int) -> None:
    """End this process when the one that computes has ended, however that was."""
    connection.wait([parent])
    os._exit(1)


def _decode(entries: Sequence[Entry]) -> Decoded:
    return DECODERS[0](entries)

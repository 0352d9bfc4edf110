"""Signals that end a training after its current step."""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Within it, signals that would stop the program are collected in a list instead."""
    received: list[int] = []
    handlers = {}
    with contextlib.suppress(ValueError):  # only the main thread may ask for signals
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, lambda caught, _: received.append(caught))
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

"""The stack that handlers of signals run on."""

import ctypes
import sys
from pathlib import Path

import pytest


class Stack(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def has_signal_stack() -> bool:
    """Whether this thread's is memory that it has: else the next signal ends the process."""
    if sys.platform != "linux":
        pytest.skip("where it lies can be read on Linux")
    stack = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    maps = Path("/proc/self/maps").read_text().splitlines()
    ranges = ([int(end, 16) for end in line.split()[0].split("-")] for line in maps)
    return stack.start is None or any(start <= stack.start < end for start, end in ranges)

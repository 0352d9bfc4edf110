"""What was computed and is kept, up to a number of entries."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import RLock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Values by key, of which the least recently used go when there are too many. Threads that ask
    for one key at a time get one value, which is computed once.

    most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = RLock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made where it is not kept; what making it raises is kept nowhere."""
        with self._lock:
            if key not in self._values:
                self._values[key] = make()
            self._values.move_to_end(key)
            while len(self._values) > self.most:
                self._values.popitem(last=False)
            return self._values[key]

    def peek(self, key: K) -> V | None:
        """The value of a key, or None; nothing is computed."""
        with self._lock:
            return self._values.get(key)

    def __len__(self) -> int:
        return len(self._values)

"""What was computed and is kept, up to a number of entries."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import RLock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Values by key, of which the least recently used go when there are too many. Threads that ask
    for one key at a time get one value, which is computed once; meanwhile what is kept can be had.

    most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[K, V] = OrderedDict()
        self._making = RLock()
        # A finalizer may drop a key while this thread holds it.
        self._lock = RLock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made where it is not kept; what making it raises is kept nowhere."""
        try:
            return self._kept(key)
        except KeyError:
            pass
        with self._making:
            try:
                return self._kept(key)  # somebody else has made it
            except KeyError:
                return self._keep(key, make())

    def _kept(self, key: K) -> V:
        with self._lock:
            value = self._values[key]
            self._values.move_to_end(key)
            return value

    def _keep(self, key: K, value: V) -> V:
        with self._lock:
            self._values[key] = value
            while len(self._values) > self.most:
                self._values.popitem(last=False)
        return value

    def peek(self, key: K) -> V | None:
        """The value of a key, or None; nothing is computed."""
        with self._lock:
            return self._values.get(key)

    def drop(self, key: K) -> None:
        """Keep the value of a key no longer."""
        with self._lock:
            self._values.pop(key, None)

    def __len__(self) -> int:
        return len(self._values)

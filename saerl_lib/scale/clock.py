"""Wall-clock and processor seconds by step, also of steps that feed each other block by block."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def _now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


class Clock:
    """Seconds of named steps; what a stream takes inside a call counts for the stream alone.

    On a busy machine the processor's time says what a step costs; it leaves out waiting, also for the disk.
    """

    def __init__(self) -> None:
        self._spent: dict[str, np.ndarray] = {}
        self._inner = np.zeros(2)

    @property
    def wall(self) -> dict[str, float]:
        """Wall-clock seconds a step."""
        return {name: float(spent[0]) for name, spent in self._spent.items()}

    @property
    def processor(self) -> dict[str, float]:
        """Processor seconds a step, of the whole process."""
        return {name: float(spent[1]) for name, spent in self._spent.items()}

    def _add(self, name: str, spent: np.ndarray) -> None:
        self._spent[name] = self._spent.get(name, np.zeros(2)) + spent

    def call(self, name: str, work: Callable[[], T]) -> T:
        """The result of `work()`, timed under `name` without the streams that it drew from."""
        start, inner = _now(), self._inner
        result = work()
        self._add(name, _now() - start - (self._inner - inner))
        return result

    def stream(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The items, the time of making each under `name`."""
        source = iter(items)
        while True:
            start, inner = _now(), self._inner
            try:
                item = next(source)
            except StopIteration:
                return
            finally:
                whole = _now() - start
                self._add(name, whole - (self._inner - inner))
                self._inner = inner + whole
            yield item

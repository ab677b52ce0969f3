"""Compiled solvers between two uses."""

from typing import Any


class Idle:
    """Solvers that have planned for a pattern and wait for other data with it, in any thread.

    Args:
        room: How many to keep.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._waiting: list[Any] = []

    def take(self) -> Any:
        """One of them, or None."""
        try:
            return self._waiting.pop()
        except IndexError:
            return None

    def put(self, solver: Any) -> None:
        """Keep one."""
        if len(self._waiting) < self.room:
            self._waiting.append(solver)

"""Ctrl-C ends the check that runs; what has finished is kept, and written, whenever it comes."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

NOTE = b"\ntheory-checks: what has finished is being written\n"


class Interrupts:
    """While this is entered, Ctrl-C raises `KeyboardInterrupt` where it is `allowed`, and waits elsewhere.

    Attributes
    ----------
    allowed
        Whether a check is running, which may be left at any place.
    asked
        Whether Ctrl-C has come.
    """

    def __init__(self) -> None:
        self.allowed = self.asked = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other thread gets signals
            self._before = signal.signal(signal.SIGINT, self._came)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _came(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self.allowed:
            self.allowed = False  # once: a second one does not end the writing
            raise KeyboardInterrupt
        os.write(2, NOTE)

"""Ctrl-C that waits for what must not be cut off."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Have Ctrl-C wait until the block has ended; a second one does not wait.

    A library whose import is cut off cannot be imported again in the same process: parts of it are
    there already, or registered. That concerns programs and notebooks, in which Ctrl-C is Python's
    own `KeyboardInterrupt`; where it has another handler, and in other threads than the main one,
    which alone is interrupted, this does nothing.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed = 0

    def hold_back(*_: object) -> None:
        nonlocal pressed
        pressed += 1
        if pressed > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, hold_back)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is hold_back:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if pressed == 1:
            raise KeyboardInterrupt

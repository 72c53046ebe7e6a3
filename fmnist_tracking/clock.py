"""A clock that stands still while this process is stopped.

While a process is stopped, as by Ctrl-Z, the system's clock runs on. (While the machine sleeps,
Linux's monotonic clock stands still by itself.) Nothing tells a process for how long it was
stopped. So a thread reads the clock ten times a second: if much more time passed between two
readings, and the process computed hardly anything in it, the process was stopped.
"""

import contextlib
import threading
import time

_TICK_SECONDS = 0.1
# A busy machine delays a thread too, but not for so long.
_GAP_SECONDS = 1.0
# As a share of a core: a library that blocks the thread uses more.
_HARDLY = 0.5

_lock = threading.Lock()
_ticker: threading.Thread | None = None
_looked = _used = _stopped = 0.0


def now() -> float:
    """Return the seconds on a clock that stands still while this process is stopped.

    Only differences between two calls have a meaning.
    """
    global _ticker, _looked, _used, _stopped
    with _lock:
        time_now, used_now = time.monotonic(), time.process_time()
        if _ticker is None or not _ticker.is_alive():  # not alive: the process was forked
            _ticker = threading.Thread(target=_tick, daemon=True, name="clock")
            _ticker.start()
        else:
            gap = time_now - _looked
            if gap > _GAP_SECONDS and used_now - _used < _HARDLY * gap:
                _stopped += gap - _TICK_SECONDS / 2
        _looked, _used = time_now, used_now
        return time_now - _stopped


def _tick() -> None:
    with contextlib.suppress(RuntimeError):  # raised when the interpreter exits
        while True:
            time.sleep(_TICK_SECONDS)
            now()

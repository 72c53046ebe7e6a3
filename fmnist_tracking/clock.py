"""Seconds that count only while this process is let run.

While a process is stopped, as by Ctrl-Z, the system's clock runs on. (While the machine sleeps,
Linux's monotonic clock stands still by itself.) Nothing tells a process for how long it was
stopped: so a thread looks at the clock ten times a second, and where far more than that lies
between two looks, and the process computed hardly anything in between, it was stopped.
"""

import contextlib
import threading
import time

_TICK_SECONDS = 0.1
# A machine that is busy keeps a thread waiting too, but not for so long.
_GAP_SECONDS = 1.0
# Of a processor core: what is used of it while a library keeps the thread from looking is more.
_HARDLY = 0.5

_lock = threading.Lock()
_ticker: threading.Thread | None = None
_looked = _used = _stopped = 0.0


def now() -> float:
    """Seconds on a clock that stands still while this process is stopped.

    Only differences count.
    """
    global _ticker, _looked, _used, _stopped
    with _lock:
        time_now, used_now = time.monotonic(), time.process_time()
        if _ticker is None or not _ticker.is_alive():  # in a process that was forked, too
            _ticker = threading.Thread(target=_tick, daemon=True, name="clock")
            _ticker.start()
        else:
            gap = time_now - _looked
            if gap > _GAP_SECONDS and used_now - _used < _HARDLY * gap:
                _stopped += gap - _TICK_SECONDS / 2
        _looked, _used = time_now, used_now
        return time_now - _stopped


def _tick() -> None:
    with contextlib.suppress(RuntimeError):  # the interpreter ends
        while True:
            time.sleep(_TICK_SECONDS)
            now()

"""Ctrl-C waits for an import, but for no longer."""

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fmnist_tracking import interrupts


@pytest.fixture(autouse=True)
def _python_s_own_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_it_waits_until_the_block_has_ended() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt):
        with interrupts.held_back():
            signal.raise_signal(signal.SIGINT)
            reached.append("the end")
        reached.append("what is behind it")
    assert reached == ["the end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_one_does_not_wait() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), interrupts.held_back():
        signal.raise_signal(signal.SIGINT)
        reached.append("the middle")
        signal.raise_signal(signal.SIGINT)
        reached.append("the end")
    assert reached == ["the middle"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_is_not_lost_to_an_error_in_the_block() -> None:
    with pytest.raises(KeyboardInterrupt) as raised, interrupts.held_back():
        signal.raise_signal(signal.SIGINT)
        raise ImportError
    assert isinstance(raised.value.__context__, ImportError)


def test_a_handler_that_is_set_in_the_block_stays() -> None:
    with interrupts.held_back():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL, lambda *_: None])
def test_a_handler_that_is_not_python_s_own_is_left(handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)
    with interrupts.held_back():
        assert signal.getsignal(signal.SIGINT) == handler


def test_other_threads_change_no_handler() -> None:
    seen = []

    def in_a_thread() -> None:
        with interrupts.held_back():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]

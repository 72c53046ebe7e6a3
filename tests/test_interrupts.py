"""Ctrl-C waits for an import, but for no longer."""

import signal
import threading

import pytest

from fmnist_tracking import interrupts


def test_it_waits_until_the_block_has_ended() -> None:
    before, reached = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt):
        with interrupts.held_back():
            signal.raise_signal(signal.SIGINT)
            reached.append("the end")
        reached.append("what is behind it")
    assert reached == ["the end"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_one_does_not_wait() -> None:
    before, reached = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), interrupts.held_back():
        signal.raise_signal(signal.SIGINT)
        reached.append("the middle")
        signal.raise_signal(signal.SIGINT)
        reached.append("the end")
    assert reached == ["the middle"]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_in_the_block_comes_first() -> None:
    with pytest.raises(ImportError), interrupts.held_back():
        signal.raise_signal(signal.SIGINT)
        raise ImportError


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_handler_that_is_no_function_is_left(handler: signal.Handlers) -> None:
    before = signal.signal(signal.SIGINT, handler)
    try:
        with interrupts.held_back():
            assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_change_no_handler() -> None:
    seen = []

    def in_a_thread() -> None:
        with interrupts.held_back():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]

import pytest

from fmnist_tracking.errors import first_line, named, shortened


class WithoutText(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Exiting(Exception):
    def __str__(self) -> str:
        raise SystemExit(7)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("one", "one"),
        ("one\ntwo", "one"),
        ("\n \n  the cause\nmore", "the cause"),
        ("", "ValueError"),
        (" \n\t\n", "ValueError"),
    ],
)
def test_the_first_line_of_an_error_is_what_it_says_first(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("of a value\nand more"), "ValueError: of a value"),
        (SystemExit(), "SystemExit"),
        (WithoutText(), "WithoutText: its message cannot be made (RuntimeError)"),
        (Exiting(), "Exiting: its message cannot be made (SystemExit)"),
        (OSError("\x1b[2J \udcff \0"), "OSError: \\x1b[2J \\udcff \\x00"),
    ],
)
def test_an_error_is_named_whatever_its_message_is(error: BaseException, line: str) -> None:
    assert named(error) == line


def test_a_long_message_is_told_by_its_beginning_and_end() -> None:
    line = named(ValueError("begin " + "é" * 10_000_000 + " end"))
    assert len(line.encode()) < 2_100
    assert line.startswith("ValueError: begin ééé")
    assert line.endswith("ééé end")
    assert "é … [19,998,010 bytes left out] … é" in line


@pytest.mark.parametrize("text", ["", "short", "é" * 32_768])
def test_a_text_that_is_short_enough_stays_as_it_is(text: str) -> None:
    assert shortened(text) == text

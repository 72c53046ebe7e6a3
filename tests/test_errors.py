import pytest

from fmnist_tracking.errors import first_line


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

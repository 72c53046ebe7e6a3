"""The table of a search's progress in the output of a notebook's cell."""

import html
import io
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from rich.console import Group

from fmnist_tracking.console import PlainConsole, notebook

# In a notebook: seconds between two tables, characters of a line, and lines kept below the table.
_REDRAW_SECONDS, _NOTEBOOK_WIDTH, _NOTEBOOK_LINES = 0.5, 110, 8
# Pages of notebooks would break its rows.
_NOTEBOOK_STYLE = "white-space: pre; overflow-x: auto; font-size: small"


class NotebookTable:
    """A table in the output of a notebook's cell, redrawn in place, and the last lines below it."""

    def __init__(self, render: Callable[[], Group]) -> None:
        self._render = render
        self._lines: deque[str] = deque(maxlen=_NOTEBOOK_LINES)
        self._handle: Any = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._redraw, daemon=True)

    def add(self, line: str) -> None:
        """Show a line below the table."""
        self._lines.append(line)
        if self._stopping.is_set():  # nothing redraws it any more
            self.refresh()

    def start(self) -> None:
        """Show the table, and redraw it from now on."""
        self._handle = notebook().display(self._drawn(), display_id=True)
        self._thread.start()

    def refresh(self) -> None:
        """Draw the table anew."""
        self._handle.update(self._drawn())

    def stop(self) -> None:
        """Draw it a last time."""
        self._stopping.set()
        self._thread.join()
        self.refresh()

    def _redraw(self) -> None:
        while not self._stopping.wait(_REDRAW_SECONDS):
            self.refresh()

    def _drawn(self) -> Any:
        text = io.StringIO()
        console = PlainConsole(file=text, width=_NOTEBOOK_WIDTH, color_system=None)
        console.print(self._render())
        shown = html.escape("\n".join([text.getvalue(), *self._lines]))
        return notebook().HTML(f'<pre style="{_NOTEBOOK_STYLE}">{shown}</pre>')

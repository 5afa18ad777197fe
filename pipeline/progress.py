"""How far long work is: done, rate and time left, as a bar on a terminal and as a line now and then elsewhere.

What is left out: what the work is, and any record of it (`manifest.json` has the times).
"""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 15.0
"""Seconds between two lines where there is no terminal."""


class Bar:
    """`with Bar("generate", total=40) as bar: bar.at(3, "150 tokens/s")`."""

    def __init__(self, what: str, total: int, console: Console | None = None) -> None:
        self.what = what
        self.total = total
        self.console = console or Console()
        self._started = time.monotonic()
        self._said = self._started
        self._first: int | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task(what, total=total, note="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def at(self, done: int, note: str = "") -> None:
        """So much is done. What was done before the first call does not count towards the rate."""
        self._progress.update(self._task, completed=done, note=note)
        now = time.monotonic()
        if self._first is None:
            self._first = done
        if self.console.is_terminal or now - self._said < LINE_EVERY_S:
            return
        self._said = now
        rate = (done - self._first) / (now - self._started)
        left = f", {(self.total - done) / rate:.0f} s left" if rate > 0 else ""
        self.console.print(f"  {self.what} {done}/{self.total}{left}  {note}", markup=False, highlight=False)

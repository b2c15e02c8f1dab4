"""Progress bars of long work: one of tqdm per stage, on standard error, with rate, remaining time and latest figures.

On a terminal the bar redraws; in a log file, where redrawing would make one long line, a line is printed now and then.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from tqdm import tqdm

LOG_INTERVAL_S = 5.0


class Update(Protocol):
    """Counts units done, and shows figures such as the loss."""

    def __call__(self, units: int, **figures: float) -> None:
        """Count `units` more."""


@contextmanager
def progress(stage: str, total: int | None = None, unit: str = "it") -> Iterator[Update]:
    """Show a bar of `total` units (unknown where None); yields its update function."""
    is_terminal = sys.stderr.isatty()
    printed: float = -1
    printed_s = time.monotonic()
    with (
        open(os.devnull, "w") as nowhere,
        tqdm(
            total=total,
            desc=f"{stage:<8}",
            unit=f" {unit}",
            file=sys.stderr if is_terminal else nowhere,
            dynamic_ncols=is_terminal,
            ncols=None if is_terminal else 100,
        ) as bar,
    ):

        def update(units: int, **figures: float) -> None:
            nonlocal printed, printed_s
            if figures:
                bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()}, refresh=False)
            bar.update(units)
            if not is_terminal and time.monotonic() - printed_s > LOG_INTERVAL_S:
                printed, printed_s = bar.n, time.monotonic()
                print(bar, file=sys.stderr, flush=True)

        yield update
        if not is_terminal and bar.n > printed:
            print(bar, file=sys.stderr, flush=True)

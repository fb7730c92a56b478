"""A progress bar for a replay; it only reads the client's counts."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from penstock.workload.client import Counts
from penstock.workload.records import Run
from penstock.workload.replay import ReplayOptions, replay
from penstock.workload.trace import Trace

REFRESH_S = 0.25


async def replay_with_bar(trace: Trace, options: ReplayOptions, console: Console) -> Run:
    """Replay while a bar shows what was sent, is running and has ended. Ctrl-C ends it early, with what there is."""
    counts, stopped = Counts(), asyncio.Event()
    stop_on_interrupt(stopped)
    columns = (
        TextColumn("replay"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[now]}"),
        TimeElapsedColumn(),
    )
    total = sum(1 for _ in trace)
    with Progress(
        *columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal
    ) as bar:
        row = bar.add_task("replay", total=total, now="")
        watcher = asyncio.create_task(_watch(bar, row, counts))
        try:
            return await replay(trace, options, counts, stopped)
        finally:
            watcher.cancel()


async def _watch(bar: Progress, row: TaskID, counts: Counts) -> None:
    while True:
        now = f"{counts.sent - counts.ended} running, {counts.failed} failed, {counts.events} events"
        bar.update(row, completed=counts.ended, now=now, refresh=True)
        await asyncio.sleep(REFRESH_S)


def stop_on_interrupt(stopped: asyncio.Event) -> None:
    """The first Ctrl-C sets the event; a second one interrupts as ever."""
    loop = asyncio.get_running_loop()

    def on_interrupt() -> None:
        stopped.set()
        loop.remove_signal_handler(signal.SIGINT)

    with suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
        loop.add_signal_handler(signal.SIGINT, on_interrupt)

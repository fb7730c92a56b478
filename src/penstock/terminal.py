"""`penstock complete` and `penstock chat`: a model in this process, its text streamed to the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

from rich.console import Console

from penstock.core.request import SamplingParams
from penstock.engine.outputs import OutputDelta
from penstock.llm import AsyncLLM

console = Console(stderr=True, highlight=False)
EXIT_INTERRUPTED = 130


def run_complete(prompt: str, sampling: SamplingParams, model: str, **options: Any) -> None:
    """Write the prompt and its continuation to standard output."""

    async def run() -> None:
        async with AsyncLLM(model, **options) as llm:
            sys.stdout.write(prompt)
            await _write(llm.stream(prompt, sampling))

    with _stopped_by_ctrl_c():
        asyncio.run(run())


def run_chat(sampling: SamplingParams, model: str, system: str | None, **options: Any) -> None:
    """Read questions from standard input, write answers to standard output."""

    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    llm = AsyncLLM(model, **options)
    # Questions are read between two runs of the loop, not in a thread: no Ctrl-C ends a thread that waits for a line.
    with _stopped_by_ctrl_c(), asyncio.Runner() as runner:
        runner.run(llm.__aenter__())
        try:
            while question := _ask():
                messages.append({"role": "user", "content": question})
                answer = runner.run(_write(llm.chat(messages, sampling)))
                messages.append({"role": "assistant", "content": answer})
        finally:
            runner.run(llm.__aexit__())


@contextlib.contextmanager
def _stopped_by_ctrl_c() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        console.print("\nstopped")
        sys.exit(EXIT_INTERRUPTED)


def _ask() -> str:
    try:
        if sys.stdin.isatty():
            console.print("[bold]you>[/] ", end="")
        return input().strip()
    except EOFError:
        return ""


async def _write(deltas: AsyncIterator[OutputDelta]) -> str:
    """Write text as it comes, then one line of figures to standard error. Returns the whole text."""
    parts: list[str] = []
    async for delta in deltas:
        parts.append(delta.text)
        sys.stdout.write(delta.text)
        sys.stdout.flush()
        if delta.stats is not None:
            stats = delta.stats
            sys.stdout.write("\n")
            sys.stdout.flush()
            tpot = "" if stats.tpot_s is None else f", then {stats.tpot_s * 1e3:.1f} ms per token"
            first = 0.0 if stats.ttft_s is None else stats.ttft_s * 1e3
            console.print(f"[dim]{stats.output_tokens} tokens, first after {first:.0f} ms{tpot}[/]")
    return "".join(parts)

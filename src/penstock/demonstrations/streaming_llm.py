"""StreamingLLM (arXiv 2309.17453) on the bundled model: what sinks do for it, and that a stream stays as cheap."""

from __future__ import annotations

import math
import resource
import sysconfig
import time
from array import array
from itertools import accumulate
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from penstock.core.executor import TokenLogprobs
from penstock.core.request import Request, SamplingParams
from penstock.launch import make_engine
from penstock.llm import LLM
from penstock.options import EngineOptions
from penstock.text.tokenizer import Tokenizer
from penstock.train.corpus import collect, is_held_out

STREAM_TOKENS = 100_000
TRAINED_TOKENS = 2048  # the bundled model's context
READ_TOKENS = 8 * TRAINED_TOKENS
KEPT_TOKENS = (512, 1024, 2048)
SINKS = 4
N_ROWS = 10
KV_MEMORY = "64MiB"
KIB = 1024
WORTH_TELLING = 1.05  # ratio of two perplexities


def demonstrate(tokens: int | None = None) -> None:
    """Print the perplexity of text beyond the trained length, with and without sinks, then a long stream's cost."""
    console = Console(highlight=False)
    show_perplexity(console)
    show_stream(console, tokens or STREAM_TOKENS)


def show_perplexity(console: Console) -> None:
    """The bundled model reads Python files that it was not trained on, one after the other, as one text."""
    text = unseen_text(READ_TOKENS)
    table = Table(
        title=f"Perplexity of {len(text)} tokens; the model was trained for {TRAINED_TOKENS}", title_justify="left"
    )
    for column in ("keys that are kept", f"tokens up to {TRAINED_TOKENS}", "tokens behind that"):
        table.add_column(column, justify="left" if column.startswith("keys") else "right")
    within, _ = perplexities(text[:TRAINED_TOKENS])
    table.add_row("all (no stream)", f"{within:.2f}", "cannot")
    worst_ratio = 0.0
    for kept in KEPT_TOKENS:
        behind_of = {}
        for sinks in (0, SINKS):
            within, behind_of[sinks] = perplexities(text, window_tokens=kept - sinks, sink_tokens=sinks)
            name = f"the first {sinks} and the last {kept - sinks}" if sinks else f"the last {kept}"
            table.add_row(name, f"{within:.2f}", f"{behind_of[sinks]:.2f}")
        worst_ratio = max(worst_ratio, behind_of[0] / behind_of[SINKS])
    console.print(table)
    console.print(f"Without sinks, perplexity is at most {worst_ratio:.3f} times that with sinks.")
    if worst_ratio < WORTH_TELLING:
        console.print(
            "So this model has not learned to need them. Models of billions of parameters do: Llama 2 13B reads 5158 "
            "instead of 5.40 (table 1 of the paper)."
        )


def unseen_text(n_tokens: int) -> list[int]:
    """Tokens of files of this Python's standard library that the bundled model's recipe holds out."""
    held_out = collect(Path(sysconfig.get_paths()["stdlib"]), is_held_out)
    tokenizer = Tokenizer.from_path(EngineOptions().model_path)
    files = [tokenizer.encode(document.text) for document in held_out if not document.is_test]
    n_files = 1 + sum(total < n_tokens for total in accumulate(map(len, files)))
    return [token for file in files[:n_files] for token in file][:n_tokens]


def perplexities(text: list[int], **options: Any) -> tuple[float, float]:
    """(of tokens within the trained length, of those behind it); what comes before a token is given."""
    llm = LLM(None, kv_memory=KV_MEMORY, **options)
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    if not options:  # the context must hold an output, too
        text = text[:-1]
    (output,) = llm.generate([text], sampling, use_tqdm=False)
    llm.close()
    assert output.prompt_logprobs is not None
    return _perplexity(output.prompt_logprobs[:TRAINED_TOKENS]), _perplexity(output.prompt_logprobs[TRAINED_TOKENS:])


def _perplexity(entries: tuple[TokenLogprobs | None, ...]) -> float:
    nats = [-entry.logprob for entry in entries if entry is not None]
    return math.exp(sum(nats) / len(nats)) if nats else math.nan


def show_stream(console: Console, tokens: int, kept_tokens: int = KEPT_TOKENS[1]) -> None:
    """One answer of `tokens` tokens, with the cost of each tenth of it."""
    options = EngineOptions(window_tokens=kept_tokens - SINKS, sink_tokens=SINKS, kv_memory=KV_MEMORY)
    engine = make_engine(options)
    sampling = SamplingParams(max_tokens=tokens, temperature=1.0, ignore_eos=True)
    engine.add(Request(id="stream", prompt=array("i", [0]), sampling=sampling, seed=0))
    (pool,) = engine.scheduler.memory.pools
    table = Table(
        title=f"One stream, {SINKS} sinks and a window of {options.window_tokens} tokens", title_justify="left"
    )
    for column in ("tokens so far", "ms per token", "KV blocks held", "peak memory, MiB"):
        table.add_column(column, justify="right")
    n_done, row_tokens, most_blocks = 0, max(1, tokens // N_ROWS), 0
    started_s = time.perf_counter()
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("tokens", total=tokens)
        while engine.has_work:
            n_new = sum(len(update.tokens) for update in engine.step())
            most_blocks = max(most_blocks, pool.total_blocks - pool.available_blocks)
            for _ in range(n_new):
                n_done += 1
                if n_done % row_tokens == 0:
                    ms = (time.perf_counter() - started_s) / row_tokens * 1e3
                    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB
                    table.add_row(f"{n_done:,}", f"{ms:.2f}", str(most_blocks), f"{peak_mib:.0f}")
                    started_s, most_blocks = time.perf_counter(), 0
            progress.update(bar, completed=n_done)
    engine.close()
    console.print(table)

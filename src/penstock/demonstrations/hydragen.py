"""Hydragen (arXiv 2402.05099) on the bundled model: many answers behind common prefixes, read once and read by each."""

from __future__ import annotations

import math
import random
import statistics
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import structs
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from penstock.core.request import Request, SamplingParams
from penstock.engine.loop import Engine
from penstock.launch import make_engine
from penstock.ops import native
from penstock.options import EngineOptions

ANSWER_TOKENS = 24
OWN_TOKENS = 8
ROUNDS = 3
VOCAB_SIZE = 4096
KV_MEMORY = "256MiB"


@dataclass(frozen=True, slots=True)
class Tree:
    """Prefixes of so many tokens, in so many variants each, one level after the other; then `rows` prompts."""

    name: str
    levels: tuple[tuple[int, int], ...]  # (tokens, variants)
    rows: int

    def prompts(self) -> list[list[int]]:
        drawn = random.Random(0)

        def text(tokens: int) -> list[int]:
            return [drawn.randrange(3, VOCAB_SIZE) for _ in range(tokens)]

        texts: list[list[int]] = [[]]
        for tokens, variants in self.levels:
            texts = [above + text(tokens) for above in texts for _ in range(variants)]
        return [texts[row % len(texts)] + text(OWN_TOKENS) for row in range(self.rows)]


TREES = (
    Tree("1536, 32", ((1536, 1),), 32),
    Tree("1024, 4 x 512, 32", ((1024, 1), (512, 4)), 32),
    Tree("64, 2", ((64, 1),), 2),
)


@dataclass(frozen=True, slots=True)
class Answers:
    """One pass over all prompts. cpu_s: of this process, which others on the machine disturb less."""

    tokens: list[list[int]]
    cpu_s: float


def demonstrate(tokens: int | None = None) -> None:
    """Print the time of the same answers with and without, in pairs, and what decoding read."""
    console = Console(highlight=False)
    table = Table(
        title=f"Prefixes of so many tokens, prompts behind them; {tokens or ANSWER_TOKENS} tokens each, {ROUNDS} pairs",
        title_justify="left",
    )
    for column in ("prefixes, prompts", "kernels"):
        table.add_column(column)
    for column in ("keys read", "without", "CPU s", "without", "ratio", "same"):
        table.add_column(column, justify="right")
    torch_does = EngineOptions(dtype="float32", kv_memory=KV_MEMORY, threads=1)
    native_does = structs.replace(torch_does, dtype="bfloat16", native_kernels=True)
    todo = [(tree, options) for options in (torch_does, native_does) for tree in TREES]
    with Progress(console=console, transient=True) as progress:
        for tree, options in progress.track(todo):
            table.add_row(*compare(tree, options, tokens or ANSWER_TOKENS))
    console.print(table)
    console.print(f"C++ kernels: {native.state().reason}.")
    console.print("Prefixes are cached either way: what differs is how often decoding reads them. Same: equal answers.")


def compare(tree: Tree, options: EngineOptions, answer_tokens: int) -> tuple[str, ...]:
    """A row of the table: medians over pairs of passes, one with and one without, in turns."""
    engines = {
        choice: make_engine(structs.replace(options, shared_prefix_attention=choice)) for choice in ("on", "off")
    }
    prompts = tree.prompts()
    for engine in engines.values():
        for prompt in prompts[: math.prod(variants for _, variants in tree.levels)]:
            answer(engine, [prompt], 1)  # one after the other, so that every prefix is cached
    before = {choice: keys_read(engine) for choice, engine in engines.items()}
    passes: dict[str, list[Answers]] = {"on": [], "off": []}
    for k in range(ROUNDS):
        for choice in ("on", "off") if k % 2 else ("off", "on"):
            passes[choice].append(answer(engines[choice], prompts, answer_tokens))
    read = {choice: (keys_read(engine) - before[choice]) // ROUNDS for choice, engine in engines.items()}
    for engine in engines.values():
        engine.close()
    cpu_s = {choice: statistics.median(one.cpu_s for one in some) for choice, some in passes.items()}
    ratio = statistics.median(off.cpu_s / on.cpu_s for on, off in zip(passes["on"], passes["off"], strict=True))
    same = sum(a == b for a, b in zip(passes["on"][0].tokens, passes["off"][0].tokens, strict=True))
    return (
        tree.name,
        "C++, bf16" if options.native_kernels else "torch, f32",
        f"{read['on'] / 1e3:,.0f}k",
        f"{read['off'] / 1e3:,.0f}k",
        f"{cpu_s['on']:.2f}",
        f"{cpu_s['off']:.2f}",
        f"{ratio:.2f}",
        f"{same}/{len(prompts)}",
    )


def keys_read(engine: Engine) -> int:
    return int(engine.counters()["decode_keys_read_total"])


def answer(engine: Engine, prompts: Sequence[list[int]], answer_tokens: int) -> Answers:
    """Greedy answers of all prompts at once."""
    sampling = SamplingParams(max_tokens=answer_tokens, temperature=0.0, ignore_eos=True)
    found: dict[str, list[int]] = {f"r{k}": [] for k in range(len(prompts))}
    began_cpu_s = time.process_time()
    for name, prompt in zip(found, prompts, strict=True):
        engine.add(Request(id=name, prompt=array("i", prompt), sampling=sampling, arrival_s=0.0), age_s=0.0)
    while engine.has_work:
        for update in engine.step():
            found[update.request_id] += update.tokens
    for update in engine.take_updates():
        found[update.request_id] += update.tokens
    return Answers(list(found.values()), time.process_time() - began_cpu_s)

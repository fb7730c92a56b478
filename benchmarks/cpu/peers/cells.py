"""What every engine is asked for, and how it is timed. Standard library only: peers run in environments of their own.

A worker defines `generate(requests) -> seconds`: requests are (prompt ids, number of tokens to put out), all given at
once, greedy, with ends ignored; the seconds go from the first request to the last token.

    prefill    one prompt of 512 tokens, one token out: prompt tokens per second
    decode     one prompt of 128 tokens, 64 tokens out, less the time of one token out: tokens per second after it
    batch16    16 prompts of 128 tokens, 64 tokens out of each: tokens put out per second, prompts' time included
"""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence

Request = tuple[list[int], int]
Generate = Callable[[Sequence[Request]], float]

PREFILL_TOKENS, PROMPT_TOKENS, OUTPUT_TOKENS, SEQUENCES = 512, 128, 64, 16
LEAST_ID, MOST_ID = 300, 7000  # ordinary tokens in the vocabularies of all these models
CELLS = {
    "prefill": [(PREFILL_TOKENS, 1)],
    "decode": [(PROMPT_TOKENS, OUTPUT_TOKENS)],
    "batch16": [(PROMPT_TOKENS, OUTPUT_TOKENS)] * SEQUENCES,
}


def requests_of(lengths: Sequence[tuple[int, int]]) -> list[Request]:
    """Random ids, the same for every engine, another prompt for every sequence."""
    drawn = random.Random(len(lengths))
    return [([drawn.randrange(LEAST_ID, MOST_ID) for _ in range(n_in)], n_out) for n_in, n_out in lengths]


def rate(cell: str, generate: Generate) -> float:
    """Tokens per second of one run of a cell."""
    requests = requests_of(CELLS[cell])
    if cell == "prefill":
        return PREFILL_TOKENS / generate(requests)
    if cell == "batch16":
        return SEQUENCES * OUTPUT_TOKENS / generate(requests)
    first_s = generate([(prompt, 1) for prompt, _ in requests])
    return (OUTPUT_TOKENS - 1) / (generate(requests) - first_s)


def busy_s() -> float:
    """CPU seconds of all processes so far; 0 where the system does not say it in this way."""
    try:
        with open("/proc/stat", encoding="ascii") as stat:
            ticks = [int(field) for field in stat.readline().split()[1:9]]
    except OSError:
        return 0.0
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # without idle and waiting for disks


def measure(cells: Sequence[str], generate: Generate, repeats: int) -> None:
    """Print a line of JSON per cell: the median, every run, and how many cores this process and others kept busy."""
    for cell in cells:
        generate(requests_of(CELLS[cell]))
        runs, others, cores = [], [], []
        for _ in range(repeats):
            began_s, began_busy_s, began_own_s = time.perf_counter(), busy_s(), time.process_time()
            runs.append(rate(cell, generate))
            seconds = time.perf_counter() - began_s
            own_s = time.process_time() - began_own_s
            cores.append(own_s / seconds)
            others.append(max(0.0, busy_s() - began_busy_s - own_s) / seconds)
        found = {
            "cell": cell,
            "tok_per_s": statistics.median(runs),
            "runs": runs,
            "cores": statistics.median(cores),
            "others": statistics.median(others),
        }
        print(json.dumps(found), flush=True)

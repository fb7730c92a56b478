"""llama.cpp through the low-level interface of llama-cpp-python. MODEL: a GGUF file.

As its server does without HTTP: one context, a stream of KV for each sequence, prompts in batches, then one token of
every sequence per call. Greedy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import llama_cpp as llama
import numpy as np
from cells import SEQUENCES, Request, measure

BATCH_TOKENS = 2048
SEQUENCE_TOKENS = 1024
silent = llama.llama_log_callback(lambda *_: None)  # kept: the library holds a pointer to it


class Runner:
    def __init__(self, path: str, threads: int) -> None:
        llama.llama_backend_init()
        llama.llama_log_set(silent, None)
        self.model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.threads = threads
        self.batch = llama.llama_batch_init(BATCH_TOKENS, 0, SEQUENCES)
        self.contexts: dict[int, object] = {}

    def context(self, sequences: int) -> object:
        if sequences not in self.contexts:
            params = llama.llama_context_default_params()
            params.n_ctx = sequences * (SEQUENCE_TOKENS if sequences == 1 else SEQUENCE_TOKENS // 4)
            params.n_batch = BATCH_TOKENS
            params.n_seq_max = sequences
            params.n_threads = params.n_threads_batch = self.threads
            params.kv_unified = False
            self.contexts[sequences] = llama.llama_init_from_model(self.model, params)
        context = self.contexts[sequences]
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        return context

    def run(self, context: object, entries: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """entries: (token, position, sequence, whether its next token is wanted). The wanted ones, greedy."""
        self.batch.n_tokens = len(entries)
        for at, (token, position, sequence, is_wanted) in enumerate(entries):
            self.batch.token[at], self.batch.pos[at] = token, position
            self.batch.n_seq_id[at], self.batch.seq_id[at][0] = 1, sequence
            self.batch.logits[at] = is_wanted
        if llama.llama_decode(context, self.batch):
            raise SystemExit("llama_decode failed")
        wanted = [at for at, entry in enumerate(entries) if entry[3]]
        rows = (llama.llama_get_logits_ith(context, at) for at in wanted)
        return [int(np.ctypeslib.as_array(row, (self.vocab_size,)).argmax()) for row in rows]

    def generate(self, requests: Sequence[Request]) -> float:
        context, n_tokens = self.context(len(requests)), requests[0][1]
        began_s = time.perf_counter()
        tokens = self.run(
            context,
            [
                (token, position, sequence, position == len(prompt) - 1)
                for sequence, (prompt, _) in enumerate(requests)
                for position, token in enumerate(prompt)
            ],
        )
        for step in range(n_tokens - 1):
            entries = [(token, len(requests[s][0]) + step, s, True) for s, token in enumerate(tokens)]
            tokens = self.run(context, entries)
        return time.perf_counter() - began_s


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--cells")
    args = parser.parse_args()
    measure(args.cells.split(","), Runner(args.model, args.threads).generate, args.repeats)


if __name__ == "__main__":
    main()

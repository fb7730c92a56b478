"""OpenVINO GenAI's continuous batching pipeline, prefix cache off. MODEL: a folder that optimum-intel exported."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import openvino
import openvino_genai as genai
from cells import SEQUENCES, Request, measure

CACHE_GIB = 2
STEP_TOKENS = 2048


def greedy(n_tokens: int) -> genai.GenerationConfig:
    config = genai.GenerationConfig()
    config.do_sample = False
    config.ignore_eos = True
    config.min_new_tokens = config.max_new_tokens = n_tokens
    return config


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--cells")
    args = parser.parse_args()
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GIB
    scheduler.max_num_seqs = SEQUENCES
    scheduler.max_num_batched_tokens = STEP_TOKENS
    scheduler.enable_prefix_caching = False
    pipeline = genai.ContinuousBatchingPipeline(args.model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": args.threads})

    def generate(requests: Sequence[Request]) -> float:
        tensors = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt, _ in requests]
        began_s = time.perf_counter()
        handles = [
            pipeline.add_request(index, tensor, greedy(n_tokens))
            for index, (tensor, (_, n_tokens)) in enumerate(zip(tensors, requests, strict=True))
        ]
        while pipeline.has_non_finished_requests():
            pipeline.step()
        seconds = time.perf_counter() - began_s
        for handle, (_, n_tokens) in zip(handles, requests, strict=True):
            n_found = len(handle.read_all()[0].generated_ids)
            if n_found != n_tokens:
                raise SystemExit(f"OpenVINO put out {n_found} tokens, asked for {n_tokens}")
        return seconds

    measure(args.cells.split(","), generate, args.repeats)


if __name__ == "__main__":
    main()

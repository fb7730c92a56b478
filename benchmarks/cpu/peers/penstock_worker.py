"""Penstock, in the environment that runs the comparison: MODEL is a folder or the name of a shape."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence

from cells import Request, measure

from penstock.bench.offline import run_workload
from penstock.bench.shapes import SHAPES, folder_of
from penstock.launch import make_engine
from penstock.options import make_options
from penstock.workload.offline import OfflineRequest, OfflineWorkload


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--weights", default="bf16", help="bf16, int8 or int4")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--cells")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        is_shape = args.model in SHAPES
        folder = stack.enter_context(folder_of(args.model)) if is_shape else args.model
        engine = make_engine(
            make_options(
                {
                    "model": str(folder),
                    "load_format": "dummy" if is_shape else "auto",
                    "device": "cpu",
                    "dtype": "bfloat16",
                    "quantize": "none" if args.weights == "bf16" else args.weights,
                    "native_kernels": True,
                    "kv_memory": "2GiB",
                    "max_running": 16,
                    "prefix_caching": False,
                    "threads": args.threads,
                }
            )
        )

        def generate(requests: Sequence[Request]) -> float:
            asked = tuple(OfflineRequest(prompt=tuple(prompt), output_tokens=n) for prompt, n in requests)
            return run_workload(engine, OfflineWorkload(name="cell", requests=asked))[0]

        measure(args.cells.split(","), generate, args.repeats)
        engine.close()


if __name__ == "__main__":
    main()

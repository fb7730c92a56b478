"""What rounding weights costs the bundled model: perplexity of text that it was not trained on, through the engine.

    python benchmarks/accuracy/perplexity.py [--device cuda] [--windows 4] [--dtype bfloat16]

Windows of 2047 tokens of held-out files of this Python's standard library, each read with nothing before it. All
formats read the same text, so ratios count; the perplexity itself depends on the version of Python. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import platform

from penstock.demonstrations.streaming_llm import TRAINED_TOKENS, perplexities, unseen_text
from penstock.models.rounded import QUANTIZATIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--windows", type=int, default=4)
    arguments = parser.parse_args()
    text = unseen_text(arguments.windows * TRAINED_TOKENS)
    windows = [text[start : start + TRAINED_TOKENS] for start in range(0, len(text), TRAINED_TOKENS)]
    found: dict[str, float] = {}
    print(f"| weights | perplexity | over {arguments.dtype} |\n| --- | --- | --- |")
    for quantize in QUANTIZATIONS:
        options = {"quantize": quantize, "device": arguments.device, "dtype": arguments.dtype}
        nats = [math.log(perplexities(window[:-1], **options)[0]) for window in windows]
        found[quantize] = math.exp(sum(nats) / len(nats))
        name = arguments.dtype if quantize == "none" else quantize
        print(f"| {name} | {found[quantize]:.3f} | {found[quantize] / found['none']:.4f} |", flush=True)
    versions = {"python": platform.python_version(), "device": arguments.device, "dtype": arguments.dtype}
    print(json.dumps({"benchmark": "perplexity", **versions, "tokens": len(text), "perplexity": found}))


if __name__ == "__main__":
    main()

"""Loads damaged models under limits: `python -m tests.hostile.child FOLDER_OF_MODELS SCRATCH FIRST STOP`.

Prints a JSON line for each case that neither loaded nor ended in one line of a UserError.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch

from penstock.core.errors import ConfigError, InvalidRequest, ModelError
from penstock.models.facts import model_facts
from penstock.models.read_spec import read_model_spec
from penstock.models.weights import load_model, weight_bytes
from penstock.text.chat_template import ChatTemplate
from penstock.text.tokenizer import Tokenizer
from tests.hostile.mutations import mutate_file
from tests.models.paged_run import PagedRun

MOST_MORE_BYTES = 1 << 30
MOST_S = 5.0
MESSAGES = [{"role": "user", "content": "Hello"}]


class TooSlow(BaseException):
    """A case took longer than MOST_S."""


def stop(signum, frame):
    raise TooSlow


def use_text(path: Path) -> None:
    tokenizer = Tokenizer.from_path(path)
    ids = tokenizer.encode("The dog 123 </s>\n")
    tokenizer.decode(ids)
    tokenizer.scheme.joiner([]).push(ids)
    tokenizer.token_bytes(5), tokenizer.longest_token_chars
    with contextlib.suppress(InvalidRequest):  # the template's fault is told with the request
        ChatTemplate.of(tokenizer).render(MESSAGES)


def use_weights(path: Path) -> None:
    weight_bytes(read_model_spec(path))
    decoder = load_model(path, dtype="float32")
    model_facts(decoder.spec, "damaged", block_tokens=16, kv_item_bytes=decoder.dtype.itemsize, weight_bytes=0)
    PagedRun(decoder, [[0, 1, 2]], 4).step({0: 3})


def outcome(use, path: Path, counts: Counter[str]) -> str | None:
    """None if all is well, or else what went wrong."""
    signal.setitimer(signal.ITIMER_REAL, MOST_S)
    try:
        use(path)
        counts["loaded"] += 1
    except (ModelError, ConfigError) as error:
        message = str(error)
        counts["refused"] += 1
        if "\n" in message or len(message) > 1000 or not message.isprintable():
            return f"not one clean line: {message[:300]!r}"
        message.encode()
    except TooSlow:
        return f"longer than {MOST_S} s: {traceback.format_exc()[-1500:]}"
    except BaseException:  # noqa: BLE001  - a panic of the tokenizers library is one
        return traceback.format_exc()[-1500:]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def cases(models: Path, scratch: Path, number: int):
    """A fresh copy of one model with one file damaged."""
    rng = random.Random(number)
    source = rng.choice(sorted(models.iterdir()))
    folder = scratch / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    kind = rng.choice(sorted({path.suffix for path in folder.iterdir()} - {".jinja"}))
    path = rng.choice(sorted(folder.glob(f"*{kind}")))
    mutate_file(path, rng)
    return path.name, (path if path.suffix == ".gguf" else folder), source.name


def main(models: Path, scratch: Path, first: int, stop_at: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, stop)
    used_bytes = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + MOST_MORE_BYTES,) * 2)
    counts: Counter[str] = Counter()
    for number in range(first, stop_at):
        name, path, source = cases(models, scratch, number)
        begin_s = time.monotonic()
        for use in (use_text, use_weights):
            problem = outcome(use, path, counts)
            if problem is not None:
                took_s = time.monotonic() - begin_s
                print(
                    json.dumps({"case": number, "file": f"{source}/{name}", "s": took_s, "problem": problem}),
                    flush=True,
                )
            else:
                counts["fine"] += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({**counts, "peak_mib": peak // 1024}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))

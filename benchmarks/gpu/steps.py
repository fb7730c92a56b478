"""What single steps take on a GPU, captured and kernel by kernel, and which kernels the device spends them on.

    python benchmarks/gpu/steps.py --model qwen3-0.6b [--rows 64] [--prompts 0 32 256 1000 1900 4000] [--kernels 12]

`--rows` sequences decode, and with each number of `--prompts` one new prompt of so many tokens joins in every step (0:
none does). For each: milliseconds of wall time per step over some steps that follow one another, and what the profiler
of torch sees the device work in some others; first as the engine runs them, then with nothing captured. `--kernels`
shows the longest kernels of each kind of step. Random weights. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from array import array
from collections import Counter
from typing import Any

import torch

from penstock.bench.shapes import folder_of
from penstock.core.request import Request, SamplingParams
from penstock.launch import make_engine
from penstock.llm import unbounded
from penstock.options import make_options

WARM_UPS, TIMED, PROFILED = 8, 20, 6
CONTEXT = 300  # tokens of a sequence before it decodes
ENDLESS = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3-0.6b")
    parser.add_argument("--rows", type=int, nargs="+", default=[64])
    parser.add_argument("--prompts", type=int, nargs="+", default=[0, 32, 256, 1000, 1900, 4000])
    parser.add_argument("--kernels", type=int, default=0, help="of each kind of step, the longest so many")
    parser.add_argument("--kv-memory", default="40GiB")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for is_captured in (True, False):
        for n_rows in arguments.rows:
            with folder_of(arguments.model) as folder:
                steps = Steps(str(folder), arguments.kv_memory, n_rows, is_captured=is_captured)
                for n_prompt in arguments.prompts:
                    row, kernels = steps.measure(n_prompt)
                    rows.append({"rows": n_rows, "prompt": n_prompt, "captured": is_captured, **row})
                    print(json.dumps(rows[-1]), flush=True)
                    for name, (us, count) in kernels[: arguments.kernels]:
                        print(f"    {us:9.1f} us {count:6.1f} x {name}", flush=True)
                steps.engine.close()
    print("\n| rows | prompt | captured, ms | of it device | by kernel, ms | of it device |")
    print("| --- | --- | --- | --- | --- | --- |")
    plain = {(row["rows"], row["prompt"]): row for row in rows if not row["captured"]}
    for row in (row for row in rows if row["captured"]):
        other = plain[row["rows"], row["prompt"]]
        cells = (row["wall_ms"], row["device_ms"], other["wall_ms"], other["device_ms"])
        print(f"| {row['rows']} | {row['prompt']} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")
    device, versions = torch.cuda.get_device_name(), {"torch": torch.__version__}
    print(json.dumps({"benchmark": "steps", "model": arguments.model, "device": device, **versions, "rows": rows}))


class Steps:
    """An engine in which `n_rows` sequences decode."""

    def __init__(self, model: str, kv_memory: str, n_rows: int, *, is_captured: bool) -> None:
        options = {
            "model": model, "device": "cuda", "load_format": "dummy", "max_running": 512, "max_model_tokens": 8192,
            "kv_memory": kv_memory, "policy_options": {"batch": {"budget_tokens": 8192, "long_tokens": 8192}},
        }  # fmt: skip
        self.engine: Any = make_engine(unbounded(make_options(options)))
        self.engine._executor._step.tape.is_on = is_captured
        self._rng, self._n_requests = random.Random(0), 0
        for _ in range(n_rows):
            self._add(CONTEXT, ENDLESS)
        for _ in range(WARM_UPS + n_rows * CONTEXT // 8192):
            self.engine.step()

    def measure(self, n_prompt: int) -> tuple[dict[str, float], list[tuple[str, tuple[float, float]]]]:
        """Milliseconds per step; and (us, launches) per step by kernel, the longest first."""
        self._run(n_prompt, WARM_UPS)
        wall_s = self._run(n_prompt, TIMED) / TIMED
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profiler:
            self._run(n_prompt, PROFILED)
        us: Counter[str] = Counter()
        launches: Counter[str] = Counter()
        for event in profiler.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                us[event.name[:70]] += event.device_time_total
                launches[event.name[:70]] += 1
        kernels = [(name, (total / PROFILED, launches[name] / PROFILED)) for name, total in us.most_common()]
        device_ms, n_kernels = us.total() / PROFILED / 1e3, launches.total() / PROFILED
        return {"wall_ms": round(1e3 * wall_s, 3), "device_ms": round(device_ms, 3), "kernels": n_kernels}, kernels

    def _run(self, n_prompt: int, n_steps: int) -> float:
        """Seconds for these steps, until the device has done them."""
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        for _ in range(n_steps):
            if n_prompt:
                self._add(n_prompt, 1)
            self.engine.step()
        torch.cuda.synchronize()
        return time.perf_counter() - began_s

    def _add(self, n_prompt: int, n_answer: int) -> None:
        prompt = array("i", (self._rng.randrange(10_000) for _ in range(n_prompt)))
        sampling = SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=n_answer)
        self._n_requests += 1
        name = f"r{self._n_requests}"
        request = Request(id=name, prompt=prompt, sampling=sampling, arrival_s=0.0, seed=self._n_requests)
        self.engine.add(request, age_s=0.0)


if __name__ == "__main__":
    main()

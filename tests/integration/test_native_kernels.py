"""The C++ kernels behind the whole engine: bits, not tolerances."""

from __future__ import annotations

import random

import pytest

from penstock import LLM, SamplingParams
from penstock.ops import native
from penstock.runtime import build
from penstock.runtime.cascade import Rates

VOCAB_SIZE = 4096
N_STREAMS = 24
pytestmark = pytest.mark.skipif(
    not native.cpu_flags().issuperset(native.AVX512.needed), reason="the C++ kernels do not run on this CPU"
)


@pytest.fixture(autouse=True)
def _loaded_here_only(monkeypatch):
    """Other tests of this process compare with torch's bits."""
    monkeypatch.setattr(native, "_state", native.State(None, "not prepared"))


def prompts() -> list[list[int]]:
    drawn = random.Random(3)
    return [[drawn.randrange(3, VOCAB_SIZE) for _ in range(drawn.randint(1, 90))] for _ in range(N_STREAMS)]


def answers(llm: LLM, some: list[list[int]], logprobs: int | None = None) -> list[tuple[list[int], list[float]]]:
    """Token ids, and their log-probabilities where asked for: those show the bits behind a choice."""
    params = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True, logprobs=logprobs)
    outputs = [output.outputs[0] for output in llm.generate(some, params, use_tqdm=False)]
    return [(output.token_ids, [found.logprob for found in output.logprobs]) for output in outputs]


@pytest.mark.parametrize(("dtype", "quantize"), [("bfloat16", "none"), ("bfloat16", "int8"), ("float32", "int4")])
def test_a_stream_gets_the_same_bits_beside_others_as_alone(dtype, quantize):
    options = {
        "dtype": dtype,
        "quantize": quantize,
        "native_kernels": True,
        "kv_memory": "32MiB",
        "prefix_caching": False,
        "policy_options": {"batch": {"budget_tokens": 37}},
    }
    with LLM(**options) as llm:
        together = answers(llm, prompts(), logprobs=1)
        alone = [answers(llm, [prompt], logprobs=1)[0] for prompt in prompts()]
    assert together == alone


@pytest.mark.parametrize(("dtype", "quantize"), [("bfloat16", "none"), ("float32", "int8")])
def test_rows_that_read_prefixes_together_get_the_bits_of_reading_alone(dtype, quantize, monkeypatch):
    eager = Rates(read_bytes_per_s=1.0, flop_per_s=1e30, step_s=0.0, run_s=0.0)
    monkeypatch.setattr(build, "RATES", {"native": eager})
    drawn = random.Random(4)
    texts = [[drawn.randrange(3, VOCAB_SIZE) for _ in range(n)] for n in (70, 40, 50)]
    tree = [texts[0] + texts[1 + k % 2][: 20 * k] + [k] * (1 + 5 * k % 9) for k in range(10)]
    found, saved = {}, {}
    for choice in ("auto", "off"):
        how = {"dtype": dtype, "quantize": quantize, "native_kernels": True, "kv_memory": "32MiB"}
        with LLM(**how, shared_prefix_attention=choice, policy_options={"batch": {"budget_tokens": 60}}) as llm:
            answers(llm, tree[:1])  # so that the others find the prefix
            found[choice] = answers(llm, tree, logprobs=1)
            saved[choice] = llm._engine.counters()["decode_keys_saved_total"]
    assert found["auto"] == found["off"]
    assert saved["auto"] > 1000
    assert saved["off"] == 0

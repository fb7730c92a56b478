"""The Python API on the bundled model."""

from __future__ import annotations

import ast
import asyncio
import random

import pytest

from penstock import LLM, AsyncLLM, SamplingParams
from penstock.core.errors import InvalidRequest, ModelNotFound, PromptTooLong, UnknownName
from penstock.core.sequence import FinishReason


@pytest.fixture(scope="module")
def llm():
    with LLM(kv_memory="64MiB", dtype="float32", threads=1, seed=7) as made:
        yield made


def greedy(**options: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 16, "temperature": 0.0} | options)  # type: ignore[arg-type]


def test_64_mixed_requests_lose_and_duplicate_nothing(llm):
    rng = random.Random(3)
    prompts = [[rng.randrange(3, 4000) for _ in range(rng.randint(1, 90))] for _ in range(64)]
    params = [
        SamplingParams(
            max_tokens=rng.randint(1, 24),
            temperature=rng.choice([0.0, 0.8]),
            n=rng.choice([1, 1, 2]),
            top_p=rng.choice([1.0, 0.9]),
            seed=k,
            ignore_eos=True,
        )
        for k, _ in enumerate(prompts)
    ]
    together = llm.generate(prompts, params, use_tqdm=False)
    assert [output.prompt_token_ids for output in together] == prompts
    for output, wanted in zip(together, params, strict=True):
        assert [len(sample.token_ids) for sample in output.outputs] == [wanted.max_tokens] * wanted.n
        assert all(sample.finish_reason is FinishReason.LENGTH for sample in output.outputs)
    for k in (0, 9, 33):  # what a request draws does not depend on its neighbours
        (alone,) = llm.generate([prompts[k]], params[k], use_tqdm=False)
        assert [s.token_ids for s in alone.outputs] == [s.token_ids for s in together[k].outputs]


def test_a_completion_of_quicksort_is_python(llm):
    (output,) = llm.generate(
        "def quicksort(", greedy(max_tokens=200, stop=("\n\n\n", "\ndef ", "\nclass ")), use_tqdm=False
    )
    ast.parse("def quicksort(" + output.outputs[0].text)


def test_a_stop_string_cuts_the_text_and_the_tokens(llm):
    (whole,) = llm.generate("def quicksort(", greedy(max_tokens=60), use_tqdm=False)
    (cut,) = llm.generate("def quicksort(", greedy(max_tokens=60, stop=("return",)), use_tqdm=False)
    text = whole.outputs[0].text
    assert cut.outputs[0].text == text[: text.index("return")]
    assert cut.outputs[0].stop_reason == "return"
    assert cut.outputs[0].finish_reason is FinishReason.STOP
    assert cut.outputs[0].token_ids == whole.outputs[0].token_ids[: len(cut.outputs[0].token_ids)]
    assert cut.outputs[0].stats.output_tokens == len(cut.outputs[0].token_ids)


def test_logprobs_of_prompt_and_outputs_have_one_entry_per_token(llm):
    (output,) = llm.generate("import os", greedy(logprobs=3, prompt_logprobs=1), use_tqdm=False)
    sample = output.outputs[0]
    assert [entry.token for entry in sample.logprobs] == sample.token_ids
    assert all(entry.rank == 1 and len(entry.top) == 3 for entry in sample.logprobs)  # greedy takes the likeliest
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert [entry.token for entry in output.prompt_logprobs[1:] if entry] == output.prompt_token_ids[1:]


def test_bad_words_do_not_come_up_and_only_allowed_ids_do(llm):
    (plain,) = llm.generate("def quicksort(", greedy(max_tokens=60), use_tqdm=False)
    (without,) = llm.generate("def quicksort(", greedy(max_tokens=60, bad_words=["return", "arr"]), use_tqdm=False)
    assert "return" in plain.outputs[0].text
    assert " return" not in without.outputs[0].text
    digits = [llm.tokenizer.token_to_id(digit) for digit in "0123"]
    (number,) = llm.generate("x = ", greedy(max_tokens=9, allowed_token_ids=digits), use_tqdm=False)
    assert set(number.outputs[0].text) <= set("0123")
    assert len(number.outputs[0].token_ids) == 9


def test_a_bias_and_penalties_change_what_is_put_out(llm):
    token = llm.tokenizer.encode("zebra", add_special_tokens=False)[0]
    (biased,) = llm.generate("x = ", greedy(max_tokens=4, logit_bias={token: 100}), use_tqdm=False)
    assert biased.outputs[0].token_ids == [token] * 4
    asked = greedy(max_tokens=12, logit_bias={token: 60}, presence_penalty=2.0, frequency_penalty=2.0)
    (counted,) = llm.generate("x = ", asked, use_tqdm=False)
    assert counted.outputs[0].token_ids[:4] == [token] * 4
    (varied,) = llm.generate("1 1 1 1 1 1", greedy(max_tokens=30, repetition_penalty=100.0), use_tqdm=False)
    ids = varied.outputs[0].token_ids
    assert len(set(ids)) == len(ids)


def test_chat_goes_through_the_template(llm):
    (output,) = llm.chat([{"role": "user", "content": "Who are you?"}], greedy(max_tokens=40), use_tqdm=False)
    assert "penstock-tiny" in output.outputs[0].text
    assert output.outputs[0].finish_reason is FinishReason.STOP


def test_a_bad_prompt_in_a_list_loses_nothing(llm):
    with pytest.raises(PromptTooLong, match="context is 2048"):
        llm.generate([[5, 6, 7], [1] * 3000], greedy(), use_tqdm=False)
    with pytest.raises(InvalidRequest, match="token id 99999"):
        llm.generate([[5, 6, 99999]], greedy(), use_tqdm=False)
    assert llm.generate([], greedy(), use_tqdm=False) == []
    assert len(llm.generate([[5, 6, 7]], greedy(), use_tqdm=False)) == 1
    llm._engine.scheduler.audit()
    assert not llm._engine.has_work


def test_wrong_options_are_named():
    with pytest.raises(UnknownName, match="kv_memory"):
        LLM(kvmemory="1GiB")
    with pytest.raises(ModelNotFound, match="no model at"):
        LLM("nowhere/at/all")


def test_streams_end_early_and_leave_nothing_behind():
    async def run():
        async with AsyncLLM(kv_memory="32MiB", threads=1) as llm:
            text = ""
            async for delta in llm.stream("def quicksort(", greedy(max_tokens=1000, ignore_eos=True)):
                text += delta.text
                if len(text) > 20:
                    break
            last = [delta async for delta in llm.stream("def f(", greedy())][-1]
            assert last.stats is not None
            assert (
                0 < last.stats.ttft_s <= last.stats.e2e_s < 60
            )  # counted from this request, not from the clock's zero
            parts = await asyncio.gather(*(joined(llm, f"def f{k}(") for k in range(8)))
            alone = [await joined(llm, f"def f{k}(") for k in range(8)]
            assert parts == alone
            assert llm._engine is not None
            assert llm._engine.client.n_open == 0

    async def joined(llm, prompt):
        return "".join([delta.text async for delta in llm.stream(prompt, greedy())])

    asyncio.run(run())


def test_a_small_pool_with_a_host_tier_gives_what_a_large_one_gives(llm):
    prompts = [[3 + k] * 40 + [50 + k] * 60 for k in range(12)]
    wanted = llm.generate(prompts, greedy(max_tokens=60, ignore_eos=True), use_tqdm=False)
    options = {"preempt": {"swap_below": 1e6}}  # always swap: what costs less is another test's business
    small = LLM(kv_memory="4MiB", host_kv_memory="64MiB", dtype="float32", threads=1, seed=7, policy_options=options)
    with small:
        got = small.generate(prompts, greedy(max_tokens=60, ignore_eos=True), use_tqdm=False)
        counters = small._engine.counters()
    assert [output.outputs[0].token_ids for output in got] == [output.outputs[0].token_ids for output in wanted]
    assert counters["swaps_out_total"] == counters["swaps_in_total"] > 0
    assert counters["host_kv_swapped_blocks"] == 0

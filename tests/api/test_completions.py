"""Parameters and shapes of both doors, one by one."""

import math

import pytest
from fake_engine import MAX_MODEL_TOKENS, REPLY

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


def completion(server, **body: object) -> dict:
    response = server.post("/v1/completions", {"max_tokens": 100, **body})
    assert response.status_code == 200, response.text
    return response.json()


def test_a_prompt_has_four_shapes(server):
    ids = server.engine.tokenizer.encode("one two")
    for prompt in ("one two", ["one two"], ids, [ids]):
        completion(server, prompt=prompt)
    assert len({tuple(request.prompt) for request in server.engine.requests}) == 1
    answer = completion(server, prompt=[ids, ids[:1]])
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["prompt_tokens"] == len(ids) + 1
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 4


def test_cached_tokens_of_a_prompt_count_once_for_all_its_samples(server):
    usage = completion(server, prompt=["one two", "three"], n=3, max_tokens=2)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 4  # two of each prompt
    assert usage["completion_tokens"] == 12


def test_a_long_text_is_tokenized_off_the_loop_and_the_same(server):
    text = "word " * 220  # more than is done inline, less than the context
    completion(server, prompt=text)
    assert server.engine.requests[0].prompt.tolist() == server.engine.tokenizer.encode(text)


def test_every_parameter_reaches_the_engine(server):
    completion(
        server,
        prompt="x",
        n=2,
        max_tokens=7,
        min_tokens=2,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        seed=1234,
        stop=["a", "b"],
        stop_token_ids=[5],
        include_stop_str_in_output=True,
        ignore_eos=True,
        skip_special_tokens=False,
        logprobs=3,
        user="anna",
        session_id="s-1",
        priority=-2,
        cache_salt="salt",
        request_id="mine",
        objective={"ttft_s": 0.5, "tpot_s": 0.05, "deadline_s": 9, "weight": 2},
    )
    (request,) = server.engine.requests
    sampling = request.sampling
    assert (sampling.n, sampling.max_tokens, sampling.min_tokens, sampling.temperature) == (2, 7, 2, 0.5)
    assert (sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed) == (0.9, 40, 0.1, 1234)
    assert (sampling.stop, sampling.stop_token_ids) == (("a", "b"), (5,))
    assert sampling.include_stop_str_in_output
    assert sampling.ignore_eos
    assert not sampling.skip_special_tokens
    assert sampling.logprobs == 3
    assert (request.client, request.program, request.priority, request.cache_salt) == ("anna", "s-1", -2, "salt")
    assert request.seed == 1234
    assert request.id.startswith("cmpl-mine-")
    assert (request.objective.ttft_s, request.objective.tpot_s) == (0.5, 0.05)
    assert (request.objective.deadline_s, request.objective.weight) == (9, 2)


def test_headers_may_carry_objective_session_and_id(server):
    headers = {
        "x-penstock-ttft-ms": "250",
        "x-penstock-tpot-ms": "50",
        "x-penstock-deadline-ms": "1000",
        "x-session-affinity": "conv-7",
        "x-request-id": "req-1",
    }
    response = server.post("/v1/completions", {"prompt": "x"}, headers=headers)
    (request,) = server.engine.requests
    assert (request.objective.ttft_s, request.objective.tpot_s, request.objective.deadline_s) == (0.25, 0.05, 1.0)
    assert request.program == "conv-7"
    assert request.id == response.headers["x-request-id"] == response.json()["id"]
    assert request.id.startswith("cmpl-req-1-")


@pytest.mark.parametrize("value", ["soon", "", "-1", "0", "nan", "inf"])
def test_an_objective_that_is_no_time_is_refused(server, value):
    assert server.post("/v1/completions", {"prompt": "x"}, headers={"x-penstock-ttft-ms": value}).status_code == 400


def test_two_calls_with_the_same_id_are_two_requests(server):
    for _ in range(2):
        completion(server, prompt="x", request_id="same")
    assert len({request.id for request in server.engine.requests}) == 2


def test_a_call_without_a_seed_gets_one(server):
    for _ in range(2):
        completion(server, prompt="x")
    first, second = server.engine.requests
    assert first.seed != second.seed
    assert first.sampling.seed is None


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_what_changes_the_logits_reaches_the_engine(server, path):
    body = {
        "frequency_penalty": 0.5,
        "presence_penalty": -2,
        "repetition_penalty": 1.25,
        "logit_bias": {"7": 100, "5": -0.5},
        "allowed_token_ids": [5, 6, 7, 8],
        "bad_words": ["zebra"],
    }
    prompt = {"prompt": "x"} if path == "/v1/completions" else CHAT
    assert server.post(path, {**prompt, **body}).status_code == 200
    (request,) = server.engine.requests
    sampling = request.sampling
    assert (sampling.frequency_penalty, sampling.presence_penalty, sampling.repetition_penalty) == (0.5, -2.0, 1.25)
    assert sampling.logit_bias == ((5, -0.5), (7, 100.0))
    assert sampling.allowed_token_ids == (5, 6, 7, 8)
    assert sampling.bad_words == ()
    words = [server.engine.tokenizer.decode(ids) for ids in sampling.bad_word_ids]
    assert words == ["zebra", " zebra"]


def test_values_that_change_no_logit_ask_for_nothing(server):
    completion(
        server,
        prompt="x",
        frequency_penalty=0,
        presence_penalty=0.0,
        repetition_penalty=1.0,
        logit_bias={},
        bad_words=[],
        allowed_token_ids=None,
    )
    completion(server, prompt="x")
    asked, plain = (request.sampling for request in server.engine.requests)
    assert asked == plain


def test_many_bad_words_are_tokenized_off_the_loop_and_the_same(server):
    words = [f"word{k}" for k in range(256)]
    completion(server, prompt="x", bad_words=words)
    found = [server.engine.tokenizer.decode(ids) for ids in server.engine.requests[0].sampling.bad_word_ids]
    assert found == [*words, *(f" {word}" for word in words)]


def test_neutral_values_of_what_is_not_built_are_taken(server):
    completion(
        server,
        prompt="x",
        best_of=1,
        length_penalty=1.0,
        response_format={"type": "text"},
        suffix=None,
        stop=None,
        top_k=-1,
        use_beam_search=False,
    )
    body = {**CHAT, "tools": [{"type": "function"}], "tool_choice": "none"}
    assert server.post("/v1/chat/completions", body).status_code == 200
    assert server.post("/v1/chat/completions", {**CHAT, "tools": [], "logit_bias": None}).status_code == 200


def test_unknown_fields_are_ignored_but_named(server):
    response = server.post("/v1/completions", {"prompt": "x", "zebra": 1, "bad name\n": 2, "store": True})
    assert response.status_code == 200
    assert response.headers["x-penstock-ignored-fields"] == "zebra, ?, store"
    assert "x-penstock-ignored-fields" not in server.post("/v1/completions", {"prompt": "x"}).headers
    stream = server.post("/v1/chat/completions", {**CHAT, "stream": True, "zebra": 1})
    assert stream.headers["x-penstock-ignored-fields"] == "zebra"


def test_metrics_of_the_request_are_in_the_answer(server):
    metrics = completion(server, prompt="x", max_tokens=5)["metrics"]
    assert metrics == {
        "queue_time_ms": 10.0,
        "time_to_first_token_ms": 30.0,
        "generation_time_ms": 20.0,
        "mean_itl_ms": 5.0,
        "tokens_per_second": 100.0,
    }


def test_options_of_the_template_may_be_set(server):
    body = {**CHAT, "chat_template_kwargs": {"enable_thinking": False}, "add_generation_prompt": False}
    assert server.post("/v1/chat/completions", body).status_code == 200
    (request,) = server.engine.requests
    tokenizer = server.engine.tokenizer
    assert tokenizer.decode(request.prompt, skip_special_tokens=False) == "<|im_start|>user\nHi<|im_end|>\n"


def test_a_chat_without_a_limit_may_fill_the_context(server):
    server.post("/v1/chat/completions", CHAT)
    assert server.engine.requests[0].sampling.max_tokens is None


# ---- log-probabilities


def test_a_scoring_client_gets_the_prompt_and_one_token(server):
    """What lm-eval sends, and how it reads the answer."""
    prompts = [[10, 11, 12, 13], [20, 21]]
    body = {"prompt": prompts, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234}
    choices = completion(server, **body)["choices"]
    for prompt, choice in zip(prompts, choices, strict=True):
        logprobs = choice["logprobs"]
        assert len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == len(prompt) + 1
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["top_logprobs"][0] is None
        for own, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True):
            assert own in top.values()
            assert max(top.values()) == -0.5
        assert choice["text"].startswith(server.engine.tokenizer.decode(prompt, False))


def test_scoring_alone_returns_nothing_new(server):
    answer = completion(server, prompt=[10, 11, 12], max_tokens=0, logprobs=2, echo=True)
    choice = answer["choices"][0]
    assert choice["text"] == server.engine.tokenizer.decode([10, 11, 12], False)
    assert len(choice["logprobs"]["tokens"]) == 3
    assert answer["usage"]["completion_tokens"] == 0
    assert choice["finish_reason"] == "length"


def test_a_prompt_of_one_token_has_nothing_to_score(server):
    for max_tokens in (0, 1):
        body = {"prompt": [[10]], "max_tokens": max_tokens, "logprobs": 1, "echo": True}
        logprobs = completion(server, **body)["choices"][0]["logprobs"]
        assert logprobs["token_logprobs"] == [None] + [-1.5] * max_tokens
        assert server.post("/v1/completions", {**body, "stream": True}).text.count('"error"') == 0
    assert completion(server, prompt=[10], prompt_logprobs=1)["choices"][0]["prompt_logprobs"] == [None]


def test_echo_puts_the_prompt_before_each_answer(server):
    answer = completion(server, prompt=["one", "two"], echo=True, n=2)
    assert [choice["text"] for choice in answer["choices"]] == [f"one{REPLY}"] * 2 + [f"two{REPLY}"] * 2


def test_offsets_and_names_of_tokens_add_up_to_the_text(server):
    logprobs = completion(server, prompt="x", logprobs=0)["choices"][0]["logprobs"]
    joined = b"".join(
        bytes.fromhex(name.removeprefix("bytes:").replace("\\x", "")) if name.startswith("bytes:") else name.encode()
        for name in logprobs["tokens"]
    )
    assert joined.decode() == REPLY
    for name, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert name.startswith("bytes:") or offset == 0 or name in REPLY
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    assert logprobs["token_logprobs"] == [-1.5] * len(logprobs["tokens"])


def test_streamed_parts_of_logprobs_join_to_the_plain_ones(server):
    from test_stream import events

    for path, body in (
        ("/v1/completions", {"prompt": "one two", "logprobs": 2, "echo": True}),
        ("/v1/completions", {"prompt": "one", "logprobs": 2}),
        ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2}),
    ):
        plain = server.post(path, body).json()["choices"][0]["logprobs"]
        joined: dict[str, list] = {name: [] for name in plain}
        for event in events(server.post(path, {**body, "stream": True})):
            for name, part in (event["choices"][0]["logprobs"] or {}).items():
                joined[name] += part
        assert joined == plain


def test_chat_logprobs_have_bytes_and_the_most_likely(server):
    body = {**CHAT, "logprobs": True, "top_logprobs": 2}
    content = server.post("/v1/chat/completions", body).json()["choices"][0]["logprobs"]["content"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == REPLY
    assert [len(entry["top_logprobs"]) for entry in content] == [2] * len(content)
    without = server.post("/v1/chat/completions", {**CHAT, "logprobs": True}).json()
    assert without["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_prompt_logprobs_come_by_token_id(server):
    answer = completion(server, prompt=[10, 11, 12], prompt_logprobs=1)["choices"][0]
    first, second, _ = answer["prompt_logprobs"]
    assert first is None
    assert second["11"]["rank"] == 2
    assert second["12"]["rank"] == 1


def test_a_probability_of_zero_is_a_number_that_json_has():
    from penstock.api.logprobs import FLOOR, CompletionLogprobs, TokenNames
    from penstock.core.executor import TokenLogprobs

    class Names(TokenNames):
        def __init__(self) -> None:
            dict.__init__(self, {1: ("a", b"a")})

    part = CompletionLogprobs(Names()).part([1], [TokenLogprobs(1, -math.inf, 9, ((1, -math.inf),))])
    assert part["token_logprobs"] == [FLOOR]
    assert part["top_logprobs"] == [{"a": FLOOR}]


# ---- tokens


def test_tokenize_and_detokenize_are_each_others_inverse(server):
    text = "héllo 你好"
    answer = server.post("/tokenize", {"model": "tiny", "prompt": text, "add_special_tokens": False}).json()
    assert answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == MAX_MODEL_TOKENS
    assert server.post("/detokenize", {"model": "tiny", "tokens": answer["tokens"]}).json() == {"prompt": text}
    strings = server.post("/tokenize", {"prompt": text, "return_token_strs": True}).json()["token_strs"]
    assert len(strings) == answer["count"]
    assert server.post("/tokenize", {"prompt": ""}).json()["tokens"] == []


def test_a_chat_may_be_tokenized_without_running_it(server):
    server.post("/v1/chat/completions", CHAT)
    tokens = server.post("/tokenize", CHAT).json()["tokens"]
    assert tokens == server.engine.requests[0].prompt.tolist()


def test_the_tokenizer_tells_its_special_tokens(server):
    info = server.http.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|im_end|>"
    assert info["bos_token"] == "<|endoftext|>"
    assert "messages" in info["chat_template"]

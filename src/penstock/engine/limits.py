"""What an engine takes: how much may wait, what fits, and which parameters the model can follow.

A bounded queue refuses what it could only keep waiting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.cache.memory import Memory
from penstock.core.errors import InvalidRequest, NeverFits, Overloaded, PromptTooLong
from penstock.core.executor import ModelFacts
from penstock.core.request import Request, SamplingParams
from penstock.core.view import AdmitPolicy, Doorkeeper, View
from penstock.engine.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """Most sequences and most prompt tokens that wait; a request of n samples counts n times."""

    max_queued_requests: int = 4096
    max_queued_tokens: int = 4_194_304

    def check(self, n_queued: int, queued_tokens: int, request: Request, ledger: Ledger, now_s: float) -> None:
        """Raise Overloaded, with the time after which to try again, if the request would go over a limit.

        InvalidRequest for one that no empty queue would take: trying again would not help.
        """
        n = request.sampling.n
        if n > self.max_queued_requests:
            raise InvalidRequest(
                f"n is {n}, and the queue takes {self.max_queued_requests} samples at a time; ask for fewer",
                param="n",
            )
        if n_queued + n > self.max_queued_requests:
            raise Overloaded(
                f"the queue holds {n_queued} of at most {self.max_queued_requests} requests; try again later",
                reason="max_queued_requests",
                retry_after_s=ledger.drain_s(max(1, n_queued), now_s),
            )
        if n_queued and queued_tokens + n * len(request.prompt) > self.max_queued_tokens:
            raise Overloaded(
                f"the queue holds {queued_tokens} of at most {self.max_queued_tokens} prompt tokens; try again later",
                reason="max_queued_tokens",
                retry_after_s=ledger.drain_s(max(1, n_queued), now_s),
            )


def check_objective(admit: AdmitPolicy, request: Request, view: View) -> None:
    """Raise Overloaded if the policy expects that the request would miss its limits."""
    late_s = admit.late_by_s(request, view) if isinstance(admit, Doorkeeper) else None
    if late_s is not None:
        raise Overloaded(
            f"this request would miss its latency objective by about {late_s:.2f} s under the present load; try again "
            "later, or with a looser objective",
            reason="objective",
            retry_after_s=max(1.0, late_s),
        )


def check_request(request: Request, facts: ModelFacts, memory: Memory) -> None:
    """Raise PromptTooLong, NeverFits or InvalidRequest for what the model cannot follow or memory never holds."""
    prompt_tokens, context = len(request.prompt), facts.max_model_tokens
    ids = np.frombuffer(request.prompt, np.int32)
    if ids.min() < 0 or ids.max() >= facts.vocab_size:
        bad = next(token for token in request.prompt if not 0 <= token < facts.vocab_size)
        raise InvalidRequest(f"token id {bad} is not in 0..{facts.vocab_size - 1}", param="prompt")
    check_sampling(request.sampling, facts)
    if prompt_tokens >= context:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens, the model's context is {context} and must hold at least one "
            "output token too; shorten the prompt",
            param="prompt",
        )
    if not memory.fits_ever(prompt_tokens + 1):
        pool = max(memory.pools, key=lambda pool: pool.blocks_for(prompt_tokens + 1) - pool.total_blocks)
        raise NeverFits(
            f"the prompt of {prompt_tokens} tokens can never be admitted: the KV pool holds "
            f"{pool.total_blocks} blocks and it needs {pool.blocks_for(prompt_tokens + 1)}; "
            "shorten it, or start the server with a larger --kv-memory",
            param="prompt",
        )


def output_limit_tokens(request: Request, facts: ModelFacts, memory: Memory) -> int:
    """Outputs that the request, the context and the whole pool allow."""
    room = facts.max_model_tokens - len(request.prompt)
    wanted = room if request.sampling.max_tokens is None else min(request.sampling.max_tokens, room)
    while wanted > 1 and not memory.fits_ever(len(request.prompt) + wanted):
        wanted -= max(1, wanted // 64)
    return wanted


def check_sampling(sampling: SamplingParams, facts: ModelFacts) -> None:
    """Raise InvalidRequest for ids that the model does not have: on a device they would be another row's memory."""
    if sampling.bad_words:
        raise InvalidRequest("bad_words: an engine knows ids only, so give bad_word_ids", param="bad_words")
    ids_of = {
        "stop_token_ids": sampling.stop_token_ids,
        "logit_bias": [token for token, _ in sampling.logit_bias],
        "allowed_token_ids": sampling.allowed_token_ids or (),
        "bad_word_ids": [token for word in sampling.bad_word_ids for token in word],
    }
    for name, ids in ids_of.items():
        if ids and max(ids) >= facts.vocab_size:
            raise InvalidRequest(f"{name}: token id {max(ids)} is not in 0..{facts.vocab_size - 1}", param=name)
    if sampling.allowed_token_ids is not None:
        _check_something_is_left(frozenset(sampling.allowed_token_ids), sampling, facts)


def _check_something_is_left(allowed: frozenset[int], sampling: SamplingParams, facts: ModelFacts) -> None:
    left = allowed - {word[0] for word in sampling.bad_word_ids if len(word) == 1}
    if sampling.min_tokens:
        left -= frozenset(sampling.stop_token_ids)
        left -= frozenset() if sampling.ignore_eos else facts.stop_token_ids
    if not left:
        raise InvalidRequest(
            f"allowed_token_ids: bad_words or min_tokens ({sampling.min_tokens}) hold back all of its {len(allowed)} "
            "ids; allow another one",
            param="allowed_token_ids",
        )

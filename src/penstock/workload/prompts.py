"""Token ids for a trace that only has lengths.

Ids come from seeded streams, so a trace gives the same prompts on every machine. A session has one stream and each
turn takes a prefix of it: turn k's prompt is the beginning of turn k+1's, as in a conversation. (What the server
answered is not in the stream: a prefix cache can hit on prompts, not on answers.) Without a session, block hashes give
one stream per block. What has neither is unique. The default range of ids fits every vocabulary of 256 or more and
leaves out 0 to 2, which are special in most.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass

import numpy as np

from penstock.workload.trace import TraceError, TraceRequest

DEFAULT_BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptStream:
    """Makes the prompt of request number `index`; vocab_start, vocab_stop: the half-open range of ids."""

    seed: int = 0
    vocab_start: int = 3
    vocab_stop: int = 256
    block_tokens: int = DEFAULT_BLOCK_TOKENS

    def __post_init__(self) -> None:
        if not 0 <= self.vocab_start < self.vocab_stop:
            raise TraceError(
                f"the range of token ids [{self.vocab_start}, {self.vocab_stop}) is empty or negative: "
                "give a start of 0 or more and a stop above it"
            )

    def prompt(self, index: int, request: TraceRequest) -> str | array[int]:
        """What to send: the recorded text or ids if the trace has them, else ids from the streams."""
        if request.prompt_text is not None:
            return request.prompt_text
        if request.prompt_ids is not None:
            return array("i", request.prompt_ids)
        return self.ids(index, request)

    def ids(self, index: int, request: TraceRequest) -> array[int]:
        n_tokens = max(1, request.input_tokens)
        if request.session is not None:
            return self._draw(f"session/{request.session}", n_tokens)
        if request.block_hashes:
            return self._from_blocks(request, n_tokens)
        return self._draw(f"request/{index}", n_tokens)

    def _from_blocks(self, request: TraceRequest, n_tokens: int) -> array[int]:
        ids = array("i")
        for block_hash in request.block_hashes:
            ids += self._draw(f"block/{block_hash}", min(self.block_tokens, n_tokens - len(ids)))
            if len(ids) == n_tokens:
                return ids
        # fewer hashes than blocks: what follows the last known block is this request's own
        return ids + self._draw(f"tail/{request.block_hashes[-1]}", n_tokens - len(ids))

    def _draw(self, name: str, n_tokens: int) -> array[int]:
        digest = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=16).digest()
        rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
        return array("i", rng.integers(self.vocab_start, self.vocab_stop, n_tokens).astype(np.int32).tobytes())

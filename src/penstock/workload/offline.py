"""Offline workloads: all prompts at once, lengths fixed, every end ignored. The same for every engine that is compared.

Ids are random, so nothing can be gained from content, only from a prefix where a workload has one. A smaller scale
takes the first requests of the same list; where the number of sequences is the point (`decode8`), it takes shorter
answers instead.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.core.errors import ConfigError, UnknownName

MOST_ID = 10_000  # prompts use ids below this, or below the vocabulary's size


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineShape:
    """Lengths are drawn uniformly from [least, most]. shared_tokens: a prefix of every prompt, part of its length.

    has_fixed_requests: a smaller scale shortens answers, not the list.
    """

    requests: int
    input_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    shared_tokens: int = 0
    has_fixed_requests: bool = False


OFFLINE: Mapping[str, OfflineShape] = {
    "mixed256": OfflineShape(requests=256, input_tokens=(100, 1024), output_tokens=(100, 1024)),
    "mixed1024": OfflineShape(requests=1024, input_tokens=(100, 1024), output_tokens=(100, 1024)),
    "prefill": OfflineShape(requests=64, input_tokens=(4096, 4096), output_tokens=(1, 1)),
    "decode1": OfflineShape(requests=1, input_tokens=(32, 32), output_tokens=(512, 512), has_fixed_requests=True),
    "decode8": OfflineShape(requests=8, input_tokens=(32, 32), output_tokens=(512, 512), has_fixed_requests=True),
    "decode64": OfflineShape(requests=64, input_tokens=(32, 32), output_tokens=(512, 512), has_fixed_requests=True),
    "shared4096x256": OfflineShape(
        requests=256, input_tokens=(4160, 4160), output_tokens=(256, 256), shared_tokens=4096
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineRequest:
    """A prompt and how many tokens follow it."""

    prompt: tuple[int, ...]
    output_tokens: int

    @property
    def total_tokens(self) -> int:
        return len(self.prompt) + self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineWorkload:
    """Requests in the order in which an engine gets them."""

    name: str
    requests: tuple[OfflineRequest, ...]
    shared_tokens: int = 0

    @property
    def input_tokens(self) -> int:
        return sum(len(request.prompt) for request in self.requests)

    @property
    def output_tokens(self) -> int:
        return sum(request.output_tokens for request in self.requests)

    @property
    def longest_tokens(self) -> int:
        return max(request.total_tokens for request in self.requests)


def make_offline(
    name: str, *, scale: float = 1.0, length_scale: float = 1.0, vocab_size: int = MOST_ID, seed: int = 0
) -> OfflineWorkload:
    """One of `OFFLINE`, seeded by its name.

    Args:
        scale: of the work: the share of its requests, or of their answers' lengths. length_scale: of all lengths.
    Raises: UnknownName; ConfigError for a scale outside of (0, 1].
    """
    shape = OFFLINE.get(name)
    if shape is None:
        raise UnknownName("workload", name, tuple(OFFLINE))
    for option, value in (("scale", scale), ("length_scale", length_scale)):
        if not 0 < value <= 1:
            raise ConfigError(f"{option} is {value}: give a number above 0, up to 1")
    random_ids = random.Random(f"{name} {seed}")
    stop_id = min(MOST_ID, vocab_size)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(random_ids.randrange(stop_id) for _ in range(count))

    def length(least_most: tuple[int, int], extra_scale: float = 1.0) -> int:
        return max(1, round(random_ids.randint(*least_most) * length_scale * extra_scale))

    shared = ids(round(shape.shared_tokens * length_scale))
    n_requests = shape.requests if shape.has_fixed_requests else max(1, round(shape.requests * scale))
    answer_scale = scale if shape.has_fixed_requests else 1.0
    requests = []
    for _ in range(n_requests):
        own_tokens = max(1, length(shape.input_tokens) - len(shared))
        output_tokens = length(shape.output_tokens, answer_scale)
        requests.append(OfflineRequest(prompt=shared + ids(own_tokens), output_tokens=output_tokens))
    return OfflineWorkload(name=name, requests=tuple(requests), shared_tokens=len(shared))

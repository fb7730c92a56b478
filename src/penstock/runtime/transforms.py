"""The transforms of the logits stage, in its order; `logits.py` says what they have in common.

Shape letters: N sampling rows, V vocabulary, M those of them that use a transform, K ids of each, P bad words of each,
B tokens of a bad word before its last one, L the longest bad word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from penstock.core.executor import ModelFacts
from penstock.core.plan import RowStart
from penstock.core.request import MAX_BAD_SEQUENCE_TOKENS, MAX_BAD_SEQUENCES, MAX_BIASED_IDS, MAX_STOP_IDS
from penstock.ops.penalize import penalize
from penstock.ops.penalize.reference import IN_PROMPT, PUT_OUT
from penstock.runtime.lines import Table
from penstock.runtime.logits import HELD_BACK, Change, LogitsStage, Transform
from penstock.runtime.rows import Known
from penstock.runtime.transfer import Ints, send

NO_ID = -1  # fills a line of ids behind the last one
NOTHING_YET = -2  # in the tail of outputs: equal to no id and to no NO_ID


class _Fixed:
    """A change that does not depend on what was drawn."""

    def note(self, ids_N: Tensor, index_N: Tensor) -> None:
        """It is all the same."""


def _places(at_M: Tensor, ids_MK: Tensor, vocab_size: int) -> Tensor:
    """Where the ids stand in the flattened logits; id 0 for those that are none."""
    return (at_M.unsqueeze(1) * vocab_size + ids_MK.clamp(min=0)).view(-1)


def _add(logits_NV: Tensor, places: Tensor, amounts_MK: Tensor) -> None:
    """Add at places that may be named twice: by sums of zeros and one number, which no order of adding changes."""
    logits_NV.view(-1).scatter_add_(0, places, amounts_MK.view(-1))


def _held_back(ids_MK: Tensor) -> Tensor:
    """What to add to the logits of ids that must not be drawn."""
    return torch.where(ids_MK >= 0, HELD_BACK, 0.0)


class AllowedIds(Transform):
    """Nothing but `allowed_token_ids`."""

    def __init__(self, facts: ModelFacts, max_rows: int, device: torch.device) -> None:
        super().__init__(facts, max_rows, device)
        self._is_out = Table(facts.vocab_size, torch.bool, device)

    def uses(self, start: RowStart) -> bool:
        return start.sampling.allowed_token_ids is not None

    def write(self, lines: Ints, starts: Sequence[RowStart], known: Sequence[Known]) -> None:
        self._is_out.hold(self.lines.n_lines)
        allowed = [
            np.array(start.sampling.allowed_token_ids, np.int64) + line * self.facts.vocab_size
            for start, line in zip(starts, lines.tolist(), strict=True)
        ]
        self._is_out.dev.index_fill_(0, send(lines, self.device), True)
        self._is_out.flat.index_fill_(0, send(np.concatenate(allowed), self.device), False)

    def change(self, at_M: Tensor, lines_M: Tensor, lines_host_M: Ints) -> Change:
        return _Mask(at_M, self._is_out.read(lines_M))


@dataclass(frozen=True, slots=True)
class _Mask(_Fixed):
    at_M: Tensor
    is_out_MV: Tensor

    def apply(self, logits_NV: Tensor, index_N: Tensor) -> None:
        masked_MV = logits_NV.index_select(0, self.at_M).masked_fill_(self.is_out_MV, -torch.inf)
        logits_NV.index_copy_(0, self.at_M, masked_MV)


class BadWords(Transform):
    """No token that completes one of `bad_word_ids`. The last outputs stand in a ring: output k at k modulo its width.

    The ids of a word end in the last column of its line, so that their ends agree with the end of the outputs.
    """

    def __init__(self, facts: ModelFacts, max_rows: int, device: torch.device) -> None:
        super().__init__(facts, max_rows, device)
        self._words = Table(MAX_BAD_SEQUENCES * MAX_BAD_SEQUENCE_TOKENS, torch.int32, device)
        self._tail = Table(MAX_BAD_SEQUENCE_TOKENS, torch.int32, device)
        self._shapes = np.zeros((max_rows, 2), np.int64)  # by line: words, tokens of the longest

    def uses(self, start: RowStart) -> bool:
        return bool(start.sampling.bad_word_ids)

    def write(self, lines: Ints, starts: Sequence[RowStart], known: Sequence[Known]) -> None:
        self._words.hold(self.lines.n_lines)
        self._tail.hold(self.lines.n_lines)
        words = np.full((len(lines), MAX_BAD_SEQUENCES, MAX_BAD_SEQUENCE_TOKENS), NO_ID, np.int32)
        tails = np.full((len(lines), MAX_BAD_SEQUENCE_TOKENS), NOTHING_YET, np.int32)
        for k, (start, ids) in enumerate(zip(starts, known, strict=True)):
            sequences = start.sampling.bad_word_ids
            for word, sequence in zip(words[k], sequences, strict=False):
                word[-len(sequence) :] = sequence
            self._shapes[lines[k]] = len(sequences), max(map(len, sequences))
            outputs = ids[start.prompt_tokens :]
            last = np.arange(max(0, len(outputs) - MAX_BAD_SEQUENCE_TOKENS), len(outputs))
            tails[k, last % MAX_BAD_SEQUENCE_TOKENS] = outputs[last]
        lines_dev = send(lines, self.device)
        self._words.write(lines_dev, send(words.reshape(len(lines), -1), self.device))
        self._tail.write(lines_dev, send(tails, self.device))

    def change(self, at_M: Tensor, lines_M: Tensor, lines_host_M: Ints) -> Change:
        n_words, longest = self._shapes[lines_host_M].max(axis=0).tolist()
        words_MPL = self._words.read(lines_M).view(len(at_M), MAX_BAD_SEQUENCES, MAX_BAD_SEQUENCE_TOKENS)
        words_MPL = words_MPL[:, :n_words, -longest:].to(torch.int64)
        return _HoldWordsBack(
            at_M=at_M,
            lines_M=lines_M,
            tail=self._tail,
            before_MPB=words_MPL[..., :-1],
            back_B=torch.arange(longest - 1, 0, -1, device=self.device),
            places=_places(at_M, words_MPL[..., -1], self.facts.vocab_size),
            amounts_MP=_held_back(words_MPL[..., -1]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _HoldWordsBack:
    """back_B: how far before the token to be drawn each column of `before_MPB` stands."""

    at_M: Tensor
    lines_M: Tensor
    tail: Table
    before_MPB: Tensor
    back_B: Tensor
    places: Tensor
    amounts_MP: Tensor

    def apply(self, logits_NV: Tensor, index_N: Tensor) -> None:
        columns_MB = (index_N.index_select(0, self.at_M).unsqueeze(1) - self.back_B) % self.tail.width
        tail_M1B = self.tail.read(self.lines_M).gather(1, columns_MB).unsqueeze(1)
        is_next_MP = ((self.before_MPB == tail_M1B) | (self.before_MPB == NO_ID)).all(dim=-1)
        _add(logits_NV, self.places, torch.where(is_next_MP, self.amounts_MP, 0.0))

    def note(self, ids_N: Tensor, index_N: Tensor) -> None:
        columns_M = index_N.index_select(0, self.at_M) % self.tail.width
        ids_M = ids_N.index_select(0, self.at_M).to(torch.int32)
        self.tail.flat.index_copy_(0, self.lines_M * self.tail.width + columns_M, ids_M)


def stop_ids(start: RowStart, facts: ModelFacts) -> list[int]:
    """The ids that would end this sequence, so that must not come before its `min_tokens`."""
    ends = set(start.sampling.stop_token_ids)
    if not start.sampling.ignore_eos:
        ends |= facts.stop_token_ids
    return sorted(token for token in ends if 0 <= token < facts.vocab_size)


class MinTokens(Transform):
    """Nothing that ends the sequence before its `min_tokens`."""

    def __init__(self, facts: ModelFacts, max_rows: int, device: torch.device) -> None:
        super().__init__(facts, max_rows, device)
        self._ids = Table(MAX_STOP_IDS + len(facts.stop_token_ids), torch.int64, device)
        self._until = Table(1, torch.int64, device)
        self._n_ids = np.zeros(max_rows, np.int64)  # by line

    def uses(self, start: RowStart) -> bool:
        return start.sampling.min_tokens > 0

    def write(self, lines: Ints, starts: Sequence[RowStart], known: Sequence[Known]) -> None:
        self._ids.hold(self.lines.n_lines)
        self._until.hold(self.lines.n_lines)
        ids = np.full((len(lines), self._ids.width), NO_ID, np.int64)
        for k, start in enumerate(starts):
            held = stop_ids(start, self.facts)
            ids[k, : len(held)] = held
            self._n_ids[lines[k]] = len(held)
        lines_dev = send(lines, self.device)
        until = np.array([[start.sampling.min_tokens] for start in starts], np.int64)
        self._ids.write(lines_dev, send(ids, self.device))
        self._until.write(lines_dev, send(until, self.device))

    def change(self, at_M: Tensor, lines_M: Tensor, lines_host_M: Ints) -> Change:
        ids_MK = self._ids.read(lines_M)[:, : int(self._n_ids[lines_host_M].max())]
        places = _places(at_M, ids_MK, self.facts.vocab_size)
        return _HoldBackUntil(at_M, self._until.read(lines_M), places, _held_back(ids_MK))


@dataclass(frozen=True, slots=True)
class _HoldBackUntil(_Fixed):
    at_M: Tensor
    until_M1: Tensor
    places: Tensor
    amounts_MK: Tensor

    def apply(self, logits_NV: Tensor, index_N: Tensor) -> None:
        is_early_M1 = index_N.index_select(0, self.at_M).unsqueeze(1) < self.until_M1
        _add(logits_NV, self.places, torch.where(is_early_M1, self.amounts_MK, 0.0))


class LogitBias(Transform):
    """A number for each of some ids, added."""

    def __init__(self, facts: ModelFacts, max_rows: int, device: torch.device) -> None:
        super().__init__(facts, max_rows, device)
        self._ids = Table(MAX_BIASED_IDS, torch.int64, device)
        self._amounts = Table(MAX_BIASED_IDS, torch.float32, device)
        self._n_ids = np.zeros(max_rows, np.int64)  # by line

    def uses(self, start: RowStart) -> bool:
        return bool(start.sampling.logit_bias)

    def write(self, lines: Ints, starts: Sequence[RowStart], known: Sequence[Known]) -> None:
        self._ids.hold(self.lines.n_lines)
        self._amounts.hold(self.lines.n_lines)
        ids = np.full((len(lines), MAX_BIASED_IDS), NO_ID, np.int64)
        amounts = np.zeros((len(lines), MAX_BIASED_IDS), np.float32)
        for k, start in enumerate(starts):
            n_ids = self._n_ids[lines[k]] = len(start.sampling.logit_bias)
            ids[k, :n_ids], amounts[k, :n_ids] = zip(*start.sampling.logit_bias, strict=True)
        lines_dev = send(lines, self.device)
        self._ids.write(lines_dev, send(ids, self.device))
        self._amounts.write(lines_dev, send(amounts, self.device))

    def change(self, at_M: Tensor, lines_M: Tensor, lines_host_M: Ints) -> Change:
        n_ids = int(self._n_ids[lines_host_M].max())
        places = _places(at_M, self._ids.read(lines_M)[:, :n_ids], self.facts.vocab_size)
        return _AddBias(places, self._amounts.read(lines_M)[:, :n_ids].contiguous())


@dataclass(frozen=True, slots=True)
class _AddBias(_Fixed):
    places: Tensor
    amounts_MK: Tensor

    def apply(self, logits_NV: Tensor, index_N: Tensor) -> None:
        _add(logits_NV, self.places, self.amounts_MK)


class Penalties(Transform):
    """Repetition, frequency and presence. A line counts how often each token of the vocabulary occurred."""

    def __init__(self, facts: ModelFacts, max_rows: int, device: torch.device) -> None:
        super().__init__(facts, max_rows, device)
        self._tally = Table(facts.vocab_size, torch.int32, device)
        self._factors = Table(3, torch.float32, device)

    def uses(self, start: RowStart) -> bool:
        asked = start.sampling
        return (asked.repetition_penalty, asked.frequency_penalty, asked.presence_penalty) != (1.0, 0.0, 0.0)

    def write(self, lines: Ints, starts: Sequence[RowStart], known: Sequence[Known]) -> None:
        self._tally.hold(self.lines.n_lines)
        self._factors.hold(self.lines.n_lines)
        asked = [start.sampling for start in starts]
        factors = np.array([(s.repetition_penalty, s.frequency_penalty, s.presence_penalty) for s in asked], np.float32)
        lines_dev = send(lines, self.device)
        self._factors.write(lines_dev, send(factors, self.device))
        self._tally.dev.index_fill_(0, lines_dev, 0)
        firsts = (lines * self.facts.vocab_size).tolist()
        places = [ids.astype(np.int64) + first for ids, first in zip(known, firsts, strict=True)]
        cuts = [start.prompt_tokens for start in starts]
        prompts = np.concatenate([ids[:cut] for ids, cut in zip(places, cuts, strict=True)])
        outputs = np.concatenate([ids[cut:] for ids, cut in zip(places, cuts, strict=True)])
        self._tally.flat.index_fill_(0, send(prompts, self.device), IN_PROMPT)
        if len(outputs):
            put_out = torch.full((len(outputs),), PUT_OUT, dtype=torch.int32, device=self.device)
            self._tally.flat.scatter_add_(0, send(outputs, self.device), put_out)

    def change(self, at_M: Tensor, lines_M: Tensor, lines_host_M: Ints) -> Change:
        repetition_M, frequency_M, presence_M = self._factors.read(lines_M).unbind(dim=1)
        one_more_M = torch.full_like(lines_M, PUT_OUT, dtype=torch.int32)
        return _Penalize(
            at_M=at_M,
            lines_M=lines_M,
            tally=self._tally,
            repetition_M=repetition_M,
            frequency_M=frequency_M,
            presence_M=presence_M,
            one_more_M=one_more_M,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Penalize:
    at_M: Tensor
    lines_M: Tensor
    tally: Table
    repetition_M: Tensor
    frequency_M: Tensor
    presence_M: Tensor
    one_more_M: Tensor

    def apply(self, logits_NV: Tensor, index_N: Tensor) -> None:
        logits_MV = logits_NV.index_select(0, self.at_M)
        tally_MV = self.tally.read(self.lines_M)
        changed_MV = penalize(logits_MV, tally_MV, self.repetition_M, self.frequency_M, self.presence_M)
        logits_NV.index_copy_(0, self.at_M, changed_MV)

    def note(self, ids_N: Tensor, index_N: Tensor) -> None:
        places_M = self.lines_M * self.tally.width + ids_N.index_select(0, self.at_M)
        self.tally.flat.scatter_add_(0, places_M, self.one_more_M)


TRANSFORMS: tuple[type[Transform], ...] = (AllowedIds, BadWords, MinTokens, LogitBias, Penalties)


def make_logits_stage(facts: ModelFacts, max_rows: int, device: torch.device) -> LogitsStage:
    return LogitsStage([kind(facts, max_rows, device) for kind in TRANSFORMS])

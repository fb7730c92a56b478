"""A scheduler in miniature: it makes legal plans by chance and keeps the books that a real one would keep.

Every choice comes from the generator that was handed in. A sequence wants a fixed number of outputs, so its end is
planned without knowing them, and plans may run ahead of results.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import torch

from penstock.core.executor import Executor, ModelFacts, StateKind, StepResult, Ticket, TokenLogprobs
from penstock.core.plan import NO_DECODE, BlockCopy, Chunk, DecodeGroup, Plan, RowBlocks, RowStart
from penstock.core.request import SamplingParams
from penstock.ops.sample import sample
from penstock.runtime.logits import HELD_BACK


@dataclass(eq=False)
class Job:
    """One sequence: what it wants, then where it stands in the plans made so far."""

    prompt: list[int]
    n_outputs: int
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.0))
    seed: int = 0
    outputs: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    row: int | None = None
    blocks: list[list[int]] = field(default_factory=list)
    known: int = 0  # tokens that the row started with
    computed: int = 0  # tokens whose state is planned
    sampled: int = 0  # outputs that are planned
    unfinished: Chunk | None = None  # a pass that stopped between layers

    @property
    def is_planned_out(self) -> bool:
        return self.sampled == self.n_outputs

    @property
    def is_decoding(self) -> bool:
        return self.row is not None and self.computed >= self.known and not self.is_planned_out


class Driver:
    """depth: plans in flight. The likelihoods are of doing it when it could be done."""

    def __init__(
        self,
        executor: Executor,
        rng: Random,
        *,
        n_blocks: int = 96,
        depth: int = 2,
        chunk_frac: float = 0.6,
        layer_cut_frac: float = 0.4,
        pause_frac: float = 0.15,
        stop_frac: float = 0.1,
        fork_frac: float = 0.8,
        max_chunk_tokens: int = 9,
    ) -> None:
        self.executor, self.rng, self.depth = executor, rng, depth
        self.facts: ModelFacts = executor.facts
        self.chunk_frac, self.layer_cut_frac, self.pause_frac = chunk_frac, layer_cut_frac, pause_frac
        self.stop_frac, self.fork_frac, self.max_chunk_tokens = stop_frac, fork_frac, max_chunk_tokens
        executor.allocate((n_blocks,) * len(self.facts.states))
        self.free = [list(range(n_blocks)) for _ in self.facts.states]
        for free in self.free:
            rng.shuffle(free)
        self.users: list[Counter[int]] = [Counter() for _ in self.facts.states]
        self.free_rows = list(range(executor.max_rows))
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.ends: list[int] = []
        self.group = NO_DECODE
        self.in_flight: deque[tuple[Ticket, Plan, list[Job], list[Job]]] = deque()
        self.n_plans = 0

    def run(self, jobs: Sequence[Job]) -> None:
        """Until every job has its outputs."""
        self.waiting += jobs
        while self.waiting or self.running or self.ends:
            self.submit()
            while len(self.in_flight) >= self.depth:
                self.collect()
        while self.in_flight:
            self.collect()

    def submit(self) -> None:
        for job in list(self.running):
            if job.is_planned_out or (self._may_stop(job) and self.rng.random() < self.stop_frac):
                self._stop(job)
        ends, self.ends = tuple(self.ends), []
        starts, copies = self._admit()
        grows: list[RowBlocks] = []
        decoding = [job for job in self.running if job.is_decoding and self.rng.random() >= self.pause_frac]
        chunks, chunked, sampling = [], [], []
        for job in self.running:
            if job.computed < job.known and self.rng.random() < self.chunk_frac:
                chunk = self._chunk(job)
                grows += self._grow(job, chunk.stop)
                if chunk.stop_layer is None:
                    job.computed = chunk.stop
                    if chunk.stop == job.known:
                        sampling.append(len(chunks))
                        job.sampled += 1
                chunks.append(chunk)
                chunked.append(job)
        for job in decoding:
            grows += self._grow(job, job.computed + 1)
            job.computed += 1
            job.sampled += 1
        rows = tuple(job.row for job in decoding if job.row is not None)
        if rows != self.group.rows:
            self.group = DecodeGroup(rows, self.group.version + 1)
        self.n_plans += 1
        plan = Plan(
            id=self.n_plans,
            decode=self.group,
            chunks=tuple(chunks),
            ends=ends,
            starts=tuple(starts),
            grows=tuple(grows),
            copies=tuple(copies),
            sampling_chunks=tuple(sampling),
        )
        samplers = decoding + [chunked[index] for index in sampling]
        self.in_flight.append((self.executor.submit(plan), plan, samplers, chunked))

    def collect(self) -> StepResult:
        ticket, plan, samplers, chunked = self.in_flight.popleft()
        result = self.executor.collect(ticket)
        assert len(result.tokens) == len(samplers)
        for at, (job, token) in enumerate(zip(samplers, result.tokens.tolist(), strict=True)):
            job.outputs.append(token)
            assert (at in result.logprobs) == (job.sampling.logprobs is not None)
            if at in result.logprobs:
                job.logprobs.append(result.logprobs[at])
        for index, records in result.prompt_logprobs.items():
            job, chunk = chunked[index], plan.chunks[index]
            if chunk.start <= len(job.prompt_logprobs):  # a resumed sequence computes its prompt again
                job.prompt_logprobs[chunk.start :] = records
        return result

    def _may_stop(self, job: Job) -> bool:
        return job.sampled > 0 and job.sampled == len(job.outputs)  # nothing of it is in flight

    def _stop(self, job: Job) -> None:
        """Its row goes at once: the next plan may give it to another sequence. Unless done, it starts again later."""
        assert job.row is not None
        self.ends.append(job.row)
        self.free_rows.insert(0, job.row)
        self.running.remove(job)
        may_keep = job.unfinished is None  # else the first layers of a recurrent state are ahead of the others
        job.row, job.unfinished = None, None
        if not job.is_planned_out and may_keep and self.rng.random() < 0.5:  # it only changes the row
            self.waiting.insert(0, job)
            return
        for users, free, blocks in zip(self.users, self.free, job.blocks, strict=True):
            for block in set(blocks):
                users[block] -= 1
                if not users[block]:
                    free.insert(0, block)
        job.blocks, job.computed = [], 0
        if not job.is_planned_out:
            self.waiting.append(job)

    def _take(self, group: int) -> int:
        block = self.free[group].pop(0)
        self.users[group][block] = 1
        return block

    def _admit(self) -> tuple[list[RowStart], list[BlockCopy]]:
        starts: list[RowStart] = []
        copies: list[BlockCopy] = []
        while self.waiting and self.free_rows and self.rng.random() < 0.8:
            job = self.waiting.pop(0)
            tokens = job.prompt + job.outputs
            job.row, job.known = self.free_rows.pop(0), len(tokens)
            if not job.blocks:
                job.blocks = [[] for _ in self.facts.states]
                twin = next((j for j in self.running if j.prompt == job.prompt and self._has_prompt(j)), None)
                if twin is not None and not job.outputs and self.rng.random() < self.fork_frac:
                    copies += self._fork(job, twin)
            starts.append(
                RowStart(
                    row=job.row,
                    tokens=array("i", tokens),
                    prompt_tokens=len(job.prompt),
                    computed_tokens=job.computed,
                    blocks=tuple(tuple(blocks) for blocks in job.blocks),
                    sampling=job.sampling,
                    seed=job.seed,
                )
            )
            if job.sampled and job.computed == job.known - 1:  # decodes at once, from its last token
                job.known -= 1
            self.running.append(job)
        return starts, copies

    def _has_prompt(self, job: Job) -> bool:
        return all(s.kind is StateKind.PAGED for s in self.facts.states) and job.computed >= len(job.prompt)

    def _fork(self, job: Job, twin: Job) -> list[BlockCopy]:
        """Share the twin's full blocks of the prompt and copy the one that both will write."""
        job.computed = len(job.prompt) - 1
        copies = []
        for group, spec in enumerate(self.facts.states):
            n_shared = job.computed // spec.block_tokens
            for block in twin.blocks[group][:n_shared]:
                self.users[group][block] += 1
            job.blocks[group] = twin.blocks[group][:n_shared]
            if job.computed % spec.block_tokens:
                copies.append(BlockCopy(group, twin.blocks[group][n_shared], self._take(group)))
                job.blocks[group].append(copies[-1].target)
        return copies

    def _chunk(self, job: Job) -> Chunk:
        """The next tokens of a prompt, perhaps up to a layer in the middle; or the rest of such a pass."""
        assert job.row is not None
        last = job.unfinished
        if last is None:
            take = self.rng.randint(1, min(self.max_chunk_tokens, job.known - job.computed))
            start, stop, first_layer = job.computed, job.computed + take, 0
        else:
            assert last.stop_layer is not None
            start, stop, first_layer = last.start, last.stop, last.stop_layer
        stop_layer = None
        if first_layer + 1 < self.facts.n_layers and self.rng.random() < self.layer_cut_frac:
            stop_layer = self.rng.randint(first_layer + 1, self.facts.n_layers - 1)
        chunk = Chunk(row=job.row, start=start, stop=stop, first_layer=first_layer, stop_layer=stop_layer)
        job.unfinished = chunk if stop_layer is not None else None
        return chunk

    def _grow(self, job: Job, tokens: int) -> list[RowBlocks]:
        """Blocks for so many tokens. A window takes the blocks that fell out of it: a ring behind the sinks."""
        assert job.row is not None
        grows = []
        for group, spec in enumerate(self.facts.states):
            blocks, had = job.blocks[group], len(job.blocks[group])
            ring = None
            if spec.kind is StateKind.WINDOWED:
                assert spec.window_tokens is not None
                ring = -(-(spec.window_tokens + self.max_chunk_tokens) // spec.block_tokens) + 1
            while len(blocks) * spec.block_tokens < tokens:
                is_reused = ring is not None and len(blocks) - ring >= -(-spec.sink_tokens // spec.block_tokens)
                blocks.append(blocks[len(blocks) - ring] if is_reused and ring else self._take(group))
            if len(blocks) > had:
                grows.append(RowBlocks(job.row, group, had, tuple(blocks[had:])))
        return grows


def expected_outputs(model, job: Job) -> list[int]:  # type: ignore[no-untyped-def]
    """What the job should put out: decoded alone, the whole sequence again for every token."""
    asked, tokens = job.sampling, list(job.prompt)
    for index in range(job.n_outputs):
        logits_V = model.reference(tokens)[-1]
        token = sample(
            changed(logits_V, asked, job.prompt, tokens[len(job.prompt) :], model.facts).unsqueeze(0),
            torch.tensor([asked.temperature]),
            torch.tensor([asked.top_k]),
            torch.tensor([asked.top_p]),
            torch.tensor([asked.min_p]),
            torch.tensor([job.seed]),
            torch.tensor([index]),
        )
        tokens.append(int(token))
    return tokens[len(job.prompt) :]


def changed(
    logits_V: torch.Tensor, asked: SamplingParams, prompt: Sequence[int], outputs: Sequence[int], facts: ModelFacts
) -> torch.Tensor:
    """The logits that a token is drawn from, by the definitions: one token after the other."""
    logits_V = logits_V.clone()
    if asked.allowed_token_ids is not None:
        logits_V[sorted(set(range(len(logits_V))) - set(asked.allowed_token_ids))] = -torch.inf
    for word in asked.bad_word_ids:
        n_before = len(word) - 1
        if n_before <= len(outputs) and tuple(outputs[len(outputs) - n_before :]) == word[:-1]:
            logits_V[word[-1]] += HELD_BACK
    stops = set(asked.stop_token_ids) | (set() if asked.ignore_eos else facts.stop_token_ids)
    if len(outputs) < asked.min_tokens:
        for token in stops & set(range(len(logits_V))):
            logits_V[token] += HELD_BACK
    for token, bias in asked.logit_bias:
        logits_V[token] += bias
    for token in {*prompt, *outputs}:
        is_positive = logits_V[token] > 0
        factor = torch.tensor(asked.repetition_penalty)
        logits_V[token] = logits_V[token] / factor if is_positive else logits_V[token] * factor
    for token, count in Counter(outputs).items():
        logits_V[token] -= torch.tensor(asked.frequency_penalty) * count
        logits_V[token] -= asked.presence_penalty
    return logits_V

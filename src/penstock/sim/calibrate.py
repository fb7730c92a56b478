"""A step log against the cost model: each step, with what the model says of the same load.

`replay_log.py` builds the engine of a log again and looks at its decisions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from penstock.cost.load import StepLoad, keys_seen
from penstock.cost.model import CostModel
from penstock.engine.step_log import Arrival, Cut, End, Header, Lost, Step, StepLogError, read_step_log


@dataclass(slots=True)
class Log:
    """A log in memory. why_open: why its decisions cannot be replayed; empty: they can."""

    path: Path
    header: Header
    steps: list[Step] = field(default_factory=list)
    events: list[Arrival | Cut] = field(default_factory=list)
    ends: dict[tuple[str, int], End] = field(default_factory=dict)
    why_open: str = ""

    @classmethod
    def read(cls, path: Path) -> Log:
        """Raises StepLogError naming file and line."""
        records = read_step_log(path)
        first = next(records, None)
        if first is None:
            raise StepLogError(f"{path}, line 1: the file is empty; give a file of `penstock serve --step-log`")
        header = first[1]
        assert isinstance(header, Header)
        log = cls(path, header, why_open="" if header.is_whole else "its beginning went to the file before it")
        for number, record in records:
            match record:
                case Step():
                    if log.steps and record.plan <= log.steps[-1].plan:
                        raise StepLogError(
                            f"{path}, line {number}: step {record.plan} comes after step {log.steps[-1].plan}"
                        )
                    log.steps.append(record)
                case Arrival() | Cut():
                    log.events.append(record)
                case End():
                    log.ends[record.id, record.index] = record
                case Lost():
                    log.why_open = f"line {number} says that {record.lines} lines were lost"
        if not log.steps:
            raise StepLogError(f"{path}: no step in it; the engine ended before its first one")
        return log


# --- open -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Difference:
    """A step, and what was expected of it. off_frac: predicted over measured, less 1."""

    step: Step
    predicted_s: float
    is_extrapolated: bool

    @property
    def off_frac(self) -> float:
        return self.predicted_s / self.step.device_s - 1


def kind_of(step: Step) -> str:
    if step.out_blocks or step.in_blocks:
        return "with moves"
    if not step.chunks:
        return "decode"
    return "mixed" if step.decode_rows else "prompts"


def cost_differences(log: Log, cost: CostModel | None) -> list[Difference]:
    """Of all steps that computed something. cost None: what the engine itself predicted, with its corrections.

    Raises StepLogError if it predicted nothing.
    """
    found = []
    for step in log.steps:
        if step.device_s <= 0 or not (step.decode_rows or step.chunks):
            continue
        if cost is not None:
            estimate = cost.step(load_of(log.header, step))
            found.append(Difference(step, estimate.seconds, estimate.is_extrapolated))
        elif step.predicted_s is not None:
            found.append(Difference(step, step.predicted_s, step.is_extrapolated))
    if not found:
        raise StepLogError(
            f"{log.path}: no step says what was predicted, for the engine had no cost model; give --profile"
        )
    return found


def load_of(header: Header, step: Step) -> StepLoad:
    """The load of a logged step."""
    states, n_layers = header.facts.states, header.facts.n_layers
    all_bytes = sum(spec.block_bytes / spec.block_tokens for spec in states)
    keys = pairs = 0.0
    tokens = layers = 0
    for start, stop, first_layer, stop_layer in step.chunks:
        n = stop - start
        tokens += n
        layers += n * ((n_layers if stop_layer is None else stop_layer) - first_layer)
        for spec in states:
            share = spec.block_bytes / spec.block_tokens / all_bytes
            most = None if spec.window_tokens is None else spec.window_tokens + spec.sink_tokens
            keys += share * (stop if most is None else min(stop, n + most - 1))
            pairs += share * keys_seen(start, stop, most)
    return StepLoad(
        decode_rows=step.decode_rows,
        decode_keys=step.decode_keys,
        chunk_tokens=tokens,
        chunk_keys=keys,
        chunk_pairs=pairs,
        samples=step.samples,
        layer_frac=layers / (n_layers * tokens) if tokens else 1.0,
        starts=step.starts,
    )

"""What a captured decode step does beside its layers, on a CPU: its few kernels in Triton's interpreter."""

from __future__ import annotations

import json
from collections import Counter
from random import Random

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from penstock.core.request import SamplingParams
from penstock.models.layers import Layer
from penstock.ops.lazy import has_triton
from penstock.ops.op import Op
from penstock.runtime import graphs
from penstock.runtime.build import build_executor
from penstock.runtime.graphs import Drawing

from .driver import Job
from .real import Rehearsal, assert_alike, run_jobs, shrunk_config, use_triton

WINDOW = {"sliding_window": 12, "use_sliding_window": True}
LAYERS = {
    "full attention": {"num_hidden_layers": 1, "layer_types": ["full_attention"]},  # interpreting is slow
    "two groups": {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], **WINDOW},
    "sinks": {"num_hidden_layers": 1, "layer_types": ["full_attention"]},
}
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="test_graphs.py runs the graphs themselves"),
    pytest.mark.skipif(not has_triton(), reason="needs Triton, which there is for Linux only"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def executor_with(kind, folder):
    (folder / "config.json").write_text(json.dumps(shrunk_config() | LAYERS[kind]))
    options = {"dtype": "float32", "load_format": "dummy", "max_rows": 7, "block_tokens": 4, "kv_memory_bytes": 2**22}
    if kind == "sinks":
        options |= {"window_tokens": 10, "sink_tokens": 3}
    executor = build_executor(folder, **options)
    executor._max_rows = 6  # the last row and the last block become scratch, where there are graphs
    return executor


@pytest.fixture
def use_graphs(monkeypatch):
    """Makes an executor on a CPU run decode steps in the form that is captured, with the kernels for GPUs."""
    use_triton(monkeypatch)
    monkeypatch.setattr(graphs, "Tape", Rehearsal)

    def use(executor):
        step, step._max_rows = executor._step, 6
        step._use_graphs()
        step.tape.is_on, step._mixed = False, None
        return step._graphs

    return use


def jobs_of(rng, n, asked):
    return [
        Job(
            prompt=[rng.randrange(61) for _ in range(rng.randint(1, 9))],
            n_outputs=rng.randint(7, 11),
            sampling=SamplingParams(**(asked if k % 3 else {"temperature": 0.0})),
            seed=rng.randrange(2**63),
        )
        for k in range(n)
    ]


ASKED = {
    Drawing.GREEDY: {"temperature": 0.0},
    Drawing.PLAIN: {"temperature": 0.7},
    Drawing.FILTERED: {"temperature": 0.7, "top_k": 9},
    Drawing.OUTSIDE: {"temperature": 0.7, "logprobs": 2},
}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_few_kernels_of_a_captured_step_give_the_tokens_of_torch(kind, tmp_path, request):
    found = []
    for is_captured in (False, True):
        executor = executor_with(kind, tmp_path)
        captured = request.getfixturevalue("use_graphs")(executor) if is_captured else None
        rng = Random(7)
        outputs = []
        for asked in ASKED.values():
            jobs = jobs_of(rng, 3, asked)
            run_jobs(executor, jobs, rng)
            outputs += [(job.outputs, job.logprobs) for job in jobs]
        found.append(outputs)
        if captured is not None:
            assert {form.drawing for form in captured._seen} == set(ASKED)
            assert {form.size for form in captured._seen} >= {1, 2, 4}  # of 3 rows, with a scratch row behind them
            assert int(captured._rows.positions_R[captured._scratch_row]) == 0
        executor.close()
    assert_alike(*found)


class Launches(TorchDispatchMode):
    """Counts what a GPU would launch: what torch writes, and the ops in Triton, but nothing while it is off."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.is_on = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if self.is_on and isinstance(out, Tensor) and "empty" not in name:
            of_args = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
            if name.endswith("_") or out.untyped_storage().data_ptr() not in of_args:
                self.found[name] += 1
        return out

    def without(self, function, name=None):
        """The function, of which nothing is counted but its name."""

        def call(*args, **kwargs):
            if self.is_on and name is not None:
                self.found[name] += 1
            was, self.is_on = self.is_on, False
            try:
                return function(*args, **kwargs)
            finally:
                self.is_on = was

        return call


@pytest.mark.parametrize(("kind", "expected"), [("full attention", 5), ("two groups", 6)])
def test_a_greedy_step_launches_few_kernels_beside_its_layers_and_its_head(
    kind, expected, tmp_path, use_graphs, monkeypatch
):
    executor = executor_with(kind, tmp_path)
    captured, launches, counts = use_graphs(executor), Launches(), []
    monkeypatch.setattr(Layer, "__call__", launches.without(Layer.__call__))
    object.__setattr__(captured._model, "logits_to_draw", launches.without(captured._model.logits_to_draw))
    call, body = Op.__call__, captured._body
    monkeypatch.setattr(Op, "__call__", lambda op, *args: launches.without(call, op.name)(op, *args))

    def counted(*args):
        launches.found.clear()
        with launches:
            found = body(*args)
        counts.append(dict(launches.found))
        return found

    monkeypatch.setattr(captured, "_body", counted)
    run_jobs(executor, [Job(prompt=[1, 2, 3], n_outputs=4, sampling=SamplingParams(temperature=0.0))], Random(1))
    executor.close()
    assert counts
    assert {sum(count.values()) for count in counts} == {expected}, counts[-1]

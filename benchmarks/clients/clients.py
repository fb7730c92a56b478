"""The clients: what to install, which commands to run, and where each says how its requests went.

To add one, add a row to CLIENTS.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

OFFLINE = {"HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One command; `{url} {model} {model_path} {out}` are filled in. It runs in the root of the repository."""

    name: str
    command: str
    problems: Callable[[Path], list[str]]  # reads what the client wrote into its folder
    environment: Mapping[str, str | None] = field(default_factory=lambda: OFFLINE)  # None: unset


@dataclass(frozen=True, slots=True)
class Client:
    requirement: str
    cases: tuple[Case, ...]


def lm_eval_problems(*tasks: str) -> Callable[[Path], list[str]]:
    """Every task must have scored all its items."""

    def problems(out_path: Path) -> list[str]:
        written = read_one(out_path, "results_*.json")
        scored = {name: counts["effective"] for name, counts in written["n-samples"].items()}
        expected = dict.fromkeys(tasks, 20)
        return [] if scored == expected else [f"it scored {scored}, expected {expected}"]

    return problems


def guidellm_problems(n_requests: int) -> Callable[[Path], list[str]]:
    """All requests successful, none errored or left incomplete."""

    def problems(out_path: Path) -> list[str]:
        (benchmark,) = read_one(out_path, "benchmarks.json")["benchmarks"]
        totals = benchmark["metrics"]["request_totals"]
        expected = {"successful": n_requests, "errored": 0, "incomplete": 0, "total": n_requests}
        return [] if totals == expected else [f"its requests: {totals}, expected {expected}"]

    return problems


def aiperf_problems(n_requests: int) -> Callable[[Path], list[str]]:
    """AIPerf leaves a figure out where it has none, so no `error_request_count` is none failed."""

    def problems(out_path: Path) -> list[str]:
        written = read_one(out_path, "profile_export_aiperf.json")
        n_ok, n_errors = (written.get(name, {"avg": 0})["avg"] for name in ("request_count", "error_request_count"))
        if (n_ok, n_errors) == (n_requests, 0):
            return []
        return [f"{n_ok:g} requests ended well and {n_errors:g} in an error, expected {n_requests} and 0"]

    return problems


def read_one(out_path: Path, pattern: str) -> dict:
    """The newest file of that name below a folder."""
    found = sorted(out_path.rglob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"the client ended with exit code 0 but wrote no {pattern} below {out_path}")
    return json.loads(found[-1].read_text())


LM_EVAL = "lm-eval run --include_path benchmarks/clients/tasks --output_path {out}"
GUIDELLM = (
    "guidellm run --disable-progress --tokenizer kind=hf_auto,model={model_path}"
    " --constraint kind=max_duration,seconds=300 --output kind=json,path={out}/benchmarks.json"
)
# With HF_HUB_OFFLINE set, to whatever, it takes a local directory for the name of a repository and stops; `--tokenizer
# builtin` wants a download. With a local directory and the variable unset it asks the network for nothing.
NOT_OFFLINE = {"HF_HUB_OFFLINE": None, "TRANSFORMERS_OFFLINE": None}
AIPERF = (
    "aiperf profile --model {model} --url {url} --streaming --tokenizer {model_path} --ui none --artifact-dir {out}"
    " --synthetic-input-tokens-mean 64 --output-tokens-mean 32 --extra-inputs ignore_eos:true --use-server-token-count"
)

CLIENTS: Mapping[str, Client] = {
    "lm-eval": Client(
        "lm-eval[api]==0.4.13",
        (
            Case(
                name="lm-eval-completions",
                command=LM_EVAL + " --model local-completions --batch_size 4"
                " --model_args model={model},base_url={url}/v1/completions,num_concurrent=4"
                " --tasks python_facts_choice,python_facts_generate,python_facts_rolling",
                problems=lm_eval_problems("python_facts_choice", "python_facts_generate", "python_facts_rolling"),
            ),
            Case(
                name="lm-eval-chat",
                command=LM_EVAL + " --model local-chat-completions --apply_chat_template"
                " --model_args model={model},base_url={url}/v1/chat/completions,num_concurrent=4"
                " --tasks python_facts_generate",
                problems=lm_eval_problems("python_facts_generate"),
            ),
        ),
    ),
    "guidellm": Client(
        "guidellm==0.8.1",
        (
            Case(
                name="guidellm-chat",
                command=GUIDELLM + " --backend kind=openai_http,target={url} --profile kind=concurrent,streams=8"
                " --data kind=synthetic_text,prompt_tokens=128,output_tokens=32"
                " --constraint kind=max_requests,count=100",
                problems=guidellm_problems(100),
            ),
            Case(
                name="guidellm-completions",
                command=GUIDELLM + " --backend kind=openai_http,target={url},request_format=/v1/completions"
                " --profile kind=poisson,rate=4 --data kind=synthetic_text,prompt_tokens=64,output_tokens=32"
                " --constraint kind=max_requests,count=50",
                problems=guidellm_problems(50),
            ),
        ),
    ),
    "aiperf": Client(
        "aiperf==0.13.0",
        (
            Case(
                name="aiperf-chat",
                command=AIPERF + " --endpoint-type chat --concurrency 8 --request-count 60",
                problems=aiperf_problems(60),
                environment=NOT_OFFLINE,
            ),
            Case(
                name="aiperf-completions",
                command=AIPERF + " --endpoint-type completions --request-rate 4 --request-count 30",
                problems=aiperf_problems(30),
                environment=NOT_OFFLINE,
            ),
        ),
    ),
}
BY_DEFAULT = ("lm-eval", "guidellm")

"""How good the model is: loss on held-out files, and how often what it completes is Python."""

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penstock.train.pack import Pool

if TYPE_CHECKING:
    from torch import Tensor

CLASSIC_HEADS = (
    "def quicksort(", "def fibonacci(", "def binary_search(", "def is_prime(", "def factorial(", "def gcd(",
    "def bubble_sort(", "def merge_sort(", "def reverse_string(", "def is_palindrome(", "def count_vowels(",
    "def flatten(", "def dijkstra(", "def two_sum(", "def main(", "def read_file(", "def add(", "def parse_args(",
    "def mean(", "class Stack:", "class Point:", "def is_even(", "def levenshtein(", "def insertion_sort(",
)  # fmt: skip
QUESTIONS = (
    "Who are you?",
    "What does textwrap.dedent do?",
    "Write a function that reverses a string.",
    "How do I read a file?",
)
LONGEST_COMPLETION_TOKENS = 400


@dataclass(frozen=True, slots=True)
class Loss:
    nats_per_token: float
    bits_per_byte: float


def held_out_loss(model: Any, pool: Pool, n_bytes: int, window_tokens: int, batch_windows: int = 16) -> Loss:
    """Mean loss over a pool cut into windows; a window's first token is given, not predicted."""
    import torch
    from torch.nn.functional import cross_entropy

    device = next(model.parameters()).device
    tokens = torch.from_numpy(pool.tokens.astype("int64"))
    n_windows = len(tokens) // window_tokens
    windows: Any = tokens[: n_windows * window_tokens].view(n_windows, window_tokens)
    nats = n_predicted = 0.0
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        for batch in windows.split(batch_windows):
            rows = batch.to(device)
            loss = cross_entropy(logits_of(model, rows[:, :-1]).flatten(0, 1).float(), rows[:, 1:].flatten())
            n_batch = rows[:, 1:].numel()
            nats += loss.item() * n_batch
            n_predicted += n_batch
    nats_per_token = nats / n_predicted
    return Loss(nats_per_token, nats_per_token * len(tokens) / n_bytes / math.log(2))


def logits_of(model: Any, tokens: "Tensor") -> Any:
    """Logits of whole windows. No mask is built: plain causal attention takes the fast kernel."""
    hidden = model.model(input_ids=tokens, attention_mask={"full_attention": None}, use_cache=False).last_hidden_state
    return model.lm_head(hidden)


def first_definition(text: str) -> str:
    """Cut a completion before its second top-level statement."""
    lines = text.split("\n")
    kept = lines[:1]
    for line in lines[1:]:
        if line and not line[0].isspace() and line[0] not in ")]}":
            break
        kept.append(line)
    return "\n".join(kept).rstrip() + "\n"


def is_python(text: str) -> bool:
    """Whether the first definition of a completion parses."""
    try:
        ast.parse(first_definition(text))
    except (SyntaxError, ValueError):
        return False
    return True


def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    temperature: float = 0.0,
    samples: int = 1,
    max_new_tokens: int = LONGEST_COMPLETION_TOKENS,
) -> list[str]:
    """Complete prompts, greedily at temperature 0. Returns prompt and completion, `samples` of them per prompt."""
    import torch

    batch = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left").to(model.device)
    how: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_p": 0.95, "top_k": 0} if temperature else {}
    )
    if not temperature:
        how = {"do_sample": False, "temperature": None, "top_p": None}
    with torch.no_grad():
        rows = model.generate(**batch, **how, num_return_sequences=samples, max_new_tokens=max_new_tokens)
    n_prompt = batch["input_ids"].shape[1]
    answers = tokenizer.batch_decode(rows[:, n_prompt:], skip_special_tokens=True)
    return [prompts[i // samples] + answer for i, answer in enumerate(answers)]


def parse_rate(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, temperature: float = 0.0, samples: int = 1
) -> float:
    """The share of completions whose first definition parses."""
    texts = complete(model, tokenizer, prompts, temperature=temperature, samples=samples)
    return sum(is_python(text) for text in texts) / len(texts)


def answer(model: Any, tokenizer: Any, question: str, **how: Any) -> str:
    """The reply to one question, through the chat template."""
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return complete(model, tokenizer, [prompt], **how)[0][len(prompt) :]

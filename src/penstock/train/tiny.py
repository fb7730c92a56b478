"""Train `penstock-tiny`: `python -m penstock.train.tiny --out DIR [--device cuda] [--minutes 8]`.

The corpus is small and read dozens of times, so the danger is learning it by heart. Against it stand dropout, a strong
weight decay, generated variants instead of copies, and the held-out loss, which picks the checkpoint that is kept.
"""

import argparse
import math
import platform
import shutil
import sysconfig
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.bundled import TINY
from penstock.train import pack
from penstock.train.card import Report, write_card
from penstock.train.evaluate import (
    CLASSIC_HEADS,
    QUESTIONS,
    Loss,
    answer,
    complete,
    first_definition,
    held_out_loss,
    logits_of,
    parse_rate,
)
from penstock.train.model import make_config, save_model
from penstock.train.tokenizer import CONTEXT_TOKENS

if TYPE_CHECKING:
    from torch import Tensor

SHARES = {"library": 0.20, "library, other cuts": 0.10, "tests": 0.25, "lessons": 0.17, "chats": 0.28}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a training run may spend and how it learns."""

    minutes: float = 8.0  # of training, after compilation
    max_steps: int | None = None
    windows: int = 64  # per step
    window_tokens: int = CONTEXT_TOKENS
    learning_rate: float = 3e-3
    final_rate_frac: float = 0.02
    warmup_frac: float = 0.02
    weight_decay: float = 0.3
    dropout: float = 0.1
    clip_norm: float = 1.0
    evaluations: int = 20
    seed: int = 0
    is_compiled: bool = True
    shape: Mapping[str, int] = field(default_factory=dict)  # sizes other than penstock-tiny's, for tests


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What came out of a training run."""

    model: Any  # with the weights of the best evaluation
    steps: int
    best_step: int
    seconds: float
    losses: tuple[float, ...]  # training, at each evaluation
    held_out: tuple[Loss, ...]


class Feed:
    """Draws windows: a pool by its share, then a place in it; every other window starts where a text does."""

    def __init__(self, pools: Mapping[str, pack.Pool], shares: Mapping[str, float], seed: int, device: str) -> None:
        import torch

        self._torch = torch
        self._generator = torch.Generator().manual_seed(seed)
        self._names = [name for name in shares if name in pools]
        self._weights = torch.tensor([shares[name] for name in self._names])
        self._tokens = [torch.from_numpy(pools[name].tokens.astype("int64")) for name in self._names]
        self._starts = [torch.from_numpy(pools[name].starts) for name in self._names]
        self._offsets = [sum(len(row) for row in self._tokens[:i]) for i in range(len(self._tokens))]
        self._row = torch.cat(self._tokens).to(device)
        self._device = device

    def draw(self, windows: int, length: int) -> "Tensor":
        """Windows of `length` tokens, [windows, length]."""
        torch, generator = self._torch, self._generator
        pools = torch.multinomial(self._weights, windows, replacement=True, generator=generator).tolist()
        luck = torch.rand(windows, 2, generator=generator, dtype=torch.float64).tolist()
        places = []
        for i, (pool, (where, how)) in enumerate(zip(pools, luck, strict=True)):
            last = len(self._tokens[pool]) - length
            starts = self._starts[pool]
            place = int(starts[int(where * len(starts))]) if i % 2 else int(how * last)
            places.append(self._offsets[pool] + min(place, last))
        first = torch.tensor(places).to(self._device, non_blocking=True)
        return self._row[first[:, None] + torch.arange(length, device=self._device)]


def make_model(recipe: Recipe, device: str) -> Any:
    """A fresh model with dropout on what each block adds to the residual stream."""
    import torch
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(recipe.seed)
    model: Any = Qwen3ForCausalLM(make_config(**recipe.shape))
    model = model.float().to(device)
    model.model.embed_tokens.padding_idx = None  # <|endoftext|> also separates, so it has to learn

    def drop(module: Any, inputs: Any, output: "Tensor") -> "Tensor":
        return torch.nn.functional.dropout(output, recipe.dropout, module.training)

    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.down_proj.register_forward_hook(drop)
    return model


def make_optimizer(model: Any, recipe: Recipe) -> Any:
    """AdamW; the weights of norms do not decay."""
    import torch

    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def rate(progress: float, recipe: Recipe) -> float:
    """The learning rate: a short ramp, then half a cosine down to its last share."""
    if progress < recipe.warmup_frac:
        return recipe.learning_rate * (progress + 1e-3) / (recipe.warmup_frac + 1e-3)
    done = min(1.0, (progress - recipe.warmup_frac) / (1 - recipe.warmup_frac))
    cosine = (1 + math.cos(math.pi * done)) / 2
    return recipe.learning_rate * (recipe.final_rate_frac + (1 - recipe.final_rate_frac) * cosine)


def train(
    corpus: pack.Corpus, recipe: Recipe, device: str, clock: Callable[[], float], say: Callable[[str], None]
) -> Run:
    """Train until the time or the steps are spent; keep the weights of the lowest held-out loss."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_float32_matmul_precision("high")
    model = make_model(recipe, device)
    optimizer = make_optimizer(model, recipe)
    feed = Feed(corpus.pools, SHARES, recipe.seed, device)

    def loss_of(tokens: "Tensor") -> Any:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            logits = logits_of(model, tokens[:, :-1])
        return cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    if recipe.is_compiled:
        loss_of = torch.compile(loss_of)
    loss_of(feed.draw(recipe.windows, recipe.window_tokens + 1)).backward()  # compiles, before the clock starts
    optimizer.zero_grad()
    best: dict[str, Tensor] = {}
    losses: list[float] = []
    held_out: list[Loss] = []
    start_s = clock()
    step, best_step, progress = 0, 0, 0.0
    while progress < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = rate(progress, recipe)
        loss = loss_of(feed.draw(recipe.windows, recipe.window_tokens + 1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        progress = max(
            (clock() - start_s) / (60 * recipe.minutes), step / recipe.max_steps if recipe.max_steps else 0.0
        )
        if progress >= min(1.0, (len(held_out) + 1) / recipe.evaluations):
            model.eval()
            losses.append(loss.item())
            held_out.append(held_out_loss(model, corpus.held_out, corpus.held_out_bytes, recipe.window_tokens))
            model.train()
            if held_out[-1].nats_per_token == min(loss.nats_per_token for loss in held_out):
                best_step = step
                best = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
            say(
                f"step {step}, {clock() - start_s:.0f} s: loss {losses[-1]:.3f}, held out "
                f"{held_out[-1].nats_per_token:.4f} nats/token, {held_out[-1].bits_per_byte:.4f} bits/byte"
            )
    seconds = clock() - start_s
    model.load_state_dict(best)
    return Run(
        model=model.eval(),
        steps=step,
        best_step=best_step,
        seconds=seconds,
        losses=tuple(losses),
        held_out=tuple(held_out),
    )


def judge(folder: Path, corpus: pack.Corpus, recipe: Recipe, run: Run, device: str) -> Report:
    """Measure the saved model as its users load it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(recipe.seed)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model = model.to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    unseen = corpus.held_out_heads
    rates = {
        "classic, greedy": parse_rate(model, tokenizer, CLASSIC_HEADS),
        "classic, temperature 0.6": parse_rate(model, tokenizer, CLASSIC_HEADS, temperature=0.6, samples=8),
        "from held-out files, greedy": parse_rate(model, tokenizer, unseen),
        "from held-out files, temperature 0.6": parse_rate(model, tokenizer, unseen, temperature=0.6, samples=8),
    }
    samples = [first_definition(text) for text in complete(model, tokenizer, CLASSIC_HEADS[:4])]
    samples += [first_definition(text) for text in complete(model, tokenizer, CLASSIC_HEADS[:1], temperature=0.6)]
    return Report(
        loss=held_out_loss(model, corpus.held_out, corpus.held_out_bytes, recipe.window_tokens),
        parse_rates=rates,
        samples=tuple(samples),
        chats=tuple((question, answer(model, tokenizer, question)) for question in QUESTIONS),
        n_heads=len(unseen),
        n_parameters=sum(weight.numel() for weight in model.parameters()),
        steps=run.steps,
        best_step=run.best_step,
        step_tokens=recipe.windows * recipe.window_tokens,
        seconds=run.seconds,
        evaluations=len(run.held_out),
        seed=recipe.seed,
        minutes=recipe.minutes,
        context_tokens=recipe.window_tokens,
        device=torch.cuda.get_device_name() if device == "cuda" else platform.processor() or device,
        facts=corpus.facts,
        tokens={name: len(pool.tokens) for name, pool in corpus.pools.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train penstock-tiny and write it as a Hugging Face folder.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training, after compilation")
    parser.add_argument("--steps", type=int, default=None, help="stop after so many steps, if that comes first")
    parser.add_argument("--windows", type=int, default=64, help="windows in a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument(
        "--pools", type=Path, help="a file of penstock.train.pack; without it the pools are built first"
    )
    parser.add_argument("--stdlib", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    parser.add_argument("--tokenizer", type=Path, default=TINY, help="folder with tokenizer.json")
    args = parser.parse_args()
    recipe = Recipe(
        minutes=args.minutes,
        max_steps=args.steps,
        windows=args.windows,
        seed=args.seed,
        is_compiled=not args.no_compile,
    )
    corpus = pack.load(args.pools) if args.pools else pack.build(args.stdlib, args.tokenizer, seed=args.seed)
    run = train(corpus, recipe, args.device, time.monotonic, lambda line: print(line, flush=True))
    save_model(run.model, args.out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(args.tokenizer / name, args.out / name)
    report = judge(args.out, corpus, recipe, run, args.device)
    write_card(report, args.out)
    print((args.out / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

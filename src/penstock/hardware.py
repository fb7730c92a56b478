"""From names to what a simulated instance runs on: a model's facts as the engine knows them, a device, a cost model."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass, replace
from pathlib import Path

from penstock.bench.shapes import SHAPES, folder_of
from penstock.core.errors import ConfigError, UnknownName
from penstock.core.executor import ModelFacts
from penstock.cost.devices import DEVICES, device_of
from penstock.cost.model import CostModel, Roofline, Work
from penstock.cost.profile import Fitted, read_profile
from penstock.cost.shape import ModelShape
from penstock.cost.shipped import shipped_profile
from penstock.models.facts import key_costs, model_facts
from penstock.models.families.family import WeightNames
from penstock.models.parameters import parameters_of
from penstock.models.read_spec import ITEM_BYTES, read_model_spec
from penstock.models.rounded import QUANTIZATIONS, bytes_by_rows
from penstock.models.spec import ExpertsSpec, ModelSpec
from penstock.models.streaming import with_sinks
from penstock.options import BUNDLED
from penstock.runtime.build import STREAM_TOKENS
from penstock.runtime.memory_plan import default_kv_bytes, plan_memory, useful_kv_bytes, with_host_tier
from penstock.sim.executor import STOP_TOKEN
from penstock.sim.instance import Hardware

ENDLESS_BYTES = 2**60  # of host memory: what a simulated host has is not bounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A model by its description: no weight was read. quantize: how its weights are rounded."""

    name: str
    spec: ModelSpec
    quantize: str = "none"

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.spec.dtype]

    def shape(self) -> ModelShape:
        """Sums over all parameters."""
        spec = self.spec
        parameters = list(parameters_of(spec, WeightNames()))
        head = spec.vocab_size * spec.hidden_size
        experts = sum(p.elements for p in parameters if len(p.shape) == 3)
        dense = sum(p.elements for p in parameters if len(p.shape) != 3 and (p.name != "embed" or spec.is_tied))
        mlps = [layer.mlp for layer in spec.layers if isinstance(layer.mlp, ExpertsSpec)]
        sizes = {p.name: bytes_by_rows(p, self.quantize, self.item_bytes) for p in parameters}
        expert_bytes = sum(sizes[p.name] for p in parameters if len(p.shape) == 3)
        embedding_bytes = 0 if spec.is_tied else sizes["embed"]
        n_experts, top_k = (mlps[0].n_experts, mlps[0].top_k) if mlps else (0, 0)
        return ModelShape(
            name=self.name,
            weight_bytes=sum(sizes.values()),
            dense_bytes=sum(sizes.values()) - expert_bytes - embedding_bytes,
            expert_bytes=expert_bytes,
            head_bytes=sizes["embed" if spec.is_tied else "head"],
            active_weights=dense - head + (experts * top_k // n_experts if n_experts else 0),
            head_weights=head,
            n_experts=n_experts,
            top_k=top_k,
            kv_token_bytes=self.item_bytes * sum(numbers for _, _, numbers in key_costs(spec)),
            key_flops=sum(flops for _, flops, _ in key_costs(spec)),
        )

    def facts(self, block_tokens: int, max_model_tokens: int | None = None) -> ModelFacts:
        """As the engine has them, but for the token that ends an answer."""
        shape = self.shape()
        facts = model_facts(
            self.spec,
            self.name,
            block_tokens=block_tokens,
            kv_item_bytes=self.item_bytes,
            weight_bytes=shape.weight_bytes,
            max_model_tokens=max_model_tokens,
        )
        return replace(facts, stop_token_ids=frozenset({STOP_TOKEN}))


def described(model: str, quantize: str = "none") -> Described:
    """A shape that is known by name, a bundled model, or a Hugging Face directory or GGUF file. Raises ModelError."""
    if quantize not in QUANTIZATIONS:
        raise UnknownName("quantization", quantize, QUANTIZATIONS)
    if model in SHAPES:
        with folder_of(model) as folder:
            return Described(name=model, spec=read_model_spec(folder), quantize=quantize)
    path = BUNDLED.get(model, Path(model).expanduser())
    return Described(name=path.resolve().name, spec=read_model_spec(path), quantize=quantize)


def hardware_of(
    model: Described,
    device_name: str,
    *,
    max_rows: int = 256,
    block_tokens: int = 16,
    kv_bytes: int | None = None,
    host_kv_bytes: int = 0,
    max_model_tokens: int | None = None,
    sink_tokens: int = 0,
    window_tokens: int | None = None,
    profile: Path | None = None,
) -> Hardware:
    """A model on a device, with its memory divided as the engine divides it. profile: what steps take; None: the one
    that ships, else an analytical estimate.

    Raises ConfigError if the model does not fit the device, or for a wrong profile; UnknownName.
    """
    if window_tokens is not None:
        model = replace(model, spec=with_sinks(model.spec, sink_tokens, window_tokens))
        max_model_tokens = STREAM_TOKENS if max_model_tokens is None else max_model_tokens
    device, shape = device_of(device_name), model.shape()
    facts = model.facts(block_tokens, max_model_tokens)
    is_as_shipped = model.quantize == "none"  # what ships was measured with weights as checkpoints have them
    cost = measured_cost(model.name, device.name, profile) if is_as_shipped or profile is not None else None
    free_bytes = device.memory_bytes - shape.weight_bytes
    if free_bytes <= 0:
        raise ConfigError(
            f"{model.name} does not fit on one {device.name}: weights take {shape.weight_bytes / 2**30:.1f} of "
            f"{device.memory_bytes / 2**30:.0f} GiB; choose a larger device or a smaller model"
        )
    useful_bytes = useful_kv_bytes(facts, max_rows)
    plan = plan_memory(
        facts,
        free_bytes=free_bytes,
        default_kv_bytes=default_kv_bytes(free_bytes, is_cpu=device.name == "cpu", useful_bytes=useful_bytes),
        kv_bytes=kv_bytes,
        max_rows=max_rows,
    )
    plan = with_host_tier(plan, host_kv_bytes, ENDLESS_BYTES)
    return Hardware(
        facts=facts,
        device=device,
        cost=cost or Roofline(work=Work.of(shape, device), band_frac=device.band_frac),
        known_cost=cost,
        max_rows=max_rows,
        n_blocks=plan.n_blocks,
        n_host_blocks=plan.n_host_blocks,
    )


def measured_cost(model: str, device: str, profile: Path | None) -> CostModel | None:
    """Of a profile that was given, or of the one that ships; None if nobody measured this model on this device.

    Raises ConfigError if the profile cannot be read, or is of another model.
    """
    found = shipped_profile(model, device) if profile is None else read_profile(profile)
    if found is None:
        return None
    if found.model != model:
        raise ConfigError(f"{profile} was measured on {found.model}, not on {model}; give --model {found.model}")
    link = DEVICES[found.device] if found.device in DEVICES else DEVICES["cpu"]
    return Fitted(found, link.host_bytes_per_s)


def device_of_profile(path: Path) -> str:
    """The device that a profile was measured on, if the simulator has it by name. Raises ConfigError."""
    device = read_profile(path).device
    if device not in DEVICES:
        raise ConfigError(f"{path} was measured on {device}, which is none of {', '.join(DEVICES)}; give --device")
    return device


def device_names(device: str) -> tuple[str, str]:
    """(the name that `--device` of the simulator has for what computes here, what it calls itself)."""
    import torch

    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        hardware = torch.cuda.get_device_name()
        plain = re.sub(r"[^a-z0-9]", "", hardware.lower())
        return next((name for name in DEVICES if name in plain), plain), hardware
    return "cpu", f"{_processor()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()

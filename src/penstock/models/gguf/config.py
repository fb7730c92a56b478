"""GGUF metadata in the terms of config.json, so that the families read it as they read everything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy

from penstock.core.errors import CorruptModel, UnsupportedModel
from penstock.formats.gguf import GgufFile
from penstock.formats.gguf_vocab import GgufVocab
from penstock.models.config_file import ConfigFile, short
from penstock.models.families import family_of
from penstock.models.families.family import WeightNames
from penstock.models.gguf.dequantize import dequantize
from penstock.models.spec import FactorScaling, ModelSpec

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
}
NAMES = WeightNames(
    embed="token_embd",
    final_norm="output_norm",
    head="output",
    input_norm="blk.{layer}.attn_norm",
    qkv=("blk.{layer}.attn_q", "blk.{layer}.attn_k", "blk.{layer}.attn_v"),
    q_norm="blk.{layer}.attn_q_norm",
    k_norm="blk.{layer}.attn_k_norm",
    attention_out="blk.{layer}.attn_output",
    mlp_norm="blk.{layer}.ffn_norm",
    gate_up=("blk.{layer}.ffn_gate", "blk.{layer}.ffn_up"),
    down="blk.{layer}.ffn_down",
    router="blk.{layer}.ffn_gate_inp",
    expert_gate_up=("blk.{layer}.ffn_gate_exps.{expert}", "blk.{layer}.ffn_up_exps.{expert}"),
    expert_down="blk.{layer}.ffn_down_exps.{expert}",
    ignored=("rope_freqs.weight",),
)
WITH_EXPERTS = ("llama", "qwen3moe")
MIXTRAL, EXPERTS = "MixtralForCausalLM", "llama.expert_count"
ROPE_FREQS = "rope_freqs.weight"
EMBED = "token_embd.weight"
# Quantized weights name no dtype to compute in. bfloat16 has the range that every supported model was trained with.
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
DTYPE_OF_QUANTIZED = "bfloat16"


def read_gguf_spec(file: GgufFile) -> ModelSpec:
    """What the model is. Raises CorruptModel or UnsupportedModel."""
    metadata = ConfigFile(file.metadata, str(file.path))
    arch = metadata.text("general.architecture")
    if arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedModel(f"{file.path}: general.architecture is {short(arch)}; supported: {known}")
    values = _translate(file, metadata, arch)
    config = ConfigFile(values, f"{file.path}, its metadata in the terms of config.json")
    architecture, family = family_of(config)
    return _with_rope_factors(family.read_config(config, architecture), file)


def paired_heads(file: GgufFile, spec: ModelSpec) -> dict[str, int]:
    """The projections whose rows llama.cpp keeps as rotating pairs: those of the architecture `llama` only."""
    if file.metadata["general.architecture"] != "llama":
        return {}
    attention = spec.layers[0].attention
    heads = {"q": attention.q_heads, "k": attention.kv_heads}
    return {f".attn_{which}.{kind}": n for which, n in heads.items() for kind in ("weight", "bias")}


def _translate(file: GgufFile, metadata: ConfigFile, arch: str) -> dict[str, Any]:
    embed = file.tensors.get(EMBED)
    if embed is None or len(embed.shape) != 2:
        raise CorruptModel(f"{file.path}: there is no matrix {EMBED}")
    values = {
        "architectures": [MIXTRAL if arch == "llama" and metadata.values.get(EXPERTS) else ARCHITECTURES[arch]],
        "vocab_size": embed.shape[0],
        "hidden_size": metadata.integer(f"{arch}.embedding_length"),
        "num_hidden_layers": metadata.integer(f"{arch}.block_count"),
        "max_position_embeddings": metadata.integer(f"{arch}.context_length"),
        "rms_norm_eps": metadata.number(f"{arch}.attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "eos_token_id": list(GgufVocab.of(file).end_ids),
        "torch_dtype": _dtype(file),
        "intermediate_size": _same_in_all_layers(metadata, f"{arch}.feed_forward_length"),
    }
    values |= _heads(metadata, arch, values["hidden_size"])
    values |= _rope(metadata, arch, values["head_dim"])
    return values | _experts(metadata, arch)


def _dtype(file: GgufFile) -> str:
    """That of most of the weights: norms and routers are float32 in every file."""
    n_bytes: Counter[str] = Counter()
    for record in file.tensors.values():
        n_bytes[record.type] += record.stop - record.start
    ((most, _),) = n_bytes.most_common(1)
    return DTYPES.get(most, DTYPE_OF_QUANTIZED)


def _heads(metadata: ConfigFile, arch: str, hidden_size: int) -> dict[str, Any]:
    q_heads = _same_in_all_layers(metadata, f"{arch}.attention.head_count")
    kv_heads = _same_in_all_layers(metadata, f"{arch}.attention.head_count_kv", default=q_heads)
    key_length = metadata.integer(f"{arch}.attention.key_length", default=max(1, hidden_size // q_heads))
    metadata.require(f"{arch}.attention.value_length", key_length, default=key_length)
    return {"num_attention_heads": q_heads, "num_key_value_heads": kv_heads, "head_dim": key_length}


def _same_in_all_layers(metadata: ConfigFile, key: str, default: int | None = None) -> int:
    """A number, or a list with one for each layer that are all the same."""
    value = metadata.values.get(key)
    if isinstance(value, list):
        if not value or any(item != value[0] for item in value):
            raise UnsupportedModel(f"{metadata.source}: {key} differs between layers: {short(value)}")
        metadata = ConfigFile({key: value[0]}, metadata.source)
    found: int = metadata.integer(key) if default is None else metadata.integer(key, default=default)
    return found


def _rope(metadata: ConfigFile, arch: str, head_dim: int) -> dict[str, Any]:
    rotated = metadata.integer(f"{arch}.rope.dimension_count", default=head_dim)
    values = {
        "rope_theta": metadata.number(f"{arch}.rope.freq_base", 10000.0),
        "partial_rotary_factor": rotated / head_dim,
    }
    scaling = f"{arch}.rope.scaling"
    kind = metadata.text(f"{scaling}.type", default="none")
    factor = metadata.number(f"{scaling}.factor", None) or metadata.number(f"{arch}.rope.scale_linear", None)
    if kind not in ("none", "linear", "yarn"):  # longrope keeps its factors in tensors, which nobody reads yet
        raise UnsupportedModel(f"{metadata.source}: rope_type is {short(kind)}; supported: none, linear, yarn")
    if kind == "none" or factor is None:  # llama.cpp writes 0 or nothing for "as it is"
        return values
    section = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        for key in ("ext_factor", "attn_factor"):
            metadata.require(f"{scaling}.yarn_{key}", 1.0, default=1.0)
        metadata.require(f"{scaling}.yarn_log_multiplier", 0.0, default=0.0)
        for ours, theirs in YARN.items():
            section[ours] = metadata.values.get(f"{scaling}.{theirs}")
    return values | {"rope_scaling": section}


YARN: Mapping[str, str] = {
    "original_max_position_embeddings": "original_context_length",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}


def _experts(metadata: ConfigFile, arch: str) -> dict[str, Any]:
    n_experts = metadata.values.get(f"{arch}.expert_count") or None
    if n_experts is None:
        return {}
    if arch not in WITH_EXPERTS:
        known = ", ".join(WITH_EXPERTS)
        raise UnsupportedModel(f"{metadata.source}: {arch} with {short(n_experts)} experts; supported: {known}")
    return {
        "num_experts": n_experts,
        "num_experts_per_tok": metadata.integer(f"{arch}.expert_used_count"),
        "moe_intermediate_size": metadata.values.get(f"{arch}.expert_feed_forward_length"),
        "norm_topk_prob": metadata.flag(f"{arch}.expert_weights_norm", True),  # llama.cpp never does otherwise
    }


def _with_rope_factors(spec: ModelSpec, file: GgufFile) -> ModelSpec:
    """llama.cpp keeps the scaling of Llama 3.1 as a divisor for each frequency instead of its parameters."""
    record = file.tensors.get(ROPE_FREQS)
    rope = spec.layers[0].attention.rope
    if record is None or rope is None:
        return spec
    if record.type != "F32" or record.shape != (rope.dim // 2,):
        raise CorruptModel(
            f"{file.path}: {ROPE_FREQS} is {record.type} {list(record.shape)}, not F32 [{rope.dim // 2}]"
        )
    data = numpy.frombuffer(file.map, numpy.uint8, record.stop - record.start, record.start)
    factors = tuple(map(float, dequantize("F32", data.reshape(-1, 4)).ravel()))
    if not all(0 < factor < float("inf") for factor in factors):
        raise CorruptModel(f"{file.path}: {ROPE_FREQS} holds {short(min(factors))}, expected positive numbers")
    scaled = replace(rope, scaling=FactorScaling(factors))
    layers = tuple(replace(layer, attention=replace(layer.attention, rope=scaled)) for layer in spec.layers)
    return replace(spec, layers=layers)

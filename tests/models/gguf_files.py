"""Writing GGUF files as llama.cpp's converter does: the `gguf` package names the tensors and packs the blocks."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import gguf
import numpy
import tokenizers
import torch
from gguf import GGMLQuantizationType as Type
from transformers import PreTrainedModel

ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "MixtralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
    "Qwen3MoeForCausalLM": gguf.MODEL_ARCH.QWEN3MOE,
}


def write_gguf(
    model: PreTrainedModel,
    path: Path,
    type_name: str = "F32",
    metadata: dict[str, Any] | None = None,
    extra: dict[str, numpy.ndarray] | None = None,
) -> Path:
    """A model of transformers as one file. metadata: further keys, or other values. extra: further tensors."""
    config = model.config
    arch = ARCHITECTURES[type(model).__name__]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    add_config(writer, config, metadata or {})
    for name, tensor in tensors_of(model, arch).items():
        add_tensor(writer, name, tensor, type_name)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_config(writer: gguf.GGUFWriter, config: Any, metadata: dict[str, Any]) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    n_experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    if n_experts:
        writer.add_expert_count(n_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if hasattr(config, "moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    for key, value in metadata.items():
        add_value(writer, key, value)


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)


def add_vocab(
    writer: gguf.GGUFWriter,
    backend: tokenizers.Tokenizer,
    pre: str,
    user_defined: Collection[str] = (),
    n_unused: int = 0,
) -> None:
    """A byte-level BPE as the converter writes it; unused: rows of the embedding that stand for nothing."""
    listed = json.loads(backend.to_str())
    special = {token["content"] for token in listed["added_tokens"] if token["special"]}
    by_id = {i: token for token, i in backend.get_vocab(with_added_tokens=True).items()}
    tokens = [by_id[i] for i in range(len(by_id))] + [f"[PAD{i}]" for i in range(n_unused)]
    kinds = [3 if token in special else 4 if token in user_defined else 1 for token in tokens]
    kinds[len(by_id) :] = [5] * n_unused
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in listed["model"]["merges"]])


def tensors_of(model: PreTrainedModel, arch: gguf.MODEL_ARCH) -> dict[str, torch.Tensor]:
    config = model.config
    name_map = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    found: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        if arch == gguf.MODEL_ARCH.LLAMA and ("q_proj" in name or "k_proj" in name):
            tensor = permute(tensor, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        if name.endswith(".gate_up_proj"):  # transformers 5 keeps the experts of a layer as one tensor
            for part, half in zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True):
                found[f"blk.{name.split('.')[2]}.ffn_{part}_exps.weight"] = half
        elif name.endswith(".experts.down_proj"):
            found[f"blk.{name.split('.')[2]}.ffn_down_exps.weight"] = tensor
        else:
            new_name = name_map.get_name(name, try_suffixes=(".weight", ".bias"))
            assert new_name is not None, name
            found[new_name] = tensor
    return found


def permute(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """As the converter of llama.cpp does for its own order of rotated features."""
    return tensor.view(heads, 2, len(tensor) // heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)


def add_tensor(writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor, type_name: str) -> None:
    array = numpy.ascontiguousarray(tensor.detach().float().numpy())
    kind = Type.F32 if array.ndim == 1 else Type[type_name]
    if kind is Type.F32:
        writer.add_tensor(name, array)
    elif kind is Type.F16:
        writer.add_tensor(name, array.astype(numpy.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)


def dequantized(model: PreTrainedModel, type_name: str) -> PreTrainedModel:
    """The model with its matrices as they come back from a type, by the `gguf` package itself. In place."""
    kind = Type[type_name]
    for parameter in model.parameters():
        if parameter.ndim > 1 and kind is not Type.F32:
            array = numpy.ascontiguousarray(parameter.detach().numpy())
            back = gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind)
            parameter.data.copy_(torch.from_numpy(back.reshape(array.shape)))
    return model

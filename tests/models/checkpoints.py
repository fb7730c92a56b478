"""Random tiny checkpoints, written by transformers, one of every shape that the families have."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

VOCAB_SIZE = 96
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # logits of some size, so that 1e-4 means something
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # where a family's own are beyond our vocabulary
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 16.0,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
WINDOW = 7  # shorter than every prompt of more than a few tokens, and no multiple of a block
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.5, 2.0, 3.0],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    "partial_rotary_factor": 0.75,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}


def _llama(**options: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE | options))


def _deepseek_v2(**options: Any) -> PreTrainedModel:
    latents = {"q_lora_rank": None, "kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 20}
    experts = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "n_shared_experts": 2}
    shape = SHAPE | latents | experts | {"num_key_value_heads": 4, "first_k_dense_replace": 1}
    return DeepseekV2ForCausalLM(DeepseekV2Config(**shape | options))


# Centered norms make all scores steeper: with weights as large as those of the other models, float32 itself is further
# than 1e-4 from float64, in transformers too.
GEMMA = {"num_key_value_heads": 2, "head_dim": 24, "initializer_range": 0.1}
WINDOWS = {"query_pre_attn_scalar": 40, "sliding_window": WINDOW}


def _gemma(**options: Any) -> PreTrainedModel:
    return GemmaForCausalLM(GemmaConfig(**SHAPE | GEMMA | options))


def _gemma2(**options: Any) -> PreTrainedModel:
    return Gemma2ForCausalLM(Gemma2Config(**SHAPE | GEMMA | WINDOWS | options))


def _gemma3(**options: Any) -> PreTrainedModel:
    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE | GEMMA | WINDOWS | options))


def _gpt_oss(**options: Any) -> PreTrainedModel:
    shape = {"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 24, "num_local_experts": 6}
    yarn = YARN_ROPE | {"truncate": False}
    windows = {"num_experts_per_tok": 2, "sliding_window": WINDOW, "rope_parameters": yarn}
    return GptOssForCausalLM(GptOssConfig(**SHAPE | shape | windows | options))


def _mistral(**options: Any) -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SHAPE | {"num_key_value_heads": 2} | options))


def _mixtral(**options: Any) -> PreTrainedModel:
    shape = SHAPE | {"num_key_value_heads": 2, "num_local_experts": 5, "num_experts_per_tok": 2}
    return MixtralForCausalLM(MixtralConfig(**shape | options))


def _olmo2(**options: Any) -> PreTrainedModel:
    return Olmo2ForCausalLM(Olmo2Config(**SHAPE | TOKENS | options))


def _olmoe(**options: Any) -> PreTrainedModel:
    shape = SHAPE | TOKENS | {"num_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 24}
    return OlmoeForCausalLM(OlmoeConfig(**shape | options))


def _phi3(**options: Any) -> PreTrainedModel:
    return Phi3ForCausalLM(Phi3Config(**SHAPE | TOKENS | {"num_key_value_heads": 2} | options))


def _smollm3(**options: Any) -> PreTrainedModel:
    return SmolLM3ForCausalLM(SmolLM3Config(**SHAPE | TOKENS | {"num_key_value_heads": 2} | options))


def _qwen2(**options: Any) -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE | {"num_key_value_heads": 2} | options))


def _qwen2_moe(**options: Any) -> PreTrainedModel:
    shape = SHAPE | {"num_key_value_heads": 2, "shared_expert_intermediate_size": 40} | EXPERTS
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**shape | options))


def _qwen3(**options: Any) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE | {"num_key_value_heads": 2, "head_dim": 32} | options))


def _qwen3_moe(**options: Any) -> PreTrainedModel:
    shape = SHAPE | {"num_key_value_heads": 2, "head_dim": 16} | EXPERTS
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape | options))


MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "deepseek-v2-lite": lambda: _deepseek_v2(rope_parameters=YARN_ROPE | {"mscale": 0.7, "mscale_all_dim": 0.5}),
    "deepseek-v2": lambda: _deepseek_v2(
        q_lora_rank=40,
        attention_bias=True,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
    ),
    "gemma": lambda: _gemma(num_key_value_heads=1),
    "gemma2": lambda: _gemma2(attn_logit_softcapping=3.0, final_logit_softcapping=12.0),
    "gemma2-uncapped": lambda: _gemma2(attn_logit_softcapping=None, final_logit_softcapping=None),
    "gemma3": lambda: _gemma3(sliding_window_pattern=3),
    "gemma3-linear": lambda: _gemma3(
        layer_types=["full_attention", "sliding_attention"] * 2,
        rope_parameters={
            "full_attention": LINEAR_ROPE,
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    ),
    "gpt-oss": lambda: _gpt_oss(),
    "llama-mha": lambda: _llama(),
    "llama3-gqa": lambda: _llama(num_key_value_heads=2, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True),
    "llama-yarn-biased": lambda: _llama(
        num_key_value_heads=1, rope_parameters=YARN_ROPE, attention_bias=True, mlp_bias=True, head_dim=24
    ),
    "llama-linear": lambda: _llama(num_key_value_heads=4, rope_parameters=LINEAR_ROPE),
    "mistral": lambda: _mistral(sliding_window=WINDOW),
    "mistral-nemo": lambda: _mistral(sliding_window=None, head_dim=24),
    "mixtral": lambda: _mixtral(),
    "olmo2": lambda: _olmo2(),
    "olmo2-gqa": lambda: _olmo2(num_key_value_heads=2),
    "olmoe": lambda: _olmoe(),
    "phi3": lambda: _phi3(sliding_window=WINDOW),
    "phi3-longrope": lambda: _phi3(rope_parameters=LONG_ROPE, original_max_position_embeddings=160),
    "qwen2": lambda: _qwen2(tie_word_embeddings=True),
    "qwen2-windows": lambda: _qwen2(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2),
    "qwen2-moe": lambda: _qwen2_moe(mlp_only_layers=[1]),
    "qwen3": lambda: _qwen3(tie_word_embeddings=True),
    "qwen3-biased": lambda: _qwen3(attention_bias=True),
    "qwen3-windows": lambda: _qwen3(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3-moe": lambda: _qwen3_moe(norm_topk_prob=True),
    "qwen3-moe-mixed": lambda: _qwen3_moe(decoder_sparse_step=2, mlp_only_layers=[3]),
    "smollm3": lambda: _smollm3(no_rope_layer_interval=2),
    "smollm3-windows": lambda: _smollm3(no_rope_layers=[0, 1, 1, 0], use_sliding_window=True, sliding_window=WINDOW),
}


def make_model(name: str) -> PreTrainedModel:
    """A model whose norms and biases are random too: transformers starts them at 1 and 0, which would hide mistakes."""
    torch.manual_seed(sum(name.encode()))
    model = MAKERS[name]().eval()
    for key, parameter in model.named_parameters():
        if "norm" in key or "bias" in key or "sinks" in key:
            parameter.data.normal_(1.0 if "norm" in key else 0.0, 0.3)
    return model


def save(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        model.save_pretrained(folder, **options)
    return folder


@torch.inference_mode()
def expected_logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids])).logits[0]

"""What each family reads from a configuration: published sizes, defaults of absent keys, and what it refuses."""

from __future__ import annotations

import json
import math

import pytest

from penstock.core.errors import CorruptModel, UnsupportedModel
from penstock.models.config_file import ConfigFile
from penstock.models.families import family_of
from penstock.models.parameters import parameters_of
from penstock.models.read_spec import read_model_spec
from penstock.models.spec import ModelSpec

QWEN25_05B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
MIXTRAL_8X7B = MISTRAL_7B | {
    "architectures": ["MixtralForCausalLM"],
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "rope_theta": 1000000.0,
    "sliding_window": None,
}
GEMMA2_2B = {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
}
GEMMA3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
PHI3_MINI = {
    "architectures": ["Phi3ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "vocab_size": 32064,
}
OLMO2_7B = {
    "architectures": ["Olmo2ForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-06,
    "rope_theta": 500000,
    "vocab_size": 100352,
}
OLMOE_1B_7B = {
    "architectures": ["OlmoeForCausalLM"],
    "clip_qkv": None,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "max_position_embeddings": 4096,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "num_key_value_heads": 16,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "vocab_size": 50304,
}
SMOLLM3_3B = {
    "architectures": ["SmolLM3ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 65536,
    "no_rope_layer_interval": 4,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 5000000.0,
    "vocab_size": 128256,
}
GPT_OSS_20B = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "vocab_size": 201088,
}
DEEPSEEK_V2_LITE = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_group": 1,
    "topk_method": "greedy",
    "v_head_dim": 128,
    "vocab_size": 102400,
}
GROUPED = {"topk_method": "group_limited_greedy", "n_group": 7, "topk_group": 3}
LONG_ROPE = {
    "max_position_embeddings": 131072,
    "rope_scaling": {"type": "su", "short_factor": [1.0] * 48, "long_factor": [4.0] * 48},
}


@pytest.fixture
def read(tmp_path):
    def write_and_read(config) -> ModelSpec:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return read_model_spec(tmp_path)

    return write_and_read


@pytest.mark.parametrize(
    ("config", "published_parameters"),
    [
        (QWEN25_05B, 494_032_768),
        (MISTRAL_7B, 7_241_732_096),
        (MIXTRAL_8X7B, 46_702_792_704),
        (GEMMA2_2B, 2_614_341_888),
        (GEMMA3_1B, 999_885_952),
        (DEEPSEEK_V2_LITE, 15_706_484_224),
        (GPT_OSS_20B, 20_914_757_184),
        (PHI3_MINI, 3_821_079_552),
        (OLMO2_7B, 7_298_617_344),
        (OLMOE_1B_7B, 6_919_161_856),
        (SMOLLM3_3B, 3_075_098_624),
    ],
    ids=lambda value: value["architectures"][0] if isinstance(value, dict) else "",
)
def test_published_models_have_their_published_size(config, published_parameters, read):
    _, family = family_of(ConfigFile(config, "config.json"))
    parts = {part.source: part.shape for p in parameters_of(read(config), family.names) for part in p.parts}
    assert sum(map(math.prod, parts.values())) == published_parameters


def windows_of(spec):
    return [layer.attention.window_tokens for layer in spec.layers]


def test_windows_are_where_the_configuration_has_them(read):
    assert windows_of(read(MISTRAL_7B)) == [4096] * 32
    assert windows_of(read(MISTRAL_7B | {"sliding_window": None})) == [None] * 32
    without = {key: value for key, value in MISTRAL_7B.items() if key != "sliding_window"}
    assert windows_of(read(without)) == [4096] * 32  # what the absence of the key means to this family
    assert windows_of(read(MIXTRAL_8X7B)) == [None] * 32
    assert windows_of(read(QWEN25_05B)) == [None] * 24  # use_sliding_window decides
    assert (
        windows_of(read(QWEN25_05B | {"use_sliding_window": True, "max_window_layers": 20}))[19:]
        == [None] + [32768] * 4
    )
    assert windows_of(read(GEMMA2_2B)) == [4096, None] * 13
    assert windows_of(read(GEMMA3_1B))[:7] == [512] * 5 + [None, 512]


def test_positions_differ_by_layer(read):
    thetas = [layer.attention.rope.theta for layer in read(GEMMA3_1B).layers[4:7]]
    assert thetas == [1e4, 1e6, 1e4]
    assert [layer.attention.rope is None for layer in read(SMOLLM3_3B).layers[:8]] == [False, False, False, True] * 2


def test_a_long_rope_ends_the_context_where_its_second_set_of_factors_would_begin(read):
    spec = read(PHI3_MINI | LONG_ROPE)
    assert spec.max_position_tokens == 4096
    assert spec.layers[0].attention.rope.scaling.attention_factor == pytest.approx(1.1902380714238083)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GEMMA2_2B | {"use_bidirectional_attention": True}, "use_bidirectional_attention is True; supported: False"),
        (GEMMA3_1B | {"hidden_activation": "relu"}, "hidden_act is 'relu'; supported: silu, gelu_pytorch_tanh"),
        (
            GPT_OSS_20B | {"quantization_config": {"quant_method": "mxfp4"}},
            r"quantization_config asks for quantized weights \('mxfp4'\); supported: bfloat16, float16, float32",
        ),
        (DEEPSEEK_V2_LITE | {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'; supported: 'greedy'"),
        (DEEPSEEK_V2_LITE | {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'; supported: 'softmax'"),
        (GPT_OSS_20B | {"swiglu_limit": 5.0}, "swiglu_limit is 5.0; supported: 7.0"),
        (OLMOE_1B_7B | {"clip_qkv": 8.0}, "clip_qkv is 8.0; supported: None"),
        (MISTRAL_7B | {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; supported: 1.0"),
    ],
)
def test_what_a_family_does_not_support_is_refused(config, message, read):
    with pytest.raises(UnsupportedModel, match=rf"config\.json: {message}"):
        read(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PHI3_MINI | LONG_ROPE | {"partial_rotary_factor": 0.5}, "short_factor has 48 entries for 24 frequencies"),
        (PHI3_MINI | {"rope_scaling": {"type": "longrope"}}, "short_factor is missing"),
        (PHI3_MINI | {"partial_rotary_factor": 3.0}, "partial_rotary_factor 3.0 rotates [0-9]+ of 96 features"),
        (PHI3_MINI | {"sliding_window": "wide"}, "sliding_window is 'wide', expected a whole number"),
        (SMOLLM3_3B | {"no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries for 36 layers"),
        (SMOLLM3_3B | {"layer_types": ["full_attention"]}, "layer_types is .*, expected a list of 36 names"),
        (GEMMA2_2B | {"attn_logit_softcapping": 0}, "attn_logit_softcapping is 0, expected a positive number"),
        (DEEPSEEK_V2_LITE | GROUPED, "topk_group 3 of n_group 7 do not fit n_routed_experts 64"),
        (MIXTRAL_8X7B | {"num_local_experts": 1}, "num_experts_per_tok 2 of 1 experts"),
    ],
)
def test_what_contradicts_itself_is_named(config, message, read):
    with pytest.raises(CorruptModel, match=rf"config\.json: (rope_scaling: )?(the key )?{message}"):
        read(config)

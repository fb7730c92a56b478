"""Reading foreign configurations: both styles, real ones, and every complaint names key and file."""

from __future__ import annotations

import json

import pytest
import torch

from penstock.core.errors import CorruptModel, ModelError, ModelNotFound, UnsupportedModel
from penstock.models.families import FAMILIES
from penstock.models.read_spec import read_model_spec
from penstock.models.rope import Rotation
from penstock.models.spec import (
    DenseSpec,
    ExpertsSpec,
    LinearScaling,
    Llama3Scaling,
    NoScaling,
    RopeSpec,
    YarnScaling,
)
from penstock.models.weights import weight_bytes

LLAMA31_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_30B_A3B = QWEN3_06B | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "decoder_sparse_step": 1,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}

REQUIRED = (
    "architectures",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "rms_norm_eps",
    "vocab_size",
)


@pytest.fixture
def read(tmp_path):
    def write_and_read(config, generation=None):
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return read_model_spec(tmp_path)

    return write_and_read


@pytest.mark.parametrize(
    ("config", "published_parameters"),
    [(LLAMA31_8B, 8_030_261_248), (QWEN3_06B, 596_049_920), (QWEN3_30B_A3B, 30_532_122_624)],
    ids=["llama-3.1-8b", "qwen3-0.6b", "qwen3-30b-a3b"],
)
def test_published_models_have_their_published_size(config, published_parameters, read):
    spec = read(config)
    attention = spec.layers[0].attention
    norm_rows = (attention.q_heads + attention.kv_heads - 2) * attention.head_dim if attention.qk_norm else 0
    assert weight_bytes(spec) == 2 * (published_parameters + norm_rows * len(spec.layers))
    assert weight_bytes(spec, "float32") == 2 * weight_bytes(spec)


def test_llama_is_read_into_typed_records(read):
    spec = read(LLAMA31_8B)
    attention = spec.layers[0].attention
    scaling = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_tokens=8192)
    assert attention.rope == RopeSpec(theta=500000.0, dim=128, scaling=scaling)
    assert (attention.q_heads, attention.kv_heads, attention.head_dim) == (32, 8, 128)
    assert spec.layers[0].mlp == DenseSpec(width=14336)
    assert spec.stop_token_ids == {128001, 128008, 128009}
    assert (spec.dtype, spec.max_position_tokens, spec.norm.eps) == ("bfloat16", 131072, 1e-5)


def test_layers_are_dense_or_sparse_as_the_configuration_says(read):
    spec = read(QWEN3_30B_A3B | {"decoder_sparse_step": 2, "mlp_only_layers": [3], "num_hidden_layers": 6})
    kinds = [type(layer.mlp) for layer in spec.layers]
    assert kinds == [DenseSpec, ExpertsSpec, DenseSpec, DenseSpec, DenseSpec, ExpertsSpec]
    assert spec.layers[1].mlp == ExpertsSpec(n_experts=128, top_k=8, width=768, is_normalized=True)


@pytest.mark.parametrize(
    ("section", "scaling"),
    [
        (None, NoScaling()),
        ({"rope_type": "default"}, NoScaling()),
        ({"type": "linear", "factor": 4}, LinearScaling(4.0)),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            YarnScaling(factor=4.0, original_max_tokens=32768, attention_factor=1.1386294361119891),
        ),
    ],
)
def test_both_styles_of_rope_are_read(section, scaling, read):
    old = read(QWEN3_06B | {"rope_scaling": section})
    without = {key: value for key, value in QWEN3_06B.items() if not key.startswith("rope")}
    new = read(without | {"rope_parameters": (section or {"rope_type": "default"}) | {"rope_theta": 1000000}})
    assert old == new
    assert old.layers[0].attention.rope == RopeSpec(theta=1e6, dim=128, scaling=scaling)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_frequencies_are_those_of_transformers(kind, read):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    section = {
        "rope_type": kind,
        "rope_theta": 500000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 16384,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    if kind != "llama3":
        section = {key: value for key, value in section.items() if "freq" not in key}
    if kind == "linear":
        del section["original_max_position_embeddings"]
    without = {key: value for key, value in LLAMA31_8B.items() if not key.startswith("rope")}
    spec = read(without | {"rope_parameters": dict(section)}).layers[0].attention.rope
    found = Rotation.of(spec, torch.device("cpu"))
    expected, factor = ROPE_INIT_FUNCTIONS[kind](LlamaConfig(**without | {"rope_parameters": dict(section)}))
    torch.testing.assert_close(found.inv_freq_R, expected, rtol=1e-6, atol=0)
    assert found.attention_factor == pytest.approx(factor)


def test_stop_tokens_of_both_files_count(read):
    assert read(QWEN3_06B, {"eos_token_id": [151645, 151643]}).stop_token_ids == {151645, 151643}
    assert read(QWEN3_06B, {"eos_token_id": 7}).stop_token_ids == {151645, 7}
    assert read(QWEN3_06B | {"eos_token_id": None}, {}).stop_token_ids == frozenset()


def test_code_that_comes_with_a_model_is_not_even_looked_at(read):
    config = QWEN3_06B | {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}
    assert read(config) == read(QWEN3_06B)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            r"GPT2LMHeadModel'\] is not supported; known: .*Llama.*Qwen3.*Qwen3Moe",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config .* supported: bfloat16"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported: silu, gelu_pytorch_tanh"),
        (
            {"rope_scaling": {"rope_type": "dynamic"}},
            "rope_type is 'dynamic'; supported: default, linear, llama3, longrope, su, yarn",
        ),
        ({"rope_scaling": {"mrope_section": [1, 2]}}, "mrope_section"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; supported: 1.0"),
        ({"layer_types": ["linear"] * 28}, "layer_types has 'linear'; supported: full_attention, sliding_attention"),
        ({"torch_dtype": "int8"}, "dtype is 'int8'; supported: bfloat16, float16, float32"),
    ],
)
def test_what_is_not_supported_is_refused_and_says_what_is(change, message, read, tmp_path):
    with pytest.raises(UnsupportedModel, match=message) as caught:
        read(QWEN3_06B | change)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("change", [{"use_sliding_window": True}, {"layer_types": ["sliding_attention"] * 48}], ids=str)
def test_windows_beside_experts_are_refused(change, read):
    with pytest.raises(UnsupportedModel, match=r"config\.json: (use_sliding_window is True|layer_types has 'sliding)"):
        read(QWEN3_30B_A3B | change)


@pytest.mark.parametrize("base", [LLAMA31_8B, QWEN3_06B, QWEN3_30B_A3B], ids=["llama", "qwen3", "qwen3-moe"])
def test_a_missing_key_is_named(base, read):
    for key in REQUIRED:
        with pytest.raises(CorruptModel, match=rf"config\.json: .*{key}"):
            read({name: value for name, value in base.items() if name != key})


@pytest.mark.parametrize("wrong", ["x", -1, True, {}, ["x"], 1e999], ids=str)
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "rms_norm_eps", "eos_token_id", "rope_theta"])
def test_a_value_of_the_wrong_kind_is_a_clear_error(key, wrong, read):
    with pytest.raises(CorruptModel, match=f"{key} is .*, expected"):
        read(QWEN3_06B | {key: wrong})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no valid JSON"),
        ("{", "no valid JSON"),
        ("[]", "holds a JSON list, expected an object"),
        ("[" * 100_000, "no valid JSON"),
        ('{"architectures": "Qwen3ForCausalLM"}', "architectures is 'Qwen3ForCausalLM', expected a list"),
        ("{}", "architectures is None, expected a list"),
    ],
    ids=["empty", "cut", "list", "deep", "text", "nothing"],
)
def test_a_broken_configuration_is_one_clear_line(text, message, read):
    with pytest.raises(CorruptModel, match=message) as caught:
        read(text)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_a_clear_error(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptModel, match="is not UTF-8 text"):
        read_model_spec(tmp_path)


def test_what_cannot_be_opened_is_a_clear_error(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CorruptModel, match=r"config\.json is no regular file"):
        read_model_spec(tmp_path)


def test_a_huge_value_does_not_flood_the_message(read):
    with pytest.raises(CorruptModel) as caught:
        read(QWEN3_06B | {"hidden_size": "9" * 10**6})
    assert len(str(caught.value)) < 400


def test_missing_folders_and_files_say_what_was_looked_for(tmp_path):
    with pytest.raises(ModelNotFound, match=r"nowhere is no folder.*config\.json and safetensors"):
        read_model_spec(tmp_path / "nowhere")
    with pytest.raises(ModelNotFound, match=r"config\.json does not exist"):
        read_model_spec(tmp_path)


def test_impossible_head_counts_are_refused(read):
    with pytest.raises(CorruptModel, match="num_attention_heads 16 is no multiple of num_key_value_heads 5"):
        read(QWEN3_06B | {"num_key_value_heads": 5})
    with pytest.raises(CorruptModel, match="num_experts_per_tok 8 of 4 experts"):
        read(QWEN3_30B_A3B | {"num_experts": 4})


@pytest.mark.parametrize("architecture", FAMILIES)
def test_an_empty_configuration_of_any_family_is_a_model_error(architecture, read):
    with pytest.raises(ModelError, match="is missing"):
        read({"architectures": [architecture]})

"""The shape of `penstock-tiny`, and writing it as a Hugging Face folder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.train.tokenizer import CONTEXT_TOKENS, END_OF_TEXT, IM_END, SPECIAL_TOKENS, VOCAB_SIZE

if TYPE_CHECKING:
    from transformers import Qwen3Config, Qwen3ForCausalLM

# Qwen3's norms on queries and keys keep a small model steady at a high learning rate. Heads of 64 and two KV heads:
# every attention kernel takes them, and a pair of devices can share them.
TINY: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": CONTEXT_TOKENS,
}


def make_config(**shape: int) -> "Qwen3Config":
    """The configuration of a model of this shape; sizes that are not given are those of `penstock-tiny`."""
    from transformers import Qwen3Config

    return Qwen3Config(
        **TINY | shape,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=SPECIAL_TOKENS.index(END_OF_TEXT),
        eos_token_id=SPECIAL_TOKENS.index(IM_END),
        pad_token_id=SPECIAL_TOKENS.index(END_OF_TEXT),
        dtype="bfloat16",
        architectures=["Qwen3ForCausalLM"],
    )


def save_model(model: "Qwen3ForCausalLM", folder: Path) -> None:
    """Write config.json, generation_config.json and the weights, rounded to bfloat16."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    stops = [SPECIAL_TOKENS.index(IM_END), SPECIAL_TOKENS.index(END_OF_TEXT)]
    generation = {
        "bos_token_id": model.config.bos_token_id,
        "eos_token_id": stops,
        "pad_token_id": model.config.pad_token_id,
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    weights = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

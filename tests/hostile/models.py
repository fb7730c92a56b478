"""The models that get damaged: small ones of several families and both containers, each with a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from tests.models.checkpoints import make_model, save
from tests.models.gguf_files import add_config, add_tensor, add_vocab, finish, tensors_of

TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
FAMILIES = ["llama3-gqa", "llama-yarn-biased", "qwen2-windows", "qwen3-moe-mixed", "gemma3", "mixtral"]


def small_tokenizer() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=280, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["The dog and the other dog, 123 times."], trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return backend


def write_models(folder: Path) -> Path:
    for name in FAMILIES:
        model = make_model(name)
        shards = {"max_shard_size": "60KB"} if name == "llama-yarn-biased" else {}
        write_text(save(model, folder / name, **shards))
    for name in ("llama-mha", "qwen3-moe"):
        (folder / f"gguf-{name}").mkdir()
        write_gguf_model(folder / f"gguf-{name}" / "m.gguf", name)
    return folder


def write_text(folder: Path) -> None:
    small_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "pad_token": "</s>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))


def write_gguf_model(path: Path, name: str) -> None:
    model = make_model(name)
    arch = gguf.MODEL_ARCH.LLAMA if name.startswith("llama") else gguf.MODEL_ARCH.QWEN3MOE
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    add_config(writer, model.config, {"tokenizer.chat_template": TEMPLATE})
    add_vocab(writer, small_tokenizer(), "llama-bpe" if name.startswith("llama") else "qwen2")
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for tensor_name, tensor in tensors_of(model, arch).items():
        add_tensor(writer, tensor_name, tensor, "Q8_0" if tensor.shape[-1] == 64 else "F16")
    finish(writer)

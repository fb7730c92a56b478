"""A model as a GGUF file answers as the directory it was made from."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from penstock import LLM, SamplingParams
from penstock.core.errors import ModelNotFound
from penstock.options import BUNDLED, EngineOptions
from tests.models.gguf_files import write_gguf

TINY = BUNDLED["penstock-tiny"]
PROMPT = "def add(a, b):\n"


def test_a_gguf_file_beside_its_tokenizer_answers_as_the_directory(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    ends = {"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 2}
    path = write_gguf(model, tmp_path / "tiny-bf16.gguf", "BF16", ends)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path / name)
    options = {"kv_memory": "8MiB", "device": "cpu", "threads": 1, "dtype": "bfloat16"}
    answers = []
    for source in (str(path), str(TINY)):
        with LLM(source, **options) as llm:
            (output,) = llm.generate([PROMPT], SamplingParams(max_tokens=24, temperature=0.0))
            answers.append((output.outputs[0].token_ids, output.outputs[0].text))
    assert answers[0] == answers[1]
    assert len(answers[0][0]) > 4


def test_a_gguf_file_is_called_by_its_name_without_the_ending(tmp_path):
    (tmp_path / "my-model.Q8_0.gguf").write_bytes(b"")
    assert EngineOptions(model=str(tmp_path / "my-model.Q8_0.gguf")).model_name == "my-model.Q8_0"


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ModelNotFound, match=r"neither a directory, nor a \.gguf file, nor a bundled model"):
        _ = EngineOptions(model=str(tmp_path / "model.bin")).model_path

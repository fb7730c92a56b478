"""Whatever is in the files of a model: it loads, or it is one line of a UserError; soon, and in bounded memory."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.core.errors import ConfigError, CorruptModel, ModelError, UnsupportedModel
from penstock.formats.gguf import GgufFile
from penstock.formats.text_file import MAX_TEXT_BYTES, read_object, read_text
from penstock.models.weights import load_model
from penstock.text.tokenizer import Tokenizer
from tests.hostile.child import use_text, use_weights
from tests.hostile.models import write_models, write_text
from tests.models.checkpoints import make_model, save

N_CASES = 320
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc as on Linux")


@pytest.fixture(scope="module")
def damaged_runs(tmp_path_factory):
    """The report of the child that loads all cases under a limit of memory, and of time for each."""
    models = write_models(tmp_path_factory.mktemp("models"))
    scratch = tmp_path_factory.mktemp("scratch")
    command = [sys.executable, "-m", "tests.hostile.child", models, scratch, "0", str(N_CASES)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-3000:]  # it did not crash, whatever the library did
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_each_damaged_file_loads_or_is_one_line(damaged_runs):
    *problems, summary = damaged_runs
    assert not problems
    assert summary["fine"] == 2 * N_CASES
    assert summary["refused"] > N_CASES / 4
    assert summary["loaded"] > N_CASES / 4  # else nothing but the first byte was tested


@pytest.fixture
def folder(tmp_path):
    """A small model with a tokenizer, to be damaged in one place."""
    write_text(save(make_model("llama-yarn-biased"), tmp_path / "model", max_shard_size="60KB"))
    return tmp_path / "model"


def change(path, *keys, value):
    tree = json.loads(path.read_text())
    inner = tree
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        pytest.param(["rms_norm_eps"], 10**400, "expected a positive number", id="huge eps"),
        pytest.param(["eos_token_id"], [10**400], "expected a number from 0 on", id="huge eos"),
        (["head_dim"], 23, "heads have 23 features"),
        (["rope_parameters", "rope_theta"], 1, "no finite frequencies"),
        (["rope_parameters", "beta_fast"], 1e308, "no finite frequencies"),
        (["rope_parameters", "beta_fast"], 1e-320, "no finite frequencies"),
        (["rope_parameters", "factor"], 1e-320, "no finite frequencies"),
        (["rope_parameters", "rope_type"], "\ud800", "no valid JSON"),
    ],
)
def test_values_that_no_model_has_are_refused(keys, value, message, folder):
    change(folder / "config.json", *keys, value=value)
    with pytest.raises(CorruptModel, match=message):
        use_weights(folder)


def test_a_longrope_of_one_token_is_refused(tmp_path):
    folder = save(make_model("phi3-longrope"), tmp_path / "model")
    change(folder / "config.json", "original_max_position_embeddings", value=1)
    with pytest.raises(CorruptModel, match="original_max_position_embeddings is 1"):
        load_model(folder)


def test_billions_of_experts_are_refused_before_they_are_listed(tmp_path):
    folder = save(make_model("qwen3-moe"), tmp_path / "model")
    change(folder / "config.json", "num_experts", value=2**31 - 1)
    with pytest.raises(CorruptModel, match="asks for 8589934588 experts"):
        load_model(folder)


@pytest.mark.parametrize("name", ["../model-00001-of-00013.safetensors", "a\0b", "x" * 300, "\x1b[31m", ""])
def test_an_index_names_plain_files_only(name, folder):
    index = folder / "model.safetensors.index.json"
    change(index, "weight_map", "model.norm.weight", value=name)
    with pytest.raises(CorruptModel) as caught:
        load_model(folder)
    assert str(caught.value).isprintable()


def test_names_in_a_message_cannot_write_to_the_terminal():
    message = str(ModelError("tensor a\n\x1b[31m\ud800" + "x" * 5000))
    assert message.isprintable()
    assert len(message) < 1000
    assert message.startswith("tensor a�")


def test_tensors_that_share_bytes_are_refused(folder):
    path = sorted(folder.glob("*.safetensors"))[0]
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    first, second = sorted(key for key in header if key != "__metadata__")[:2]
    header[second] = header[first]
    written = json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + data[8 + int.from_bytes(data[:8], "little") :])
    with pytest.raises(CorruptModel, match="shares bytes with another"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "keys", "value"),
    [
        ("tokenizer.json", ["post_processor", "single", 0, "SpecialToken", "id"], "none such"),
        ("tokenizer.json", ["model", "continuing_subword_prefix"], "longer than a token"),
        ("tokenizer_config.json", ["chat_template"], "\ud800"),
        ("tokenizer_config.json", ["eos_token"], "\udfff"),
        ("generation_config.json", ["eos_token_id"], 2**64),
    ],
)
def test_a_tokenizer_that_the_library_cannot_use_is_refused_at_the_start(name, keys, value, folder):
    change(folder / name, *keys, value=value)
    with pytest.raises(CorruptModel):
        use_text(folder)


def test_files_are_read_up_to_a_size(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(MAX_TEXT_BYTES + 1)
    with pytest.raises(CorruptModel, match=r"has 67108865 bytes, more than the 67108864"):
        read_object(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CorruptModel, match="no regular file"):
        read_text(path)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_bytes(n_tensors=0, n_keys=0, body=b"", version=3):
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + body


TENSOR = text("t") + struct.pack("<IQIQ", 1, 32, 0, 0)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", CorruptModel, "too few"),
        (b"GGML" + bytes(20), CorruptModel, "does not begin with GGUF"),
        (gguf_bytes(version=1), UnsupportedModel, "GGUF version 1"),
        (gguf_bytes(version=3 << 24), UnsupportedModel, "big-endian"),
        (gguf_bytes(n_tensors=2**63), CorruptModel, "claims 9223372036854775808 tensors"),
        (gguf_bytes(n_keys=2**32), CorruptModel, "4294967296 keys"),
        (gguf_bytes(n_keys=60_000), CorruptModel, "truncated"),
        (gguf_bytes(0, 1, struct.pack("<Q", 2**60)), CorruptModel, "claims 1152921504606846976 bytes"),
        (gguf_bytes(0, 1, text("k") + struct.pack("<IQ", 8, 2**63)), CorruptModel, "claims 9223372036854775808 bytes"),
        (gguf_bytes(0, 1, text("k") + struct.pack("<IIQ", 9, 4, 2**62)), CorruptModel, "claims 4611686018427387904"),
        (gguf_bytes(0, 1, text("k") + struct.pack("<IIQ", 9, 8, 2**40)), CorruptModel, "claims 1099511627776 items"),
        (gguf_bytes(0, 1, text("k") + struct.pack("<IIQ", 9, 9, 1)), CorruptModel, "unsupported type 9"),
        (gguf_bytes(0, 1, text("k") + struct.pack("<I", 99)), CorruptModel, "unknown type 99"),
        (gguf_bytes(0, 2, 2 * (text("k") + struct.pack("<IB", 0, 1))), CorruptModel, "key k is there twice"),
        (gguf_bytes(0, 1, text("k") + struct.pack("<IQ", 8, 2) + b"\xff\xfe"), CorruptModel, "no UTF-8"),
        (gguf_bytes(0, 1, text("general.alignment") + struct.pack("<II", 4, 24)), CorruptModel, "alignment is 24"),
        (gguf_bytes(0, 1, text("general.alignment") + struct.pack("<II", 4, 0)), CorruptModel, "alignment is 0"),
        (gguf_bytes(1, 0, TENSOR), CorruptModel, "truncated"),
        (gguf_bytes(2, 0, 2 * TENSOR + bytes(300)), CorruptModel, "tensor t is there twice"),
        (gguf_bytes(1, 0, text("t") + struct.pack("<I", 2**31)), CorruptModel, "2147483648 dimensions"),
        (gguf_bytes(1, 0, text("t") + struct.pack("<IQQIQ", 2, 0, 2**60, 0, 0)), CorruptModel, "no rows of whole"),
        (gguf_bytes(1, 0, text("t") + struct.pack("<IQQIQ", 2, 2**62, 2**62, 0, 0)), CorruptModel, "truncated"),
        (gguf_bytes(1, 0, text("t") + struct.pack("<IQIQ", 1, 32, 0, 8)), CorruptModel, "no multiple of the alignment"),
        (gguf_bytes(1, 0, text("t") + struct.pack("<IQIQ", 1, 33, 8, 0)), CorruptModel, "no rows of whole Q8_0 blocks"),
        (
            gguf_bytes(2, 0, TENSOR + text("u") + struct.pack("<IQIQ", 1, 32, 0, 64) + bytes(400)),
            CorruptModel,
            "tensor u shares bytes",
        ),
    ],
)
def test_no_count_or_length_of_a_gguf_header_is_believed(data, error, message, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(error, match=message) as caught:
        GgufFile(path)
    assert str(caught.value).isprintable()


def test_a_sparse_gguf_of_a_terabyte_costs_nothing(tmp_path):
    path = tmp_path / "m.gguf"
    for body in (struct.pack("<Q", 0), text("k") + struct.pack("<IIQ", 9, 8, 2**22 + 1)):
        path.write_bytes(gguf_bytes(2**17, 2**16, body))
        os.truncate(path, 2**40)
        with pytest.raises((ModelError, ConfigError)):
            load_model(path)
        with pytest.raises((ModelError, ConfigError)):
            Tokenizer.from_path(path)

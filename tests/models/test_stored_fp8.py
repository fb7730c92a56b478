"""Checkpoints with weights in fp8: every layout of scales, kept as they are or restored; and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from penstock.core.errors import CorruptModel, UnsupportedModel
from penstock.models import stored_fp8
from penstock.models.families.family import WeightNames
from penstock.models.parameters import parameters_of
from penstock.models.read_spec import read_model_spec
from penstock.models.sharding import part_of_rank
from penstock.models.weights import load_model
from penstock.ops.quantized import QuantizedStack, QuantizedWeight
from tests.models.ranks import on_ranks

FP8 = torch.float8_e4m3fn
CONFIGS = {
    "tensor": {"quant_method": "fp8", "activation_scheme": "static"},
    "row": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]},
    "channel": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"},
                "input_activations": {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"},
            }
        },
    },
    "block": {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "fmt": "e4m3"},
}


def rounded(weight, layout):
    """(e4m3 numbers, scales as they are stored, the weight that they stand for)."""
    rows, columns = weight.shape
    if layout == "block":
        side = stored_fp8.BLOCK
        n_rows, n_columns = -(-rows // side), -(-columns // side)
        scales = torch.rand(n_rows, n_columns) * 1e-3 + 1e-3
        spread = scales.repeat_interleave(side, 0)[:rows].repeat_interleave(side, 1)[:, :columns]
    elif layout == "tensor":
        scales = weight.abs().max() / 448
        spread = scales
    else:
        scales = weight.abs().amax(1, keepdim=True) / 448
        spread = scales
    numbers = (weight / spread).clamp(-448, 448).to(FP8)
    return numbers, scales, numbers.float() * spread


@pytest.fixture
def _small_blocks(monkeypatch):
    """So that small matrices have several, restored in several pieces."""
    monkeypatch.setattr(stored_fp8, "BLOCK", 32)
    monkeypatch.setattr(stored_fp8, "ELEMENTS_AT_ONCE", 64 * 32)


@pytest.fixture
def stored(checkpoint, tmp_path):
    """name, layout -> (folder in fp8, folder with the weights that it stands for)."""

    def make(name, layout):
        source = checkpoint(name)[1]
        folders = [shutil.copytree(source, tmp_path / kind) for kind in ("fp8", "plain")]
        tensors = load_file(source / "model.safetensors")
        in_fp8, plain = {}, {}
        for key, value in tensors.items():
            is_linear = key.endswith("_proj.weight") and value.dim() == 2
            if not is_linear:
                in_fp8[key] = plain[key] = value
                continue
            numbers, scales, plain[key] = rounded(value.float(), layout)
            in_fp8[key] = numbers
            in_fp8[key.replace("weight", "weight_scale_inv" if layout == "block" else "weight_scale")] = scales
            if layout == "tensor":
                in_fp8[key.replace("weight", "input_scale")] = torch.tensor(0.5)
        save_file(in_fp8, folders[0] / "model.safetensors")
        save_file({key: value.float().contiguous() for key, value in plain.items()}, folders[1] / "model.safetensors")
        change_config(folders[0], quantization_config=CONFIGS[layout])
        return folders

    return make


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("layout", CONFIGS)
@pytest.mark.parametrize("name", ["qwen3", "qwen3-moe"])
def test_weights_in_fp8_are_restored_exactly(stored, name, layout):
    in_fp8, plain = (load_model(folder, dtype="float32").tensors for folder in stored(name, layout))
    assert in_fp8.keys() == plain.keys()
    for key, value in plain.items():
        torch.testing.assert_close(in_fp8[key], value, atol=0, rtol=0, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize(
    ("layout", "quantize"), [*((layout, "none") for layout in CONFIGS), ("row", "fp8"), ("tensor", "fp8")]
)
@pytest.mark.parametrize("name", ["qwen3", "qwen3-moe"])
@pytest.mark.usefixtures("_small_blocks")
def test_two_ranks_take_their_shares_of_what_is_stored(stored, name, layout, quantize):
    """Restored, or kept with the scales of their rows."""
    folder, plain_folder = stored(name, layout)
    plain, spec = load_model(plain_folder, dtype="float32").tensors, read_model_spec(folder)
    parameters = {parameter.name: parameter for parameter in parameters_of(spec, WeightNames())}
    for peers in on_ranks(2, lambda peers: peers):
        for key, tensor in load_model(folder, dtype="float32", quantize=quantize, peers=peers).tensors.items():
            expected = part_of_rank(plain[key], parameters[key], spec, peers.shard)
            torch.testing.assert_close(numbers_of(tensor), expected, atol=0, rtol=0)


def numbers_of(tensor):
    if isinstance(tensor, QuantizedStack):
        return torch.stack([tensor[expert].dense(torch.float32) for expert in range(tensor.shape[0])])
    return tensor.dense(torch.float32) if isinstance(tensor, QuantizedWeight) else tensor


@pytest.mark.parametrize("layout", ["tensor", "row", "channel"])
@pytest.mark.parametrize("name", ["qwen3", "qwen3-moe"])
def test_numbers_in_fp8_are_kept_bit_by_bit(stored, name, layout):
    folder, plain_folder = stored(name, layout)
    kept, plain = load_model(folder, dtype="float32", quantize="fp8").tensors, load_model(plain_folder).tensors
    found = 0
    for key, value in kept.items():
        if isinstance(value, QuantizedWeight):
            torch.testing.assert_close(value.dense(torch.float32), plain[key].float(), atol=0, rtol=0)
        elif isinstance(value, QuantizedStack):
            for expert in range(value.shape[0]):
                matrix = value[expert].dense(torch.float32)
                torch.testing.assert_close(matrix, plain[key][expert].float(), atol=0, rtol=0)
        found += isinstance(value, QuantizedWeight | QuantizedStack)
    assert found == 4 * len(load_model(folder).spec.layers)


@pytest.mark.usefixtures("_small_blocks")
def test_blocks_are_restored_and_rounded_again_by_row(stored):
    folder, plain_folder = stored("qwen3", "block")
    found = load_model(folder, dtype="float32", quantize="fp8").tensors["layers.0.mlp.down"]
    expected = load_model(plain_folder, dtype="float32", quantize="fp8").tensors["layers.0.mlp.down"]
    assert isinstance(found, QuantizedWeight)
    torch.testing.assert_close(found.dense(torch.float32), expected.dense(torch.float32), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"quant_method": "gptq", "bits": 4}, r"\('gptq'\)"),
        ({"quant_method": "awq"}, r"\('awq'\)"),
        ({"quant_method": "mxfp4"}, r"\('mxfp4'\)"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, r"\(fp8 in blocks of \[64, 64\]\)"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, r"\(fp8 in 'e5m2'\)"),
        ({"quant_method": "compressed-tensors"}, r"\(compressed-tensors without config_groups\)"),
        (
            CONFIGS["channel"] | {"transform_config": {"config_groups": {"R1": {}}}},
            r"\(compressed-tensors with transform_config\)",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "strategy": "group"}}},
            },
            r"\(compressed-tensors 'pack-quantized': \{'num_bits': 4, 'type': 'int', 'strategy': 'group'\}\)",
        ),
    ],
)
def test_a_format_that_is_not_read_is_named_with_what_to_do(checkpoint, tmp_path, config, found):
    folder = shutil.copytree(checkpoint("qwen3")[1], tmp_path / "model")
    change_config(folder, quantization_config=config)
    message = rf"config\.json: quantization_config asks .* {found}; supported: bfloat16.* fp8 .*give --quantize fp8"
    with pytest.raises(UnsupportedModel, match=message):
        read_model_spec(folder)


def test_fp8_without_scales_or_with_scales_that_do_not_fit_is_an_error(stored):
    folder, _ = stored("qwen3", "row")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    scales = tensors.pop(f"{name}_scale")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CorruptModel, match=rf"tensor {name} is stored in fp8 without scales: looked for {name}_scale"):
        load_model(folder)
    save_file(tensors | {f"{name}_scale": scales[:-1]}, folder / "model.safetensors")
    with pytest.raises(CorruptModel, match=rf"the scales of {name}, .* have shape \[.*\]; expected one for all"):
        load_model(folder)

"""Kernels for weights of few bits: what they take on a GPU, or, on any machine with Triton, what they compile to.

    python benchmarks/gpu/quantized.py                 times beside bf16, on the GPU of this machine
    python benchmarks/gpu/quantized.py --compile 90    registers and spills for a compute capability, without a GPU

Times: linear layers of three models at 1 to 1024 tokens, bf16 (`entry_linear`) and each format (`quantized_linear`),
medians. Each result is compared with its reference first. The share is the least time, which the bytes of weights
and tokens take at the copy bandwidth measured in the run, over the time. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

# (name, outputs, inputs, gated): of llama-8b and qwen3-0.6b
SHAPES = (
    ("8b qkv", 6144, 4096, False),
    ("8b out", 4096, 4096, False),
    ("8b gate_up", 28672, 4096, True),
    ("8b down", 4096, 14336, False),
    ("0.6b gate_up", 6144, 1024, True),
    ("0.6b down", 1024, 3072, False),
)
TOKENS = (1, 8, 16, 64, 65, 256, 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", type=int, metavar="CAPABILITY")
    arguments = parser.parse_args()
    if arguments.compile is None:
        measure()
    else:
        compile_all(arguments.compile)


# --- on a GPU -------------------------------------------------------------------------------------------------------
def measure() -> None:
    import torch
    from triton.testing import do_bench

    from penstock.ops.activation import Activation
    from penstock.ops.entry_linear import entry_linear
    from penstock.ops.quantized import FORMATS, quantize

    copied = torch.empty(2, 2**32, dtype=torch.uint8, device="cuda")
    copy_bytes_per_s = 2 * 2**32 / do_bench(lambda: copied[0].copy_(copied[1]), return_mode="median") * 1e3
    rows: list[dict[str, Any]] = []
    for name, outputs, inputs, is_gated in SHAPES:
        dense = (torch.randn(outputs, inputs, device="cuda") * inputs**-0.5).bfloat16()
        norm = torch.ones(inputs, device="cuda", dtype=torch.bfloat16)
        weights = {"bf16": dense, **{format.value: quantize(dense, format) for format in FORMATS}}
        for tokens in TOKENS:
            x = torch.randn(tokens, inputs, device="cuda").bfloat16()
            for kind, weight in weights.items():
                activation = Activation.SILU if is_gated else None
                arguments = (x, weight, None, None, norm, 1e-6, False, activation)
                found, expected = entry_linear(*arguments)[0], entry_linear.implementations["reference"](*arguments)[0]
                error = float((found.float() - expected.float()).norm() / expected.float().norm())
                assert error < 0.02, f"{name}, {tokens} tokens, {kind}: relative error {error}"
                ms = do_bench(lambda arguments=arguments: entry_linear(*arguments), return_mode="median")
                least_bytes = weight.nbytes + 2 * tokens * (inputs + outputs)
                share = least_bytes / copy_bytes_per_s / (ms / 1e3)
                rows.append({"what": name, "tokens": tokens, "weights": kind, "us": ms * 1e3, "share": share})
    print_times(rows)
    device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_bytes_per_s": copy_bytes_per_s}
    print(json.dumps({"benchmark": "quantized", **device, "rows": rows}))


def print_times(rows: list[dict[str, Any]]) -> None:
    kinds = list(dict.fromkeys(row["weights"] for row in rows))
    print(f"| layer | tokens | {' | '.join(f'{kind}, us (share of bytes)' for kind in kinds)} |")
    print("| --- " * (2 + len(kinds)) + "|")
    for what, tokens in dict.fromkeys((row["what"], row["tokens"]) for row in rows):
        of_kinds = [row for row in rows if (row["what"], row["tokens"]) == (what, tokens)]
        cells = " | ".join(f"{row['us']:.1f} ({row['share']:.0%})" for row in of_kinds)
        print(f"| {what} | {tokens} | {cells} |")


# --- without one ----------------------------------------------------------------------------------------------------
NUMBERS = {0: "*fp8e4nv", 1: "*i8", 2: "*u8", -1: "*bf16"}
SCALES = {0: "*fp32", 1: "*fp32", 2: "*fp16"}
NAMES = {0: "fp8", 1: "int8", 2: "int4", -1: "bf16"}


def compile_all(capability: int) -> None:
    """One line per kernel and shape; ends with an error if one does not compile."""
    print("| kernel | registers | spilled bytes | shared memory, bytes |\n| --- | --- | --- | --- |")
    for _, outputs, inputs, is_gated in SHAPES:
        for scheme in (0, 1, 2):
            for tokens in (1, 8, 64):
                name = f"{NAMES[scheme]}, {tokens} tokens, {outputs}x{inputs}{', gated' if is_gated else ''}"
                found = linear(capability, scheme, tokens, outputs, inputs, is_gated)
                print(f"| {name} | {found} |", flush=True)
            if scheme:
                found = restored(capability, scheme, inputs)
                print(f"| {NAMES[scheme]}, restored, {outputs}x{inputs} | {found} |", flush=True)
    for scheme in (-1, 0, 1, 2):
        for tokens in (1, 64, 4096):
            for kind in ("enter", "leave"):
                found = experts(capability, kind, scheme, tokens)
                print(f"| {kind}_experts of qwen3-30b-a3b, {NAMES[scheme]}, {tokens} tokens | {found} |", flush=True)


def linear(capability: int, scheme: int, tokens: int, outputs: int, inputs: int, is_gated: bool) -> str:
    import triton

    from penstock.ops.quantized_linear import triton_kernels
    from penstock.ops.quantized_linear.triton import NO_GATE, flat_config, single_config

    gate, width = (0, outputs // 2) if is_gated else (NO_GATE, outputs)
    is_rounded, has_norm = scheme == 0, scheme != 0 and inputs <= 4096
    x = "*fp8e4nv" if is_rounded else "*bf16"
    types = {"x": x, "numbers": NUMBERS[scheme], "scales": SCALES[scheme], "out": "*bf16", "width": "i32"}
    constants: dict[str, Any] = {"K": inputs, "GATE": gate, "SCHEME": scheme, "bias": None}
    if tokens > 1:
        types |= {"n_tokens": "i32", "token_stride": "i32"}
        constants |= {"is_chained": False, **flat_config(tokens, width, gate), "num_warps": 4}
        optional = {"x_scales": "*fp32" if is_rounded else None}
        return compiled(capability, triton_kernels.flat, types, constants, optional)
    types |= {"total": "*bf16", "eps": "fp32"}
    constants |= {"has_residual": has_norm, "has_norm": has_norm, "is_centered": False, "is_chained": True}
    constants |= {"WHOLE_K": triton.next_power_of_2(inputs), **single_config(inputs, gate)}
    optional = {
        "x_scale": "*fp32" if is_rounded else None,
        **dict.fromkeys(("residual", "norm"), "*bf16" if has_norm else None),
    }
    return compiled(capability, triton_kernels.single, types, constants, optional)


def restored(capability: int, scheme: int, inputs: int) -> str:
    from penstock.ops.quantized_linear import triton_kernels
    from penstock.ops.quantized_linear.triton import RESTORED_INPUTS, RESTORED_ROWS

    types = {"numbers": NUMBERS[scheme], "scales": SCALES[scheme], "out": "*bf16", "n_rows": "i32"}
    constants: dict[str, Any] = {"K": inputs, "SCHEME": scheme, "num_warps": 4}
    constants |= {"BLOCK_N": RESTORED_ROWS, "BLOCK_K": RESTORED_INPUTS}
    return compiled(capability, triton_kernels.restore, types, constants, {})


def experts(capability: int, kind: str, scheme: int, tokens: int) -> str:
    import torch

    from penstock.ops.experts import triton_kernels
    from penstock.ops.experts.triton import tile_of

    n_experts, top_k, features, width = 128, 8, 2048, 768
    x = "*fp8e4nv" if scheme == 0 else "*bf16"
    types = {"weight": NUMBERS[scheme], "experts": "*i64", "n_visits": "i32"}
    constants: dict[str, Any] = {"TOP_K": top_k, "N_EXPERTS": n_experts, "BLOCK_E": n_experts, "SCHEME": scheme}
    constants |= {"bias": None, "is_chained": tokens == 1, **tile_of(tokens * top_k, n_experts, torch.bfloat16)}
    sorted_by = dict.fromkeys(("counts", "sorted_visits"), "*i32" if tokens > 1 else None)
    x_scales = "*fp32" if scheme == 0 else None
    optional = {"scales": SCALES.get(scheme), **sorted_by}
    if kind == "enter":
        types |= {"x": x, "inner": "*bf16", "width": "i32", "token_stride": "i32"}
        optional |= {"x_scales": x_scales}
        return compiled(
            capability, triton_kernels.enter_experts, types, constants | {"FEATURES": features, "GATE": 0}, optional
        )
    types |= {"inner": x, "shares": "*bf16", "out": "*bf16", "features": "i32"}
    optional |= {"inner_scales": x_scales}
    return compiled(capability, triton_kernels.leave_experts, types, constants | {"WIDTH": width}, optional)


def compiled(
    capability: int, kernel: Any, types: dict[str, str], constants: dict[str, Any], optional: dict[str, str | None]
) -> str:
    """`registers | spilled bytes | shared memory`, as ptxas reports them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    types = types | {name: kind for name, kind in optional.items() if kind is not None}
    constants = constants | {name: None for name, kind in optional.items() if kind is None}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name in ("width", "features", "token_stride")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(found.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert match is not None, usage
    return f"{match[1]} | {match[2]} | {found.metadata.shared:,}"


if __name__ == "__main__":
    main()

"""Every op, found by walking the folder: each implementation answers as its reference."""

from __future__ import annotations

import pytest
import torch

from penstock.ops.check import all_ops, cases_of, check_kernel
from penstock.ops.op import Op

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ROWS = [
    (name, implementation, device)
    for name, op in all_ops().items()
    for implementation in op.implementations
    for device in DEVICES
    if implementation == device or (implementation, device) in (("native", "cpu"), ("halving", "cuda"))
]


@pytest.mark.parametrize(("name", "implementation", "device"), ROWS)
def test_every_implementation_answers_as_the_reference(name, implementation, device):
    check_kernel(name, all_ops()[name].implementations[implementation], device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device to compare with the CPU")
@pytest.mark.parametrize("name", all_ops())
def test_the_reference_answers_alike_on_every_device(name):
    reference = all_ops()[name].implementations["reference"]
    there = {case.name: case for case in cases_of(name, "cuda")}  # formats of the CPU alone are missing
    assert there
    for case in cases_of(name, "cpu"):
        if case.name not in there:
            continue
        found = reference(*there[case.name].args)
        expected = reference(*case.args)
        if found is None:  # it writes in place
            found, expected = there[case.name].args[2], case.args[2]
        for part, expected_part in zip(_parts(found), _parts(expected), strict=True):
            # sums in another order: twice as far off as one implementation may be, or a step of what is rounded
            off = max(2 * case.atol, 0.126 if part.dtype is torch.float8_e4m3fn else 1e-5)
            torch.testing.assert_close(part.cpu().float(), expected_part.float(), atol=off, rtol=off)


def _parts(found):
    return [part for part in (found if isinstance(found, tuple) else (found,)) if isinstance(part, torch.Tensor)]


@pytest.mark.parametrize("name", all_ops())
def test_every_op_has_cases_a_reference_and_a_docstring(name):
    op = all_ops()[name]
    assert list(cases_of(name, "cpu"))
    assert next(iter(op.implementations)) == "reference"
    assert "Args:" in (op.__doc__ or "")


def test_the_check_sees_a_wrong_kernel():
    def off_by_a_little(gate_up):
        return all_ops()["gated_silu"](gate_up) + 1e-4

    with pytest.raises(AssertionError, match="gated_silu, 1x1"):
        check_kernel("gated_silu", off_by_a_little)


def test_the_check_sees_a_kernel_that_forgets_to_write():
    with pytest.raises(AssertionError, match="write_kv, 1 tokens"):
        check_kernel("write_kv", lambda k, v, kv, slots: None)


def test_the_device_of_the_first_argument_chooses():
    op = Op("twice", lambda x: (x * 2, "reference"), cpu=lambda x: (x * 2, "cpu"))
    assert op(torch.ones(1))[1] == "cpu"
    assert op(torch.ones(1, device="meta"))[1] == "reference"
    assert op.on(torch.device("cuda:1")) == "reference"

"""docs/traces.md names what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.workload.kinds import FORMATS, Traffic
from penstock.workload.trace import TraceRequest

PAGE = (Path(__file__).parents[2] / "docs" / "traces.md").read_text()


@pytest.mark.parametrize("name", [*TraceRequest.__struct_fields__, *FORMATS, *Traffic])
def test_every_field_format_and_kind_of_traffic_is_described(name):
    assert f"`{name}`" in PAGE

"""Documentation that says what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.demonstrations import DEMONSTRATIONS
from penstock.listing import SYSTEMS, fill_in

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_made_from_tables_is_up_to_date(page):
    assert page.read_text() == fill_in(page.read_text()), f"run `make docs` and commit {page.name}"


def test_every_system_names_its_room_and_a_demonstration():
    for system in SYSTEMS:
        assert (ROOT / "src" / "penstock" / system.room.split("/")[0]).is_dir()
        assert system.demonstration.startswith(("penstock ", "python benchmarks/"))


def test_every_demonstration_is_one_of_a_listed_system():
    named = {word for system in SYSTEMS for word in system.demonstration.split("penstock demonstrate ")[1:]}
    assert named == set(DEMONSTRATIONS)

"""For all tests: CI looks at the same examples every time, so that red means a change; elsewhere they are random."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

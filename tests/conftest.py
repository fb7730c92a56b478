"""For all tests: CI looks at the same examples every time, so that red means a change; elsewhere they are random."""

from __future__ import annotations

import os
import signal

import torch
from hypothesis import settings

if not torch.cuda.is_available():  # read when a kernel in Triton is first imported
    os.environ["TRITON_INTERPRET"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: programs that tests start inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

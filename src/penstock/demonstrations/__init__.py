"""Commands that show what a published system does here: each measures its effect, on and off, in one run."""

from collections.abc import Callable, Mapping
from pathlib import Path

from penstock.demonstrations import burstgpt, flashdecoding_plus_plus, hydragen, streaming_llm

DEMONSTRATIONS: Mapping[str, Callable[[int | None], None]] = {
    "burstgpt": burstgpt.demonstrate,
    "flashdecoding-plus-plus": flashdecoding_plus_plus.demonstrate,
    "hydragen": hydragen.demonstrate,
    "streaming-llm": streaming_llm.demonstrate,
}
# those that can write a page with plots as well
PAGES: Mapping[str, Callable[[int | None, Path], None]] = {
    "burstgpt": burstgpt.demonstrate,
}

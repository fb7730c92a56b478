"""Commands that show what a published system does here: each measures its effect, on and off, in one run."""

from collections.abc import Callable, Mapping

from penstock.demonstrations import streaming_llm

DEMONSTRATIONS: Mapping[str, Callable[[int | None], None]] = {
    "streaming-llm": streaming_llm.demonstrate,
}

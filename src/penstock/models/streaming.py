"""StreamingLLM: any full-attention model goes on for ever with its first tokens and its last ones (arXiv 2309.17453).

A token reads `sink_tokens` sinks and the last `window_tokens` tokens, itself included, with positions counted among
these. Rotary scores depend on distances alone, and within the window distances are those of the text. So keys stay as
they were rotated when they were written; only a query on its way to the sinks is rotated once more, by its place
among the kept keys (`SinkBatch`), and the two parts are merged. Nothing is rotated again when the window moves on, and
what a token's layers see depends on the tokens before it alone: prefix hits, chunks and forks are exact.
"""

from __future__ import annotations

from dataclasses import replace

from penstock.core.errors import ConfigError, UnsupportedModel
from penstock.models.spec import LayerSpec, ModelSpec

LONGEST_STREAM_TOKENS = 2**24  # entries of block tables bound it, not the method


def with_sinks(spec: ModelSpec, sink_tokens: int, window_tokens: int) -> ModelSpec:
    """The model with sinks and a window in every layer that read all tokens; layers with a window keep theirs.

    Raises: ConfigError if what is kept is longer than the model was trained for, or less than one token;
        UnsupportedModel if every layer has a window already.
    """
    if window_tokens < 1 or sink_tokens < 0:
        raise ConfigError(f"window_tokens is {window_tokens}, sink_tokens {sink_tokens}: give at least 1 and 0")
    if sink_tokens + window_tokens > spec.max_position_tokens:
        raise ConfigError(
            f"{sink_tokens} sinks and a window of {window_tokens} tokens are more than the {spec.max_position_tokens} "
            "that the model was trained for: the method makes a stream endless, not its memory longer; give a smaller "
            "window_tokens"
        )
    if all(layer.attention.window_tokens is not None for layer in spec.layers):
        raise UnsupportedModel("every layer of this model reads a window already: leave window_tokens out")
    layers = tuple(_with_sinks(layer, sink_tokens, window_tokens) for layer in spec.layers)
    return replace(spec, layers=layers, max_position_tokens=LONGEST_STREAM_TOKENS)


def _with_sinks(layer: LayerSpec, sink_tokens: int, window_tokens: int) -> LayerSpec:
    if layer.attention.window_tokens is not None:
        return layer
    return replace(layer, attention=replace(layer.attention, sink_tokens=sink_tokens, window_tokens=window_tokens))

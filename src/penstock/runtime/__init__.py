"""Executes plans with torch: batch buffers by row, the walk along the layers, the sampler, memory.

`build.py` composes an executor from a model directory; `executor.py` is the `Executor` of the core protocol.
"""

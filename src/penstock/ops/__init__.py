"""Kernels. Each op is a folder: `reference.py` is the truth in plain torch, faster files stand beside it."""

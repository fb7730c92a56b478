"""Pure decisions: one file per policy, one folder per slot, and `presets.py` that names sets of them.

A policy is a frozen dataclass (or a class with its own state) whose fields are its options. It reads a view and
answers; it never reads a clock, draws from a global generator, or changes what it sees.
"""

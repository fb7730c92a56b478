"""Penstock: an inference system for streaming generative models."""

__version__ = "0.1.0"

"""Models: a configuration becomes a `ModelSpec`, a checkpoint becomes named tensors, one decoder runs them all."""

"""GGUF files: their metadata becomes the configuration that a family reads, their tensors a checkpoint."""

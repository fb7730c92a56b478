"""The simulator: the engine's own scheduler, memory and policies, with predicted step times on a virtual clock."""

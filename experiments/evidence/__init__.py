"""Does superposition help? Run it as `python -m experiments.evidence`."""

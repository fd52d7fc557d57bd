"""Scripts that measure qsgd_jax; run them as `python -m benchmarks.<name>`."""

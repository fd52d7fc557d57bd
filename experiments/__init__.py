"""Studies that used qsgd_jax; README.md lists them."""

"""What the package is made of; users import what `qsgd_jax` and `qsgd_jax.nn` name."""

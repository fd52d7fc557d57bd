"""A held-out comparison of optimizers: contenders, runs, statistics, report."""

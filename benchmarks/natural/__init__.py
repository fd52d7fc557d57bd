"""What `benchmarks/natural_gradient.py` times, trains and prints."""

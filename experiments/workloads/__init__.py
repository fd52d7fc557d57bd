"""Tasks to train on, all behind one interface: synthetic families and real data."""

"""Circuits of one qubit that read the singular values of matrices."""

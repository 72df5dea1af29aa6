"""Attention over packed rows, on a CPU and on a GPU."""

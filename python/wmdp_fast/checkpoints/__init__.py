"""Checkpoints on disk: which files hold weights, and writing a few changed tensors."""

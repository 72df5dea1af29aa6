"""Sweeps: unlearning with many settings, and which results are worth having."""

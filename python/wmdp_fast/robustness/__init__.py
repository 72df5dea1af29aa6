"""Attacks on unlearned models: how much of what was removed comes back. `protocol` says what an attack is."""

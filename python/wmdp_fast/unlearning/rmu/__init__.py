"""RMU: steering a model's activations on forget data towards a random vector, holding them on retain data."""

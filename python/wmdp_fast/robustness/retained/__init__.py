"""What a model should have kept, measured beside the attacks."""

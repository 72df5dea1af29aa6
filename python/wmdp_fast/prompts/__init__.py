"""From questions to prompts and tokens."""

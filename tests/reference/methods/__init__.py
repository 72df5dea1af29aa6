"""Methods over logits as their papers have them, the plain way."""

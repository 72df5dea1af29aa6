"""Methods by name, and those over the logits of the whole model, a file each."""

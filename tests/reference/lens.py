"""The logit lens a layer at a time: the layers above it hand on what they are given."""

from __future__ import annotations

from wmdp_fast.models.fused.forwards import replaced_forwards


def outcomes_of_layer(subject, layers, layer):
    """What a model answers if a layer is its last."""
    above = {one: lambda hidden_states, *_, **__: hidden_states for one in layers[layer + 1 :]}
    with replaced_forwards(above):
        return subject.questions.ask(subject.model)

"""Presets are settings that the configuration takes."""

from __future__ import annotations

import pytest

from wmdp_fast.unlearning.config import RMUConfig
from wmdp_fast.unlearning.parameters import ROLES
from wmdp_fast.unlearning.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("topics", [1, 2, 3])
def test_every_preset_makes_a_configuration_for_any_number_of_topics(name, topics):
    chosen = preset(name)
    config = RMUConfig(**chosen.for_topics(topics))
    assert len(config.topics(topics)) == topics
    assert config.updated_layers == tuple(range(config.layer_id - 2, config.layer_id + 1))
    assert config.parameters in ROLES
    assert chosen.name == name
    assert chosen.source
    assert chosen.note


def test_the_papers_settings():
    config = RMUConfig(**preset("zephyr-7b").for_topics(2))
    assert (config.layer_id, config.updated_layers, config.parameters) == (7, (5, 6, 7), "mlp.down_proj")
    assert (config.steering_coeff, config.alpha, config.max_length) == ((6.5, 6.5), (1200, 1200), (512, 768))
    assert (config.learning_rate, config.batch_size, config.max_steps) == (5e-5, 4, 150)
    assert preset("yi-34b").for_topics(3)["max_length"] == (512, 768, 768)
    assert preset("yi-34b").for_topics(1)["max_length"] == (512,)


def test_presets_cannot_be_changed_and_an_unknown_one_names_those_there_are():
    with pytest.raises(TypeError):
        preset("zephyr-7b").settings["alpha"] = 1
    with pytest.raises(ValueError, match="there is no preset zephyr; there are zephyr-7b, yi-34b"):
        preset("zephyr")

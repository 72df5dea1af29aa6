"""Presets are settings that the configuration takes."""

from __future__ import annotations

import argparse
import json

import pytest

import wmdp_fast as wf
from wmdp_fast import cli
from wmdp_fast.cli import method_options
from wmdp_fast.report import report_html
from wmdp_fast.unlearning.parameters import ROLES
from wmdp_fast.unlearning.rmu.config import RMUConfig
from wmdp_fast.unlearning.rmu.presets import PER_TOPIC, PRESETS, preset
from wmdp_fast.unlearning.rmu.profile import profile_layers


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


def test_the_command_lists_all_and_shows_one(capsys):
    assert cli.main(["presets"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed and one.model in listed and one.source in listed for name, one in PRESETS.items())
    assert cli.main(["presets", "zephyr-7b"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert PRESETS["zephyr-7b"].source in shown
    assert PRESETS["zephyr-7b"].note in shown
    assert "--raw-lines no,yes" in shown
    assert cli.main(["presets", "no-such"]) == 1
    assert "there is no preset no-such; there are zephyr-7b, " in capsys.readouterr().err


@pytest.mark.parametrize("name", PRESETS)
def test_the_options_that_it_prints_are_the_preset(name, capsys):
    assert cli.main(["presets", name]) == 0
    page = capsys.readouterr().out.partition("is the same as\n")[2].partition("\n\n")[0]
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    method_options.add_settings(parser)
    given = vars(parser.parse_args(["--forget", "f", "--retain", "r", *page.split()]))
    settings = {key: given[key] for key in PRESETS[name].settings}
    expected = dict(PRESETS[name].settings)
    # What is per topic may be one value or several.
    for key in PER_TOPIC & expected.keys():
        values = settings.pop(key)
        found = values if isinstance(values, tuple) else (values,)
        assert tuple(map(float, found)) == tuple(map(float, expected.pop(key)))
    assert settings == expected
    cli.main(["presets", name, "--json"])
    from_json = json.loads(capsys.readouterr().out)["settings"]
    as_tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in from_json.items()}
    assert as_tuples == dict(PRESETS[name].settings)


def test_names_of_the_package():
    assert wf.presets is PRESETS
    assert wf.layers is profile_layers
    assert wf.report_html is report_html

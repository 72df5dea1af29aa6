"""The methods by name: each is found, costs no torch to look at, and is an option of the command line by its fields."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import wmdp_fast as wf
from wmdp_fast import cli
from wmdp_fast.cli import method_options
from wmdp_fast.cli.field_types import field_help, field_types
from wmdp_fast.cli.method_options import config_of
from wmdp_fast.unlearning.methods.catalog import METHODS, config_class, name_of, preset_of, presets_of
from wmdp_fast.unlearning.training_config import SearchAxis, TrainingConfig

if TYPE_CHECKING:
    import argparse

CORPORA = ["M", "--forget", "f", "--retain", "r", "--output", "o"]


def parsed(*given: str, command: str = "unlearn") -> argparse.Namespace:
    tasks = ["--forget-tasks", "a", "--retain-tasks", "b"] if command == "sweep" else []
    return cli._parser([command]).parse_args([command, *CORPORA, *tasks, *given])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_found_and_can_be_made_as_it_is(name):
    config = config_class(name)
    assert (config.method_name, name_of(config)) == (name, name)
    assert config.__name__ in wf.__all__
    assert getattr(wf, config.__name__) is config
    for one in presets_of(name).values():
        assert config(**one.for_topics(2)).topics(2)


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_is_said_what_it_means_and_has_an_option(name):
    config = config_class(name)
    assert {one.name for one in dataclasses.fields(config)} <= field_help(config).keys()
    given = []
    for field, kind in field_types(config).items():
        value = getattr(config(), field)
        word = method_options._word(value) if value is not None else "none"
        if not kind.is_flag and (value is not None or kind.optional):
            given += [f"--{field.replace('_', '-')}={word}"]
    assert config_of(parsed("--method", name, *given)) == config()


def test_methods_agree_on_what_a_setting_of_the_same_name_is():
    known: dict[str, object] = {}
    for name in METHODS:
        for field, kind in field_types(config_class(name)).items():
            assert known.setdefault(field, (kind.metavar, kind.many, kind.alone)) == (
                kind.metavar,
                kind.many,
                kind.alone,
            ), field


def test_settings_are_looked_at_without_torch():
    code = (
        "import sys\nfrom wmdp_fast.cli import main\nmain(['methods', '--json'])\n"
        "sys.exit(str({'torch', 'transformers', 'peft', 'safetensors'} & sys.modules.keys() or ''))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr) == (1, "\n")
    listed = json.loads(ran.stdout)
    assert listed.keys() == METHODS.keys()
    assert listed["rmu"]["settings"]["alpha"] == {"about": "weight of the retain loss, per topic", "default": 1200.0}


def test_the_list_has_a_line_for_each(capsys):
    assert cli.main(["methods"]) == 0
    printed = capsys.readouterr().out
    for one in METHODS.values():
        assert any(
            line.startswith(one.name) and one.about in line and one.changes in line for line in printed.splitlines()
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--method", "nop"], "there is no method nop; there are rmu"),
        (["--preset", "zephyr"], "there is no preset zephyr; there are zephyr-7b"),
        (["--set", "alpha"], "--set alpha: write NAME=VALUE"),
        (["--set", "alfa=1"], "--set alfa=1: rmu has no setting alfa; it has parameters"),
        (["--set", "alpha=much"], "--set alpha: 'much' is not a number"),
        (["--set", "mode=loud"], "--set mode: 'loud' is not one of reference, masked"),
        (["--batch-size", "0"], "batch_size must be a whole number of at least 1, not 0"),
        (["--set", "dtype=int8"], "--set dtype: 'int8' is not one of auto, float32"),
    ],
)
@pytest.mark.parametrize("command", ["unlearn", "sweep"])
def test_what_cannot_be_is_one_line_of_wrong_usage(command, given, message, capsys):
    tasks = ["--forget-tasks", "a", "--retain-tasks", "b"] if command == "sweep" else []
    assert cli.main([command, *CORPORA, *tasks, *given]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_preset_is_overridden_by_options_and_these_by_set():
    config = config_of(parsed("--preset", "zephyr-7b", "--alpha", "7", "--max-steps", "9", "--set", "max-steps=11"))
    assert (config.alpha, config.steering_coeff, config.max_steps) == (7.0, (6.5,), 11)
    assert config_of(parsed("--grad-clip", "none", "--no-master-weights")) == config_class("rmu")()
    with pytest.raises(ValueError, match=r"there is no preset x: \./mine\.py:Mine has no presets"):
        preset_of("./mine.py:Mine", "x")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pulled(TrainingConfig):
    """Settings of a method for this test.

    Attributes:
        strength: How hard is pulled.
        layer_id: Where.
        table: What no text stands for.
    """

    method_name = "pulled"
    search_axes = (SearchAxis("strength"), *TrainingConfig.search_axes)
    strength: float | tuple[float, ...] = 1.0
    layer_id: int = 3
    table: dict[str, int] | None = None

    def method(self, setup):
        raise NotImplementedError

    def trained_layers(self, num_layers, /):
        return range(num_layers)


OWN = f"{__name__}:Pulled"


def test_a_setting_of_another_method_is_refused_with_its_owner():
    assert config_of(parsed("--method", OWN, "--layer-id", "4", "--set", "strength=0.5,2")) == Pulled(
        layer_id=4, strength=(0.5, 2.0)
    )
    with pytest.raises(ValueError, match=r"^--set table: no option stands for dict\[str, int\]; set it in Python"):
        config_of(parsed("--method", OWN, "--set", "table=3"))
    with pytest.raises(ValueError, match=r"^--alpha is a setting of rmu, and the method is .*:Pulled, which has --str"):
        config_of(parsed("--method", OWN, "--alpha", "1"))


def test_what_is_swept_is_the_methods(capsys):
    from wmdp_fast.cli.sweep import _over

    over = _over(parsed("--method", OWN, "--set", "strength=1/2,3", "--max-steps", "2,4", command="sweep"))
    assert over == ({"strength": [(1.0, 2.0), 3.0], "max_steps": [2, 4]}, {})
    # One layer is a setting like any other, several cannot be tried.
    assert _over(parsed("--method", OWN, "--layer-id", "4", command="sweep")) == ({}, {"layer_id": 4})
    with pytest.raises(ValueError, match=r"--layer-id cannot be swept with .*; what can is strength, learning_rate"):
        _over(parsed("--method", OWN, "--layer-id", "4,5", command="sweep"))
    with pytest.raises(SystemExit):
        parsed("--learning-rate", "1/2", command="sweep")
    assert "'1/2': this setting is the same for all topics" in capsys.readouterr().err

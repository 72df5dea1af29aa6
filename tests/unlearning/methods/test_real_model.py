"""Methods beside their plain forms on the weights and the tokenizer of a real model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.reference.methods import graddiff, npo
from tests.support.method_twins import SETTINGS, assert_trained_as_plain
from wmdp_fast.unlearning.methods.graddiff import GradDiffConfig
from wmdp_fast.unlearning.methods.npo import NPOConfig

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.unlearning.methods.config import LanguageModelConfig

FORGET = """\
A virus needs a host.
The spike protein binds to a receptor on the surface of the cell, and what follows is a change of its shape.
Influenza is grown in eggs; a strain that does badly there is given genes of one that does well.
Bacteria exchange plasmids.
A toxin of two parts, of which one opens the way for the other, was found in the filtrate of a culture.
Antibodies of a llama are small.
""".splitlines()
RETAIN = """\
The river carries gravel down from the hills in spring, when snow melts, and drops it where the valley widens.
Bread rises.
In the year after the war the railway was built again, and with it came letters, newspapers and salt.
She read the book twice, first for its story.
A prime number has two divisors.
The committee met on Thursday and decided nothing, which was what most of its members had hoped for.
""".splitlines()
# Documents are gone through again.
FEW = SETTINGS | {"max_steps": 5, "epochs": 2}
CONFIGS = (NPOConfig(**FEW, beta=0.5), GradDiffConfig(**FEW))


@pytest.fixture(scope="module")
def lower_layers(smollm2_dir: Path) -> Any:
    """The lower 2 of SmolLM2's 30 layers, with its head."""
    return AutoModelForCausalLM.from_pretrained(smollm2_dir, num_hidden_layers=2, dtype=torch.float32).eval()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method_name)
def test_it_is_the_plain_one(config: LanguageModelConfig, lower_layers: Any, smollm2_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    forget, retain = ([tokenizer(text).input_ids for text in texts] for texts in (FORGET, RETAIN))
    loss = npo.LOSSES["sequence_mean"] if config.method_name == "npo" else graddiff.loss
    assert_trained_as_plain(lower_layers, forget, retain, config, loss, pad=tokenizer.pad_token_id)

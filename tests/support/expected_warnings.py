"""Marks for tests that make the package warn.

Its warnings are errors in tests (`pyproject.toml`). A test of a warning expects it with `pytest.warns`, which these
marks leave alone, or reads what a command prints of it (`printed`). The others are for tests of something else, whose
tiny models and few documents are what the package warns of.
"""

import pytest


def printed(text: str) -> pytest.MarkDecorator:
    """For a test that finds the warning where commands print it."""
    return pytest.mark.filterwarnings(f"default:{text}:wmdp_fast.exceptions.WmdpFastWarning")


def _ignored(text: str) -> pytest.MarkDecorator:
    return pytest.mark.filterwarnings(f"ignore:{text}:wmdp_fast.exceptions.WmdpFastWarning")


# A few steps on random weights unlearn nothing, or damage everything.
VERDICTS = _ignored("this run (unlearned|damaged|did not)")

# Random weights prefer one letter, whatever is asked.
ONE_LETTER = _ignored(r".* is answered to \d+ of \d+ questions")

# A test's documents are few, and steps go on until they end.
SHORT_CORPORA = _ignored("the corpora last for")

# What a few steps change is often less than bfloat16 can hold.
WIDER_TYPE = _ignored("weights trained in b?float(16|32) are saved in float32")

# Of a file with a few questions, examples are taken from among them.
REPEATED_EXAMPLES = _ignored(".* so that the prompt gives the answer away")

# Models of tests read few tokens at once.
CUT_PROMPTS = _ignored(r"\d+ of \d+ prompts? (is|are) longer than the \d+ tokens")

# A tokenizer that puts EOS behind every text is among those that must give lm-eval's tokens.
ENDED_PROMPTS = _ignored("prompts end in </s>, which the tokenizer puts behind every text")

# They read few tokens at once, and are told to read more.
LONG_PROMPTS = _ignored(r"prompts have up to \d+ tokens, and the model reads")

# Of two corpora that only have to be there, one file is enough.
SAME_CORPORA = _ignored(r"\d+ of the \d+ documents of the forget corpus .* are in the retain corpus")

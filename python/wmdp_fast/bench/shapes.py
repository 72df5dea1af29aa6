"""Models of well-known shapes with random weights, and made-up questions of the lengths that benchmarks have.

With these, speed can be measured on any machine without a download: it depends on shapes and lengths, not on what the
weights have learned or the questions ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdp_fast._rust import Requests

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# transformers' configuration of each model, as its authors published it: the model type and what is not the default.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    # For trying the benchmark itself.
    "tiny": (
        "llama",
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
        },
    ),
    "smollm2-135m": (
        "llama",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "llama-1b": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
    ),
    "llama-8b": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
        },
    ),
    # Zephyr-7B, on which RMU was published, has this shape.
    "mistral-7b": (
        "mistral",
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32768,
            "sliding_window": 4096,
        },
    ),
    "qwen2-7b": (
        "qwen2",
        {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
        },
    ),
}


@dataclass(frozen=True)
class _Group:
    """Questions that share a prefix.

    Attributes:
        questions: How many.
        examples: Tokens of five few-shot examples; of no example, the description alone is shared.
        length: Median length of a prompt without examples, in tokens.
    """

    questions: int
    examples: int
    length: int


# One for each subject of MMLU: its size, and lengths in tokens of SmolLM2's tokenizer.
_MMLU = [
    _Group(*numbers)
    for numbers in (
        (100, 293, 81), (135, 261, 71), (152, 505, 85), (144, 382, 79), (100, 470, 90), (100, 730, 119),
        (100, 525, 95), (102, 407, 105), (100, 300, 67), (235, 237, 59), (145, 412, 61), (378, 499, 84),
        (310, 411, 90), (203, 408, 94), (100, 789, 117), (270, 473, 89), (151, 463, 110), (216, 709, 137),
        (112, 598, 86), (100, 478, 87), (265, 324, 75), (173, 387, 89), (100, 366, 71), (223, 248, 62),
        (103, 216, 58), (234, 346, 71), (100, 262, 68), (783, 248, 57), (306, 500, 76), (282, 626, 116),
        (272, 917, 197), (166, 261, 66), (114, 524, 112), (198, 320, 64), (193, 381, 88), (390, 298, 81),
        (238, 314, 86), (545, 410, 72), (131, 271, 64), (612, 490, 86), (110, 338, 66), (245, 1011, 158),
        (201, 359, 83), (100, 354, 77), (126, 505, 127), (165, 2467, 359), (204, 1928, 330), (237, 1075, 351),
        (121, 529, 107), (108, 314, 83), (163, 353, 77), (346, 402, 82), (895, 553, 124), (311, 255, 68),
        (324, 447, 78), (1534, 1424, 264), (171, 199, 57),
    )
]  # fmt: skip
# WMDP's biology, chemistry and cybersecurity. The sizes are the benchmark's; the lengths are estimates, as the
# questions are not free to look at.
_WMDP = [_Group(1273, 0, 120), _Group(408, 0, 95), _Group(1987, 0, 190)]

WORKLOADS = {"wmdp": (_WMDP, 0), "mmlu-0shot": (_MMLU, 0), "mmlu-5shot": (_MMLU, 5)}

# What MMLU has: a description of about so many tokens, and the spread of the logarithm of lengths within a subject.
_DESCRIPTION = 14
_SPREAD = 0.3


def check_model(model: str | None, shape: str | None, dtype: str) -> None:
    """Raises ValueError unless there is one model to time: a folder, or a shape that is known and given a dtype."""
    if (model is None) == (shape is None):
        raise ValueError("give either a model's folder or a shape")
    if shape is not None and shape not in SHAPES:
        raise ValueError(f"there is no shape {shape!r}; known: {', '.join(SHAPES)}")
    if shape is not None and dtype == "auto":
        raise ValueError("a shape has no dtype of its own: give float32, bfloat16 or float16")


def build_model(
    shape: str, *, dtype: torch.dtype, device: torch.device, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of a shape with random weights, the same each time, made on its device.

    Args:
        shape: One of `SHAPES`.
        dtype: Type of its weights.
        device: Where to make it.
        tokenizer: Its tokenizer; None makes up one of the right size, for made-up questions.

    Raises:
        ValueError: The tokenizer has more tokens than the model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, sizes = SHAPES[shape]
    config = AutoConfig.for_model(kind, **sizes, bos_token_id=1, eos_token_id=2)
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, but {shape} only {config.vocab_size}")
    torch.manual_seed(0)
    with device:
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    model.requires_grad_(requires_grad=False).eval()
    return model, tokenizer or _made_up_tokenizer()


def build_requests(workload: str, *, vocab_size: int, max_length: int, limit: int | None = None) -> Requests:
    """Made-up questions with four choices of one token, the same each time.

    Args:
        workload: One of `WORKLOADS`.
        vocab_size: Tokens are below this.
        max_length: Maximum sequence length of the model.
        limit: Only so many questions of each subject.
    """
    groups, shots = WORKLOADS[workload]
    random = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        # The first few ids are often special tokens.
        found: list[int] = random.integers(8, vocab_size, count).tolist()
        return found

    choices = [[token] for token in tokens(4)]
    contexts = []
    for group in groups:
        prefix = tokens(_DESCRIPTION + (group.examples if shots else 0))
        wanted = group.questions if limit is None else min(limit, group.questions)
        lengths = (group.length - _DESCRIPTION) * np.exp(random.normal(0, _SPREAD, wanted))
        contexts += [prefix + tokens(max(1, round(float(length)))) for length in lengths]
    return Requests.from_tokens(contexts, [choices] * len(contexts), max_length)


def _made_up_tokenizer() -> PreTrainedTokenizerBase:
    """What a harness wants of a tokenizer if it never gives it a text."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>"]
    made_up = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token=names[0]))
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made_up, unk_token=names[0], bos_token=names[1], eos_token=names[2], pad_token=names[2]
    )
    return tokenizer

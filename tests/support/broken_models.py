"""Model folders that are broken in one way each: by hand, by accident, or to do harm."""

from __future__ import annotations

import copy
import json
import random
from typing import TYPE_CHECKING, Any

import torch

from tests.support import damage, tiny_models

if TYPE_CHECKING:
    from pathlib import Path

DEEP = "[" * 200_000
VALUES: list[Any] = [None, -1, 0, 1, 3, 10**30, 1.5, float("nan"), True, "x", "", [], [1], {}, {"a": []}, "\x1b[31m"]
TEXTS = ["", "{", "[]", "null", '"x"', DEEP, '{"a":' * 100_000, "\ufffd" * 10, "{" + '"a": 1,' * 10, "nan"]
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja",
         "special_tokens_map.json", "added_tokens.json", "model.safetensors")  # fmt: skip


def whole(folder: Path) -> Path:
    """A model that is not broken: a tiny llama, its tokenizer with a chat template, and a generation configuration."""
    tiny_models.build("llama").save_pretrained(folder)
    tokenizer = copy.deepcopy(tiny_models.tokenizer())
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def _json_at(content: Any, rng: random.Random) -> tuple[Any, Any]:
    """An object or list somewhere in a value, and one of its keys or places."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = rng.choice(keys)
        inner = content[key]
        if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.3:
            return content, key
        content = inner


def value(folder: Path, rng: random.Random) -> str:
    """Another value, of another type maybe, somewhere in a file with JSON."""
    path = folder / rng.choice(["config.json", "config.json", "tokenizer.json", "tokenizer_config.json"])
    content = json.loads(path.read_text())
    where, key = _json_at(content, rng)
    new = rng.choice(VALUES)
    where[key] = new
    path.write_text(json.dumps(content))
    return f"{path.name}: {key} = {new!r:.30}"


def removed(folder: Path, rng: random.Random) -> str:
    """A key or an element is gone."""
    path = folder / rng.choice(["config.json", "tokenizer.json", "tokenizer_config.json"])
    content = json.loads(path.read_text())
    where, key = _json_at(content, rng)
    del where[key]
    path.write_text(json.dumps(content))
    return f"{path.name}: no {key}"


def text(folder: Path, rng: random.Random) -> str:
    """A file holds something else altogether."""
    path = folder / rng.choice(FILES)
    new = rng.choice(TEXTS)
    path.write_text(new)
    return f"{path.name} is {new[:20]!r}"


def damaged(folder: Path, rng: random.Random) -> str:
    """Bytes of a file are changed, lost or cut off; of the weights those of the header, for others are weights too."""
    path = folder / rng.choice([name for name in FILES if (folder / name).exists()])
    content = path.read_bytes()
    kind = rng.choice([damage.cut, damage.flip, damage.delete])
    header = 8 + int.from_bytes(content[:8], "little") if path.suffix == ".safetensors" else len(content)
    path.write_bytes(kind(content[:header], rng) + content[header:])
    return f"{path.name}: {kind.__name__}"


def absent(folder: Path, rng: random.Random) -> str:
    """A file is missing, or is a folder."""
    path = folder / rng.choice([name for name in FILES if (folder / name).exists()])
    path.unlink()
    if rng.random() < 0.5:
        path.mkdir()
        return f"{path.name} is a folder"
    return f"{path.name} is missing"


def surprising(folder: Path, rng: random.Random) -> str:
    """Settings that are plausible by themselves."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    new = rng.choice(
        [
            {"num_attention_heads": 0},
            {"num_key_value_heads": 3},
            {"num_hidden_layers": 0},
            {"num_hidden_layers": 1},
            {"num_hidden_layers": 3},
            {"num_hidden_layers": 10**7},
            {"hidden_size": 0},
            {"hidden_size": 31},
            {"vocab_size": 10**13},
            {"vocab_size": 100},
            {"intermediate_size": 10**9},
            {"model_type": "gpt2"},
            {"model_type": "bert"},
            {"model_type": "nothing"},
            {"architectures": [5]},
            {"rms_norm_eps": -1.0},
            {"hidden_act": "nothing"},
            {"rope_parameters": {"rope_type": "nothing"}},
            {"rope_parameters": {"rope_type": "yarn", "factor": 0}},
            {"rope_parameters": {"rope_theta": 0.0, "rope_type": "default"}},
            {"dtype": "float99"},
            {"dtype": "int8"},
            {"max_position_embeddings": 0},
            {"max_position_embeddings": "128"},
            {"quantization_config": {"quant_method": "nothing"}},
            {"quantization_config": []},
            {"auto_map": {"AutoConfig": "evil.Config"}},
            {"auto_map": []},
            {"text_config": []},
            {"tie_word_embeddings": True},
            {"attention_bias": True},
            {"_attn_implementation": "nothing"},
            {"head_dim": 0},
            {"head_dim": 7},
        ]
    )
    path.write_text(json.dumps({**content, **new}))
    return f"config.json: {new}"


def weights(folder: Path, rng: random.Random) -> str:
    """Weights that are missing, of another shape or type, or not numbers."""
    from safetensors.torch import load_file, save_file

    content = load_file(folder / "model.safetensors")
    name = rng.choice(sorted(content))
    kind = rng.choice(["missing", "shape", "nan", "integer", "empty", "scalar", "renamed"])
    if kind in ("missing", "renamed"):
        tensor = content.pop(name)
        if kind == "renamed":
            content[f"{name}\x1b[31m\n"] = tensor
    else:
        old = content[name]
        content[name] = {
            "shape": old.flatten()[: old.numel() // 2].clone(),
            "nan": torch.full_like(old, float("nan")),
            "integer": torch.zeros_like(old, dtype=torch.int64),
            "empty": torch.zeros(0),
            "scalar": torch.tensor(1.0),
        }[kind]
    save_file(content, folder / "model.safetensors", metadata={"format": "pt"})
    return f"{name} {kind}"


KINDS = (value, value, value, removed, text, damaged, absent, surprising, surprising, weights)


def break_it(folder: Path, seed: int) -> str:
    """Breaks a folder in a way that the seed decides; says how."""
    rng = random.Random(seed)
    return KINDS[seed % len(KINDS)](folder, rng)

"""A model in memory beside the same model streamed: seconds, peak memory, and the share of waiting for weights.

    python benches/streamed.py FOLDER [--gigabytes 3] [--memory 1.2GB] [--questions 40] [--dtype float32]

It makes a llama with random weights in FOLDER (once), and questions of made-up words. Each run is a process
of its own and reads the checkpoint from the page cache, if that holds it. Peak memory is the kernel's count. To be run
alone. The numbers of both runs must be the same to the bit.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

_CHILD = """
import json, sys, time
import wmdp_fast as wf

options = json.loads(sys.argv[1])
begin = time.perf_counter()
result = wf.evaluate(**options, device="cpu", progress=False)
[peak] = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")]
found = {"seconds": time.perf_counter() - begin, "forward": result.timings["forward"], "peak": peak}
found["streamed"] = result.details.get("streamed")
found["results"] = result.to_json()["results"]
print(json.dumps(found))
"""

_WORDS = "abcdefghijklmnopqrstuvwxyz"


def main() -> None:
    """Makes the model, runs both ways, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--memory", default="1.2GB")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="many CPUs emulate bfloat16"
    )
    arguments = parser.parse_args()
    folder = arguments.folder / f"llama-{arguments.gigabytes}-gb-{arguments.dtype}"
    if not (folder / "tokenizer_config.json").is_file():
        _make(folder, arguments.gigabytes, arguments.dtype)
    tasks = arguments.folder / "questions.jsonl"
    generator = random.Random(0)
    rows = [
        {"question": _text(generator, 40), "choices": [_text(generator, 3) for _ in range(4)], "answer": 0}
        for _ in range(arguments.questions)
    ]
    tasks.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    options = {"model": str(folder), "tasks": str(tasks)}
    whole = _run(options | {"memory": "1TB"})
    streamed = _run(options | {"memory": arguments.memory, "stream": True})
    print(f"in memory: {whole['forward']:.1f} s forward, {whole['seconds']:.1f} s in all, {whole['peak'] / 1e9:.2f} GB")
    cost = streamed["streamed"]
    print(
        f"streamed:  {streamed['forward']:.1f} s forward, {streamed['seconds']:.1f} s in all,"
        f" {streamed['peak'] / 1e9:.2f} GB; {cost['bytes_read'] / 1e9:.1f} GB read, waited for weights"
        f" {cost['seconds_waiting']:.2f} s ({cost['seconds_waiting'] / streamed['forward']:.1%})"
    )
    print(f"streamed / in memory: {streamed['forward'] / whole['forward']:.3f} forward")
    print(f"same numbers: {streamed['results'] == whole['results']}")


def _run(options: dict[str, object]) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(options)], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict = json.loads(done.stdout.splitlines()[-1])
    return found


def _text(generator: random.Random, words: int) -> str:
    return " ".join("".join(generator.choices(_WORDS, k=generator.randint(2, 8))) for _ in range(words))


def _make(folder: Path, gigabytes: float, dtype: str) -> None:
    """Layers of 15.5 million weights, and a tokenizer that makes a token of each byte."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    begin = time.perf_counter()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw = Tokenizer(models.BPE({letter: number for number, letter in enumerate(["<s>", *sorted(alphabet)])}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="<s>")
    width, inner = 1152, 3072
    layer = (4 if dtype == "float32" else 2) * (4 * width * width + 3 * width * inner)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=round(gigabytes * 1e9 / layer),
        num_attention_heads=18,
        num_key_value_heads=18,
        max_position_embeddings=4096,
        dtype=dtype,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size="1GB")
    tokenizer.save_pretrained(folder)
    print(f"made {folder} in {time.perf_counter() - begin:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()

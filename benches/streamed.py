"""A model in memory beside the same model streamed: seconds, peak memory, and the share of waiting for weights.

    python benches/streamed.py FOLDER [--model llama] [--gigabytes 3] [--memory 1.2GB] [--questions 40]
        [--dtype float32] [--offload-questions 2]

It makes a model with random weights in FOLDER (once), and questions of made-up words: a llama of so many gigabytes, or
one with the shape of Gemma 3 270M, whose vocabulary of 262,144 is most of it. Each run is a process of its own and
reads the checkpoint from the page cache, if that holds it. Peak memory is the kernel's count. To be run alone; seconds
of the processor, which are the whole process's, say something beside other work too. The numbers of both runs must be
the same to the bit.

With `--offload-questions` lm-eval scores the first questions too, on the same model with accelerate's offload to disk:
all decoder layers lie there, everything else is in memory. The pages of files that are mapped into memory count in its
peak although the kernel could take them back, so the largest sum without them is given as well.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_CHILD = """
import json, sys, time
import wmdp_fast as wf

options = json.loads(sys.argv[1])
begin = time.perf_counter()
result = wf.evaluate(**options, device="cpu", progress=False)
[peak] = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")]
found = {"seconds": time.perf_counter() - begin, "forward": result.timings["forward"], "peak": peak}
found["processor"] = time.process_time()
found["streamed"] = result.details.get("streamed")
[task] = result.tasks.values()
found["scores"] = task.outcome.loglikelihood.tolist()
print(json.dumps(found))
"""

_OFFLOADED = """
import json, sys, threading, time
import torch
from accelerate.utils import offload
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import wmdp_fast as wf

options = json.loads(sys.argv[1])
read = [0]
get = offload.OffloadedWeightsLoader.__getitem__

def counted(self, key):
    tensor = get(self, key)
    if key not in self.state_dict:
        read[0] += tensor.nbytes
    return tensor

offload.OffloadedWeightsLoader.__getitem__ = counted

def memory(name):
    [found] = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name)]
    return found

own = [0]

def watch():
    while True:
        own[0] = max(own[0], memory("RssAnon"))
        time.sleep(0.02)

threading.Thread(target=watch, daemon=True).start()
prompts = wf.rendered_prompts(options["model"], tasks=options["tasks"], count=options["questions"])
asked = [(prompt.prompt, one.text) for prompt in prompts for one in prompt.continuations]
begin = time.perf_counter()
layers = AutoConfig.from_pretrained(options["model"]).num_hidden_layers
places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
places |= {f"model.layers.{layer}": "disk" for layer in range(layers)}
model = AutoModelForCausalLM.from_pretrained(
    options["model"], dtype=options["dtype"], device_map=places, offload_folder=options["offload"]
)
tokenizer = AutoTokenizer.from_pretrained(options["model"])
harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=options["batch_size"])
loaded = time.perf_counter()
requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(asked)]
scores = [score for score, _ in harness.loglikelihood(requests, disable_tqdm=True)]
print(json.dumps({
    "seconds": time.perf_counter() - begin, "forward": time.perf_counter() - loaded, "peak": memory("VmHWM"),
    "own": own[0], "bytes_read": read[0], "scores": scores,
}))
"""

_WORDS = "abcdefghijklmnopqrstuvwxyz"


def main() -> None:
    """Makes the model, runs both ways, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=("llama", "gemma-270m"), default="llama")
    parser.add_argument("--gigabytes", type=float, default=3.0, help="of the llama")
    parser.add_argument("--memory", default="1.2GB")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="many CPUs emulate bfloat16"
    )
    parser.add_argument(
        "--offload-questions", type=int, default=0, help="how many lm-eval scores too, with layers on the disk"
    )
    arguments = parser.parse_args()
    name = f"llama-{arguments.gigabytes}-gb" if arguments.model == "llama" else arguments.model
    folder = arguments.folder / f"{name}-{arguments.dtype}"
    if not (folder / "tokenizer_config.json").is_file():
        _make(folder, arguments)
    tasks = _questions(arguments.folder, arguments.questions)
    options = {"model": str(folder), "tasks": str(tasks)}
    whole = _run(options | {"memory": "1TB"})
    streamed = _run(options | {"memory": arguments.memory, "stream": True})
    print(f"in memory: {_cost(whole)}")
    cost = streamed["streamed"]
    print(
        f"streamed:  {_cost(streamed)}; {cost['bytes_read'] / 1e9:.1f} GB read, waited for weights"
        f" {cost['seconds_waiting']:.2f} s ({cost['seconds_waiting'] / streamed['forward']:.1%})"
    )
    print(f"streamed / in memory: {streamed['forward'] / whole['forward']:.3f} forward")
    print(f"same numbers: {streamed['scores'] == whole['scores']}")
    if arguments.offload_questions:
        _offloaded(folder, arguments)


def _offloaded(folder: Path, arguments: argparse.Namespace) -> None:
    """A few questions streamed, and by lm-eval with the layers on the disk."""
    count = arguments.offload_questions
    tasks = _questions(arguments.folder, count)
    streamed = _run({"model": str(folder), "tasks": str(tasks), "memory": arguments.memory, "stream": True})
    options = {"model": str(folder), "tasks": str(tasks), "questions": count, "dtype": arguments.dtype}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as offload:
        found = _run(options | {"offload": offload, "batch_size": 4}, _OFFLOADED)
    read = streamed["streamed"]["bytes_read"]
    print(f"{count} questions, streamed: {_cost(streamed)}; {read / 1e9:.1f} GB read")
    print(
        f"{count} questions, lm-eval:  {_cost(found)}, {found['own'] / 1e9:.2f} GB without mapped files;"
        f" {found['bytes_read'] / 1e9:.1f} GB read"
    )
    apart = max(abs(one - other) for one, other in zip(streamed["scores"], found["scores"], strict=True))
    print(f"largest difference of a log-likelihood: {apart:.1e} nats")


def _cost(run: dict) -> str:
    processor = f", {run['processor']:.1f} s of the processor" if "processor" in run else ""
    return f"{run['forward']:.1f} s forward, {run['seconds']:.1f} s in all{processor}, {run['peak'] / 1e9:.2f} GB"


def _run(options: dict[str, object], script: str = _CHILD) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(options)], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict = json.loads(done.stdout.splitlines()[-1])
    return found


def _questions(folder: Path, count: int) -> Path:
    generator = random.Random(0)
    rows = [
        {"question": _text(generator, 40), "choices": [_text(generator, 3) for _ in range(4)], "answer": 0}
        for _ in range(count)
    ]
    path = folder / f"questions-{count}.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def _text(generator: random.Random, words: int) -> str:
    return " ".join("".join(generator.choices(_WORDS, k=generator.randint(2, 8))) for _ in range(words))


def _make(folder: Path, arguments: argparse.Namespace) -> None:
    """A model with random weights, and a tokenizer that makes a token of each byte."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    begin = time.perf_counter()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw = Tokenizer(models.BPE({letter: number for number, letter in enumerate(["<s>", *sorted(alphabet)])}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="<s>")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_config(arguments, len(tokenizer)), dtype=getattr(torch, arguments.dtype))
    model.save_pretrained(folder, max_shard_size="1GB")
    tokenizer.save_pretrained(folder)
    print(f"made {folder} in {time.perf_counter() - begin:.0f} s", file=sys.stderr)


def _config(arguments: argparse.Namespace, vocabulary: int) -> PreTrainedConfig:
    """Layers of 15.5 million weights for a llama; otherwise what Google gives for Gemma 3 270M."""
    from transformers import AutoConfig

    if arguments.model == "gemma-270m":
        return AutoConfig.for_model(
            "gemma3_text",
            vocab_size=262_144,
            hidden_size=640,
            intermediate_size=2048,
            num_hidden_layers=18,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=256,
            query_pre_attn_scalar=256,
            sliding_window=512,
            max_position_embeddings=32_768,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            dtype=arguments.dtype,
        )
    width, inner = 1152, 3072
    layer = (4 if arguments.dtype == "float32" else 2) * (4 * width * width + 3 * width * inner)
    return AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=round(arguments.gigabytes * 1e9 / layer),
        num_attention_heads=18,
        num_key_value_heads=18,
        max_position_embeddings=4096,
        dtype=arguments.dtype,
    )


if __name__ == "__main__":
    main()

"""From the start of the process to the first forward pass, and several models in one call beside separate calls.

    python benches/first_second.py FOLDER [--model SMALL_MODEL --tasks NAMES --data DIR --limit N]

It makes a checkpoint of 2 GB in FOLDER (once), drops it from the page cache before each cold run, and starts each run
as a process of its own. To be run alone: beside other work imports take several times as long. Takes some four minutes
on two cores. For each run it prints seconds from exec to the end of the imports and to the first forward pass. With
--model it also times five checkpoints in one call and in five, and compares their numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

# Prints when imports end and the first forward pass begins, without changing what runs.
_TRACED = """
import contextlib, json, os, sys, time
from wmdp_fast.runtime import clock
ticks = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
now = lambda: time.clock_gettime(time.CLOCK_BOOTTIME) - ticks
marks, imported = {}, [0.0]
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            imported[0] = now()
sys.meta_path.insert(0, Watch())
plain = clock.PhaseClock.__call__
@contextlib.contextmanager
def traced(self, phase):
    if phase == "forward":
        marks.update({"imports end": imported[0], "forward begins": now()})
    with plain(self, phase):
        yield
    marks[f"{phase} ends"] = now()
clock.PhaseClock.__call__ = traced
from wmdp_fast.cli import main
code = main(sys.argv[1:])
marks["done"] = now()
print("MARKS " + json.dumps(marks), file=sys.stderr)
sys.exit(code)
"""


def make_checkpoint(folder: Path, tokenizer: Path) -> None:
    """A Llama of 2 GB in bfloat16 with random weights, in three shards."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    from wmdp_fast import demo

    source = tokenizer if (tokenizer / "tokenizer.json").is_file() else Path(demo.model_path())
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (source / name).is_file():
            shutil.copy(source / name, folder)
    config = LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=20, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=49152, tie_word_embeddings=True, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: one.shape for name, one in AutoModelForCausalLM.from_config(config).named_parameters()}
    names = sorted(shapes)
    places = {}
    for number in range(3):
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        part = names[number::3]
        tensors = {name: torch.full(shapes[name], 0.01, dtype=torch.bfloat16) for name in part}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def drop(folder: Path) -> None:
    """Drops a folder's files from the page cache."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def traced(arguments: list[str]) -> dict[str, float]:
    """Seconds from exec to each mark of a run."""
    done = subprocess.run([sys.executable, "-c", _TRACED, *arguments], capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("MARKS ")]
    if done.returncode or not lines:
        sys.exit(f"the run failed with exit code {done.returncode}: {done.stderr[-2000:]}")
    marks: dict[str, float] = json.loads(lines[-1].removeprefix("MARKS "))
    return marks


def start(folder: Path, questions: Path) -> None:
    """Cold and warm starts with the large checkpoint, one question."""
    begun = time.perf_counter()
    drop(folder)
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 23):
                pass
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    print(f"plain cold reading: {size / 1e9 / (time.perf_counter() - begun):.2f} GB/s")
    for state in ("cold", "warm", "cold", "warm"):
        if state == "cold":
            drop(folder)
        marks = traced(
            [
                "eval",
                str(folder),
                "--tasks",
                str(questions),
                "--limit",
                "1",
                "--engine",
                "padded",
                "--quiet",
                "--device",
                "cpu",
            ]
        )
        late = marks["forward begins"] - marks["imports end"]
        print(
            f"{state}: imports end {marks['imports end']:.2f} s, forward begins {marks['forward begins']:.2f} s,"
            f" which is {late:.2f} s later; all {marks['done']:.2f} s"
        )


def _make_variant(model: Path, folder: Path, number: int) -> None:
    """A copy of a model, with numbers of its own in every tensor, as the next checkpoint of a training run has."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    for path in folder.glob("*.safetensors"):
        torch.manual_seed(number)
        factors = {name: 1.01 + 0.02 * float(torch.rand(1)) for name in sorted(load_file(path))}
        tensors = {name: (one.float() * factors[name]).to(one.dtype) for name, one in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})


def several(model: Path, work: Path, options: list[str]) -> None:
    """Five checkpoints in five calls and in one."""
    models = []
    for number in range(5):
        copy = work / f"copy-{number}"
        if not copy.is_dir():
            _make_variant(model, copy, number)
        models.append(str(copy))
    times, found = {}, {}
    for name, calls in {"five calls": [[one] for one in models], "one call": [models]}.items():
        begun = time.perf_counter()
        found[name] = []
        for call in calls:
            command = [sys.executable, "-m", "wmdp_fast", "eval", *call, *options, "--quiet", "--json"]
            answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            found[name] += [one["results"] for one in (answer if isinstance(answer, list) else [answer])]
        times[name] = time.perf_counter() - begun
        print(f"{name}: {times[name]:.1f} s")
    print(f"one call is {times['five calls'] / times['one call']:.2f} times as fast")
    print("numbers are equal" if found["five calls"] == found["one call"] else "NUMBERS DIFFER")


def main() -> None:
    """Runs both parts."""
    from wmdp_fast import demo

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, help="a small model, such as SmolLM2-135M-Instruct")
    parser.add_argument("--tasks", default="mmlu_astronomy")
    parser.add_argument("--data", default="")
    parser.add_argument("--limit", default="20")
    given = parser.parse_args()
    big = given.folder / "two-gigabytes"
    if not big.is_dir():
        make_checkpoint(big, given.model or Path(demo.model_path()))
    start(big, Path(demo.questions_path("forget")))
    if given.model:
        options = ["--tasks", given.tasks, "--limit", given.limit, "--dtype", "float32", "--device", "cpu"]
        several(given.model, given.folder, options + (["--data", given.data] if given.data else []))


if __name__ == "__main__":
    main()

"""RMU with the layers below the trained ones on the disk: the bits of a run in memory, in less of it."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.models.llama import modeling_llama

from tests.support import unlearning_runs as runs
from tests.support.expected_warnings import SHORT_CORPORA, WIDER_TYPE
from tests.support.peak_memory import NEEDS_PROC, peak_of
from tests.support.sparse_models import sparse_model
from tests.support.thorough import cases
from wmdp_fast import cli, demo
from wmdp_fast.checkpoints.weight_files import weight_files
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.skeleton import build_skeleton
from wmdp_fast.unlearning import memory_plan, reporting, trainer
from wmdp_fast.unlearning.methods.npo import NPOConfig
from wmdp_fast.unlearning.rmu.config import RMUConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from wmdp_fast.unlearning.layers_below import LayersBelow
    from wmdp_fast.unlearning.result import UnlearnResult

pytestmark = WIDER_TYPE

CONFIG = RMUConfig(
    layer_id=3,
    update_layer_ids=(2, 3),
    steering_coeff="auto",
    alpha=50.0,
    learning_rate=1e-3,
    batch_size=2,
    max_steps=6,
    max_length=30,
)
TIMING = ("seconds", "tokens_per_second", "peak_memory_mb")

# Bytes for what a window gives out: one batch, some, all of them.
ROOMS = (1, 30_000, 1 << 40)


def run(model: Any, config: RMUConfig = CONFIG, **options: Any) -> UnlearnResult:
    found: UnlearnResult = runs.unlearn(model, config, **options)
    return found


def metrics(result: UnlearnResult) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in TIMING} for row in result.metrics]


def assert_same(first: UnlearnResult, second: UnlearnResult) -> None:
    """All that two runs leave is the same, to the last bit."""
    assert metrics(first) == metrics(second)
    assert first.findings.record == second.findings.record
    assert first.findings.delta == second.findings.delta
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name
    if first.output is not None:
        assert second.output is not None
        written = [
            {path.name: path.read_bytes() for path in output.iterdir() if path.suffix in (".safetensors", ".json")}
            for output in (first.output, second.output)
        ]
        records = [json.loads(one.pop("unlearn.json")) for one in written]
        assert written[0] == written[1]
        for record in records:
            for name in ("name", "seconds", "peak_memory_mb", "streamed", "metrics", "trunk_cache"):
                record.pop(name)
        assert records[0] == records[1]


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Sets the room of a window; what it returns fills with how many batches each window had, the proof's included."""
    from wmdp_fast.unlearning.rmu import windows as module

    sizes: list[int] = []
    plan, swept = trainer.layers_below, module.Windows._swept

    def set_room(room: int) -> list[int]:
        def planned(*arguments: Any, scored: bool) -> LayersBelow:
            return dataclasses.replace(plan(*arguments, scored=scored), room=room)

        def counted(self: Any, *arguments: Any) -> Any:
            found = swept(self, *arguments)
            sizes.append(len(found))
            return found

        monkeypatch.setattr(trainer, "layers_below", planned)
        monkeypatch.setattr(module.Windows, "_swept", counted)
        sizes.clear()
        return sizes

    return set_room


# The same bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "mixtral", "gemma3_text"])
@pytest.mark.parametrize("mode", ["reference", "masked"])
def test_it_gives_the_bits_of_a_run_in_memory(
    tmp_path: Path, family: str, dtype: torch.dtype, mode: Any, windows: Callable[[int], list[int]]
) -> None:
    folder = runs.saved_model(tmp_path / "base", family, dtype, shard_size="40KB")
    config = dataclasses.replace(CONFIG, mode=mode)
    in_memory = run(folder, config, output=tmp_path / "in memory")
    for room in ROOMS:
        sizes = windows(room)
        assert_same(in_memory, run(folder, config, output=tmp_path / str(room), stream=True))
        # Twelve batches of steps and two to look at in the end. A batch goes alone for the proof, and twice as many do
        # where documents are to be packed, which is tried before the steps.
        alone = 1 if mode == "reference" else 4
        assert sizes[:alone] == [1] * alone
        assert sum(sizes) >= 14
        if room == ROOMS[0]:
            assert max(sizes) == 1
        elif room == ROOMS[-1]:
            assert len(sizes) == alone + 1
        else:
            assert 1 < max(sizes) < 14


@pytest.mark.parametrize("family", [one for one in runs.FAMILIES if one not in ("llama", "mixtral", "gemma3_text")])
def test_every_architecture_gives_the_same_bits(tmp_path: Path, family: str) -> None:
    folder = runs.saved_model(tmp_path / "base", family)
    assert_same(run(folder), run(folder, stream=True))


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma2"])
def test_a_checkpoint_needs_no_head(tmp_path: Path, family: str) -> None:
    model: Any = runs.model(family)
    model.base_model.save_pretrained(tmp_path / "base")
    in_memory = run(tmp_path / "base", output=tmp_path / "in memory")
    assert_same(in_memory, run(tmp_path / "base", output=tmp_path / "streamed", stream=True))
    files = weight_files(tmp_path / "base")
    assert files is not None
    if family == "llama":
        # Who wants the head is told that there is none.
        with pytest.raises(ModelError, match=r"lacks weights of LlamaForCausalLM, which would be random: lm_head"):
            build_skeleton(str(tmp_path / "base"), {}, files, None, torch.device("cpu"))


@pytest.mark.parametrize(
    "changes",
    [
        {"update_layer_ids": (1,), "layer_id": 1},
        {"grad_accum": 2, "max_steps": 3, "retain_noise": 0.5},
        {"parameters": "layernorm", "epochs": 3, "max_steps": 20},
        {"dtype": "bfloat16", "master_weights": True},
    ],
    ids=str,
)
def test_whatever_the_settings(tmp_path: Path, changes: dict[str, Any], windows: Callable[[int], list[int]]) -> None:
    folder = runs.saved_model(tmp_path / "base", "llama")
    config = dataclasses.replace(CONFIG, **changes)
    in_memory = run(folder, config)
    windows(30_000)
    assert_same(in_memory, run(folder, config, stream=True))


@pytest.mark.slow
@SHORT_CORPORA
@settings(max_examples=cases(5, 40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.fixed_dictionaries(
        {"update_layer_ids": st.sampled_from([None, (1,), (2,), (1, 3), (3,)])},
        optional={
            "mode": st.just("masked"),
            "epochs": st.just(3),
            "max_steps": st.integers(1, 20),
            "grad_accum": st.integers(1, 3),
            "retain_noise": st.just(0.5),
            "batch_size": st.integers(1, 5),
            "parameters": st.sampled_from(["self_attn.o_proj", "mlp", "layernorm"]),
            "master_weights": st.just(True),
            "steering_coeff": st.just(3.0),
            "dtype": st.sampled_from(["float32", "bfloat16"]),
        },
    ),
    room=st.integers(1, 150_000),
    cached=st.booleans(),
    family=st.sampled_from(["llama", "gemma2", "qwen3_moe"]),
)
def test_whatever_the_settings_and_the_memory(
    tmp_path_factory: pytest.TempPathFactory,
    windows: Callable[[int], list[int]],
    changes: dict[str, Any],
    room: int,
    cached: bool,
    family: str,
) -> None:
    folder = tmp_path_factory.mktemp("settings")
    runs.saved_model(folder / "base", family)
    config = dataclasses.replace(CONFIG, **changes)
    in_memory = run(folder / "base", config)
    windows(room)
    for _ in range(1 + cached):
        cache = {"cache_trunk": folder / "cache"} if cached else {}
        assert_same(in_memory, run(folder / "base", config, stream=True, **cache))


def test_several_topics(tmp_path: Path, windows: Callable[[int], list[int]]) -> None:
    folder = runs.saved_model(tmp_path / "base", "llama")
    windows(30_000)
    corpora = {
        "forget": [runs.corpus(runs.documents(1), "one"), runs.corpus(runs.documents(3), "other")],
        "retain": runs.corpus(runs.documents(2), "retain"),
    }
    assert_same(
        *(
            runs.wf.unlearn(folder, **corpora, config=CONFIG, progress=False, stream=stream)  # type: ignore[arg-type]
            for stream in (False, True)
        )
    )


def test_a_trunk_cache_is_shared_with_runs_in_memory(tmp_path: Path) -> None:
    folder, cache = runs.saved_model(tmp_path / "base", "llama"), tmp_path / "cache"
    in_memory = run(folder)
    notes: list[str] = []

    def files() -> dict[str, bytes]:
        return {str(path.relative_to(cache)): path.read_bytes() for path in cache.glob("*/*.safetensors")}

    assert_same(in_memory, run(folder, cache_trunk=cache))
    written = files()
    assert_same(in_memory, run(folder, stream=True, cache_trunk=cache, note=notes.append))
    [summary] = [note for note in notes if note.startswith("trunk cache")]
    assert " 0 computed and written" in summary
    for path in cache.glob("*/*.safetensors"):
        path.unlink()
    assert_same(in_memory, run(folder, stream=True, cache_trunk=cache))
    assert files() == written


def test_a_cache_without_room_is_made_up_for(tmp_path: Path) -> None:
    folder = runs.saved_model(tmp_path / "base", "llama")
    in_memory = run(folder)
    with pytest.warns(match="has reached its limit"):
        limited = run(folder, stream=True, cache_trunk=tmp_path / "cache", cache_limit=2e-5)
    assert_same(in_memory, limited)
    # Its files are of no use any more.
    for path in (tmp_path / "cache").glob("*/*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(match=r"cannot be used|has reached its limit"):
        damaged = run(folder, stream=True, cache_trunk=tmp_path / "cache", cache_limit=2e-5)
    assert_same(in_memory, damaged)


# Processes

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["tests.unlearning.test_streamed_layers"])


def _killed_run(model: Path, output: Path, stream: bool) -> None:
    torch.set_num_threads(1)

    class Killer:
        def log(self, _values: object, step: int) -> None:
            if step == 5:
                os.kill(os.getpid(), signal.SIGKILL)

        def close(self) -> None:
            pass

    reporting.open_trackers = lambda *_args: [Killer()]  # type: ignore[assignment]
    run(model, dataclasses.replace(CONFIG, save_every=2), output=output, stream=stream, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
def test_a_killed_run_goes_on_in_memory_or_not(tmp_path: Path, before: bool, after: bool) -> None:
    model = runs.saved_model(tmp_path / "model", "mixtral", torch.bfloat16)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = dataclasses.replace(CONFIG, save_every=2)
        straight = run(model, config, output=tmp_path / "straight")
        child = CHILDREN.Process(target=_killed_run, args=(model, tmp_path / "out", before))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        notes: list[str] = []
        resumed = run(model, config, output=tmp_path / "out", stream=after, resume=True, note=notes.append)
    finally:
        torch.set_num_threads(threads)
    assert "resuming after step 4" in notes
    assert_same(straight, resumed)


# Memory


@pytest.mark.slow
@NEEDS_PROC
def test_a_process_takes_less_by_the_layers_on_the_disk(tmp_path: Path) -> None:
    sparse_model(tmp_path / "model", layers=26)
    with (tmp_path / "texts.jsonl").open("w") as file:
        file.writelines(
            json.dumps({"text": f"a made-up text, number {number}, of birds"}) + "\n" for number in range(40)
        )
    texts = str(tmp_path / "texts.jsonl")
    command = ["unlearn", str(tmp_path / "model"), "--forget", texts, "--retain", texts, "--device", "cpu"]
    command += ["--layer-id", "24", "--max-steps", "2", "--steering-coeff", "2"]
    peaks = []
    limit = 1_250_000_000
    for more in ([], ["--memory", str(limit)]):
        output = ["--output", str(tmp_path / f"out {len(more)}")]
        peak, told = peak_of(*command, *output, *more)
        peaks.append(peak)
    assert "streaming the 22 layers of up to 0.028 GB below layer 22 in memory of 1.2 GB: 0.62 GB to read" in told
    # 22 layers of 28 MB were in memory, and two are at a time.
    assert peaks[1] < peaks[0] - 19 * 28_000_000
    assert peaks[1] < limit


def test_too_little_memory_is_said_with_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runs.saved_model(tmp_path / "base", "llama")
    with pytest.raises(ModelError, match=r"memory 0\.1 GB is too little to stream .*base: .* are taken already"):
        run(folder, memory="100MB")
    monkeypatch.setattr(memory_plan, "memory_in_use", lambda _device: 9_699_900_000)
    with pytest.raises(ModelError, match=r"memory 10 GB is too little: 9\.7 GB .* Give 11 GB, or lower batch_size"):
        run(folder, stream=True, memory="10GB")


def test_layers_that_fit_stay_in_memory(tmp_path: Path) -> None:
    folder = runs.saved_model(tmp_path / "base", "llama")
    notes: list[str] = []
    found = run(folder, memory="64GB", note=notes.append, output=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "unlearn.json").read_text())["streamed"] is None
    assert not any("streaming" in note for note in notes)
    assert_same(found, run(folder, stream=True, memory="64GB", output=tmp_path / "streamed", note=notes.append))
    assert any(note.startswith("streaming the 2 layers of up to") for note in notes)
    read = json.loads((tmp_path / "streamed" / "unlearn.json").read_text())["streamed"]
    assert read["bytes_read"] > 0


# What is refused


def test_what_cannot_be_streamed_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    folder = runs.saved_model(tmp_path / "base", "llama")
    with pytest.raises(ValueError, match="this one is in memory already"):
        run(runs.model("llama"), stream=True)
    with pytest.raises(ValueError, match=r"for rmu, .* for npo the model has to fit into memory"):
        runs.unlearn(folder, NPOConfig(max_steps=1), stream=True)
    with pytest.raises(
        ValueError, match=r"max_kl is measured with the whole model in memory, of which .* leave it out"
    ):
        run(folder, stream=True, max_kl=1.0)
    with pytest.raises(ValueError, match=r"below layer 0, which is trained, there are none: train higher ones"):
        run(folder, dataclasses.replace(CONFIG, update_layer_ids=(0, 1)), stream=True)
    with pytest.raises(ValueError, match="memory must be an amount such as 16GB"):
        run(folder, memory="lots")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--stream", "--max-kl", "1"], "max_kl is measured with the whole model in memory"),
        (["--stream", "--method", "npo"], "memory and stream are for rmu"),
        (["--memory", "lots"], "memory must be an amount such as 16GB"),
        (["--memory", "1MB"], "memory 0.001 GB is too little to stream"),
        (["--stream", "--layer-id", "2"], "memory and stream leave the layers below the trained ones"),
    ],
)
def test_what_is_refused_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], says: str
) -> None:
    command = ["unlearn", str(demo.model_path()), "--forget", str(demo.corpus_path("forget"))]
    command += ["--retain", str(demo.corpus_path("retain")), "--output", str(tmp_path / "out"), "--quiet"]
    command += ["--max-steps", "1", *([] if "--method" in wrong or "--layer-id" in wrong else ["--layer-id", "4"])]
    assert cli.main([*command, *wrong]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {says}")
    assert list(tmp_path.iterdir()) == []


def test_layers_that_take_more_than_the_residual_stream_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runs.saved_model(tmp_path / "base", "llama")

    def forward(self: Any, input_ids: torch.Tensor, **_: Any) -> Any:
        hidden, carried = self.embed_tokens(input_ids), []
        positions = torch.arange(input_ids.shape[1]).unsqueeze(0)
        angles = self.rotary_emb(hidden, positions)
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=angles, carried=list(carried))
            carried.append(hidden)
        return hidden

    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", forward)
    with pytest.raises(ModelError, match="LlamaModel passes more between its layers than the residual stream"):
        run(folder, stream=True)


def test_layers_that_give_other_numbers_one_by_one_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runs.saved_model(tmp_path / "base", "llama")
    calls = []
    forward = modeling_llama.LlamaDecoderLayer.forward

    def drifting(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(self, *args, **kwargs) * (1 + len(calls) * 1e-3)

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "forward", drifting)
    with pytest.raises(ModelError, match="LlamaModel cannot be streamed: tried on a batch"):
        run(folder, stream=True)


def test_the_command_streams(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["unlearn", str(demo.model_path()), "--forget", str(demo.corpus_path("forget"))]
    arguments += ["--retain", str(demo.corpus_path("retain")), "--layer-id", "3", "--max-steps", "2"]
    for output, more in (("first", []), ("second", ["--stream"])):
        assert cli.main([*arguments, "--output", str(tmp_path / output), *more]) == 0
    assert "streaming the 1 layer of up to" in capsys.readouterr().err
    deltas = [(tmp_path / output / "delta.safetensors").read_bytes() for output in ("first", "second")]
    assert deltas[0] == deltas[1]

"""What a run leaves on disk: checkpoint, delta, papers; after a full disk, and after being killed."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.auto import tokenization_auto  # noqa: F401 (loaded once, not by every child)
from transformers.models.llama import modeling_llama  # noqa: F401 (likewise)

from tests.support import unlearning_runs as runs
from wmdp_fast.checkpoints import checkpoint
from wmdp_fast.checkpoints.checkpoint import apply_delta
from wmdp_fast.exceptions import ModelError
from wmdp_fast.unlearning import optim
from wmdp_fast.unlearning import trainer as run_module
from wmdp_fast.unlearning.api import unlearn
from wmdp_fast.unlearning.rmu.config import RMUConfig

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = RMUConfig(
    layer_id=2,
    steering_coeff=2.0,
    alpha=50.0,
    learning_rate=1e-3,
    batch_size=2,
    max_steps=4,
    save_every=2,
    max_length=30,
)


def run(base, output=None, config=CONFIG, **options):
    return unlearn(
        base,
        forget=runs.corpus(runs.documents(1, count=60), "forget"),
        retain=runs.corpus(runs.documents(2, count=60), "retain"),
        config=config,
        output=output,
        progress=False,
        **options,
    )


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


@pytest.fixture
def base(tmp_path):
    """A checkpoint of several shards, with other files beside them."""
    folder = runs.saved_model(tmp_path / "base", "llama", torch.bfloat16, shard_size="12KB")
    (folder / "tokenizer_note.txt").write_text("kept")
    (folder / "README.md").write_text("the base's card")
    (folder / "old.bin").write_bytes(b"pickled")
    assert len(weights(folder)) > 3
    return folder


def test_checkpoint_has_the_new_tensors_and_all_the_old_ones(base, tmp_path):
    result = run(base, tmp_path / "out")
    assert result.output == tmp_path / "out"
    before, after = AutoModelForCausalLM.from_pretrained(base), AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    old, new = before.state_dict(), after.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1, 2)} == set(result.tensors)
    for name in changed:
        assert torch.equal(new[name], result.tensors[name])
    assert (tmp_path / "out" / "tokenizer_note.txt").read_text() == "kept"
    assert not (tmp_path / "out" / "old.bin").exists()
    assert not (tmp_path / "out.unlearning").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_untouched_shards_are_links_and_others_differ_only_in_their_tensors(base, tmp_path):
    run(base, tmp_path / "out")
    linked = 0
    for path in base.glob("model-*.safetensors"):
        other = tmp_path / "out" / path.name
        if path.samefile(other):
            linked += 1
            continue
        old, new = load_file(path), load_file(other)
        assert old.keys() == new.keys()
        assert any("down_proj" in name for name in old)
        assert all(torch.equal(old[name], new[name]) for name in old if "down_proj" not in name)
    assert linked > 0


def test_base_and_delta_make_the_same_bytes(base, tmp_path):
    run(base, tmp_path / "out")
    apply_delta(base, tmp_path / "out", tmp_path / "again")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_neox", "phi3"])
def test_other_architectures_are_written_in_the_names_of_their_checkpoint(tmp_path, family):
    base = runs.saved_model(tmp_path / "base", family)
    result = run(base, tmp_path / "out")
    assert set(result.tensors) <= set(load_file(base / "model.safetensors"))
    old = AutoModelForCausalLM.from_pretrained(base).state_dict()
    new = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    changed = sorted(name for name in old if not torch.equal(old[name], new[name]))
    assert changed == [name for name in sorted(old) if any(f".{line.split(':')[0]}" in name for line in result.picked)]
    apply_delta(base, tmp_path / "out" / "delta.safetensors", tmp_path / "again")
    assert weights(tmp_path / "out") == weights(tmp_path / "again")


def test_a_delta_is_refused_for_another_base(base, tmp_path):
    run(base, tmp_path / "out")
    with pytest.raises(ModelError, match="another base"):
        apply_delta(tmp_path / "out", tmp_path / "out", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        apply_delta(base, tmp_path / "nowhere", tmp_path / "again")
    with pytest.raises(ModelError, match="not a delta"):
        apply_delta(base, next(base.glob("model-*.safetensors")), tmp_path / "again")


def test_record_and_card_say_what_was_done(base, tmp_path):
    result = run(base, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "unlearn.json").read_text())
    assert record["settings"]["layer_id"] == 2
    assert record["corpora"]["forget"][0] == {
        "name": "forget",
        "kind": "documents",
        "documents": 60,
        "content_hash": "hash of forget",
    }
    # Vectors as long as a model is wide are in the tensor file, so that the record stays readable.
    with safe_open(tmp_path / "out" / "delta.safetensors", framework="np") as file:
        control = np.frombuffer(base64.b64decode(file.metadata()["control_vectors"]), dtype="<f4")
    assert control.tolist() == result.control_vectors[0].flatten().float().tolist()
    assert max(len(line) for line in json.dumps(record, indent=1).splitlines()) < 400
    assert record["changed"] == sorted(result.tensors)
    assert record["versions"]["torch"] == metadata.version("torch")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "has not been deleted" in card
    assert "fine-tuning" in card
    assert "the base's card" not in card
    # A folder has no name on the hub, and its path may tell who made it.
    assert "base_model" not in card
    assert str(base) not in card
    assert "`base` after 4 steps" in card
    assert card.index("unlearned nothing") < card.index("has not been deleted") < card.index("## Changed tensors")
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows == result.metrics


@pytest.mark.parametrize(("named", "expected"), [("owner/model", "owner/model"), ("/home/me/model", None), ("x", None)])
def test_the_base_is_named_as_the_hub_knows_it(base, tmp_path, named, expected):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "_name_or_path": named}))
    run(base, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert [line for line in card.splitlines() if line.startswith("base_model")] == (
        [f"base_model: {expected}"] if expected else []
    )
    assert "/home/me" not in card
    assert "## Results" in card


def test_something_at_the_output_is_left_alone(base, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(FileExistsError, match="exists already"):
        run(base, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "precious"


def test_an_interrupted_run_is_not_overwritten_and_not_mixed_up(base, tmp_path):
    with pytest.raises(RuntimeError, match="stop here"):
        run(base, tmp_path / "out", note=stop_before("steering"))
    (tmp_path / "out.unlearning").mkdir(exist_ok=True)
    with pytest.raises(FileExistsError, match="--resume"):
        run(base, tmp_path / "out")


def stop_before(word):
    def note(line):
        if word in line:
            raise RuntimeError("stop here")

    return note


LONG = RMUConfig(
    layer_id=2,
    steering_coeff=2.0,
    alpha=50.0,
    learning_rate=1e-3,
    batch_size=1,
    max_steps=40,
    save_every=3,
    retain_noise=0.1,
)
# Children of a process that has torch loaded but has not used it yet: they start at once, and can be killed.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["tests.unlearning.test_unlearning_output"])


def long_run(base, output, prepare, answers):
    """What a child does: a run that goes on from whatever is there. Answers with the error's text, or nothing."""
    torch.set_num_threads(1)
    try:
        prepare()
        run(base, output, LONG, resume=True)
    except BaseException as error:
        answers.send(f"{type(error).__name__}: {error}")
    else:
        answers.send("")


def start(base, output, prepare):
    answer, answers = CHILDREN.Pipe(duplex=False)
    child = CHILDREN.Process(target=long_run, args=(base, output, prepare, answers))
    child.start()
    answers.close()
    return child, answer


def answer_of(base, output, prepare):
    child, answer = start(base, output, prepare)
    text = answer.recv()
    child.join()
    return text


def unchanged():
    pass


def slower():
    step = optim.AdamW.step

    def slow_step(self, gradients):
        time.sleep(0.02)
        step(self, gradients)

    optim.AdamW.step = slow_step


def fill_disk():
    """From now on no file can grow beyond 2,000 bytes, which fails as a full disk does."""
    sys.dont_write_bytecode = True  # or modules are left cut off
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


def full_after_the_first_state():
    saved = []
    save_state = run_module.save_state

    def save(*args):
        if saved:
            fill_disk()
        saved.append(1)
        save_state(*args)

    run_module.save_state = save


def full_before_the_checkpoint():
    write = checkpoint.write_checkpoint

    def full(*args):
        fill_disk()
        write(*args)

    checkpoint.write_checkpoint = full


def cannot_step():
    optim.AdamW.step = None


def steps_done(output):
    """Lines of the metrics file so far."""
    path = output.with_name(f"{output.name}.unlearning") / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_killed_at_random_moments_and_resumed_makes_the_same_bytes(base, tmp_path):
    straight, out = tmp_path / "straight", tmp_path / "out"
    run(base, straight, LONG)
    rng = random.Random(0)
    kills = 0
    while kills < 10:
        child, _ = start(base, out, slower)
        goal = steps_done(out) + rng.randint(1, 5)
        while steps_done(out) < goal and child.is_alive():
            time.sleep(0.002)
        # Somewhere in a step, in saving a state, or in between.
        time.sleep(rng.random() * 0.05)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        kills += 1
    assert not out.exists()
    assert answer_of(base, out, unchanged) == ""
    assert weights(out) == weights(straight)
    records = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (straight, out)]
    losses = [
        [(row["step"], row["forget_loss"], row["retain_loss"]) for row in map(json.loads, one)] for one in records
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 40


def test_a_full_disk_while_saving_a_state_leaves_the_one_before(base, tmp_path):
    out = tmp_path / "out"
    said = answer_of(base, out, full_after_the_first_state)
    assert said.startswith("OSError")
    assert "no space to write" in said
    assert "unchanged" in said
    work = tmp_path / "out.unlearning"
    assert load_file(work / "state.safetensors")["control.0"].shape == (1, 1, 32)
    assert sorted(path.name for path in work.iterdir()) == ["metrics.jsonl", "state.safetensors"]
    assert not out.exists()
    assert answer_of(base, out, unchanged) == ""
    run(base, tmp_path / "straight", LONG)
    assert weights(out) == weights(tmp_path / "straight")


def test_a_full_disk_while_writing_the_checkpoint_leaves_nothing_half_done(base, tmp_path):
    out = tmp_path / "out"
    said = answer_of(base, out, full_before_the_checkpoint)
    assert "no space to write" in said
    assert "--resume" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out.unlearning"]
    # With room again, nothing has to be computed a second time.
    assert answer_of(base, out, cannot_step) == ""
    run(base, tmp_path / "straight", LONG)
    assert weights(out) == weights(tmp_path / "straight")


def test_resuming_with_other_settings_is_refused(base, tmp_path):
    assert answer_of(base, tmp_path / "out", full_before_the_checkpoint) != ""
    with pytest.raises(ModelError, match="with other number of steps, settings") as refused:
        run(base, tmp_path / "out", CONFIG, resume=True)
    # The same again would be refused again.
    assert not hasattr(refused.value, "__notes__")


@pytest.mark.parametrize("saved", [True, False])
def test_who_stops_a_run_is_told_whether_it_can_go_on(base, tmp_path, monkeypatch, saved):
    def interrupted(*_):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    monkeypatch.setattr(run_module.EvaluationLoop, "look", interrupted)
    if saved:
        answer_of(base, out, full_before_the_checkpoint)
        monkeypatch.setattr(run_module.Run, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(base, out, LONG, resume=True)
    kept = f"the last state is kept in {out}.unlearning: the same again with --resume (resume=True) goes on from there"
    assert getattr(stopped.value, "__notes__", []) == ([kept] if saved else [])
    assert out.with_name("out.unlearning").exists() == saved


def test_a_model_in_memory_is_saved_with_a_delta(tmp_path):
    model = runs.model("llama")
    model.save_pretrained(tmp_path / "base")
    run(model, tmp_path / "out")
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    apply_delta(tmp_path / "base", tmp_path / "out", tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == state.keys()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)


def test_what_lies_above_the_steered_layer_does_not_matter(base):
    # Shards that hold only later layers get other weights; nothing may notice.
    index = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {shard for name, shard in index.items() if ".layers.3." not in name and "lm_head" not in name}
    later = set(index.values()) - needed
    assert later
    before = run(base).tensors
    for shard in later:
        path = base / shard
        data = bytearray(path.read_bytes())
        data[-32:] = os.urandom(32)
        path.write_bytes(bytes(data))
    after = run(base).tensors
    assert all(torch.equal(before[name], after[name]) for name in before)

"""Activations kept on disk: the same bits without them, when they are written and when they are read; damage."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import plain_rmu
from tests.support import unlearning_runs as runs
from tests.support.expected_warnings import SHORT_CORPORA
from tests.support.thorough import cases, every_other
from wmdp_fast import cli, demo
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.models.decoder import decoder_of
from wmdp_fast.unlearning.activation_cache import TrunkCache
from wmdp_fast.unlearning.batches import Batch
from wmdp_fast.unlearning.parameters import select_parameters
from wmdp_fast.unlearning.rmu.branches import Branches
from wmdp_fast.unlearning.rmu.config import RMUConfig

CONFIG = RMUConfig(
    layer_id=3, steering_coeff="auto", alpha=50.0, learning_rate=1e-3, batch_size=2, max_steps=6, max_length=30
)


def run(model, config=CONFIG, **options):
    return runs.unlearn(model, config, **options)


def assert_equal(first, second):
    """All that a run leaves is the same, to the last bit."""
    timing = ("seconds", "tokens_per_second", "peak_memory_mb")
    told = [[{k: v for k, v in row.items() if k not in timing} for row in one.metrics] for one in (first, second)]
    assert told[0] == told[1]
    assert first.steering_coeffs == second.steering_coeffs
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name


def cached_files(folder):
    return sorted(folder.glob("*/*.safetensors"))


class Counting:
    """Counts how often the decoder layers of a model in memory compute something."""

    def __init__(self, model):
        self.calls = [0] * len(model.model.layers)
        for index, layer in enumerate(model.model.layers):
            layer.mlp.register_forward_hook(lambda *_args, index=index: self._count(index))

    def _count(self, index):
        self.calls[index] += 1


# The same bits


@pytest.mark.parametrize(
    ("family", "dtype"), every_other(("llama", "gemma2", "mixtral"), (torch.float32, torch.bfloat16))
)
def test_filled_and_read_it_gives_the_plain_algorithms_bits(tmp_path, family, dtype):
    folder = runs.saved_model(tmp_path, family, dtype)
    options = {"topics": 2, "layer_id": 3, "update": (2, 3), "steps": 6}
    record, cold = plain_rmu.both(folder, **options, cache_trunk=tmp_path / "cache")
    plain_rmu.assert_same(record, cold, folder)
    written = {path: path.read_bytes() for path in cached_files(tmp_path / "cache")}
    record, warm = plain_rmu.both(folder, **options, cache_trunk=tmp_path / "cache")
    plain_rmu.assert_same(record, warm, folder)
    # Three turns of two topics: three batches of each forget corpus and of the retain corpus, and that one's target.
    assert len(written) == 3 + 3 + 3 + 3
    assert {path: path.read_bytes() for path in cached_files(tmp_path / "cache")} == written


@pytest.mark.parametrize("family", [family for family in runs.FAMILIES if family not in ("llama", "gemma2", "mixtral")])
def test_every_architecture_gives_the_same_bits(tmp_path, family):
    without = run(runs.model(family))
    for _ in ("cold", "warm"):
        assert_equal(without, run(runs.model(family), cache_trunk=tmp_path / "cache"))


@pytest.mark.slow
@SHORT_CORPORA
@settings(max_examples=cases(5, 12), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.fixed_dictionaries(
        {},
        optional={
            "mode": st.just("masked"),
            "epochs": st.just(3),
            "max_steps": st.integers(1, 40),
            "grad_accum": st.integers(1, 3),
            "retain_noise": st.just(0.5),
            "batch_size": st.integers(1, 5),
            "layer_id": st.integers(0, 3),
            "parameters": st.sampled_from(["self_attn.o_proj", "mlp", "layernorm"]),
            "master_weights": st.just(True),
            "dtype": st.sampled_from(["float32", "bfloat16"]),
        },
    )
)
def test_any_settings_give_the_same_bits(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("run")
    model = runs.saved_model(folder / "model", "llama")
    config = dataclasses.replace(CONFIG, **changes)
    without = run(model, config)
    for _ in ("cold", "warm"):
        assert_equal(without, run(model, config, cache_trunk=folder / "cache"))


def test_what_is_kept_is_not_computed(tmp_path):
    filled, read, without = (runs.model("llama") for _ in range(3))
    cold, warm, plain = Counting(filled), Counting(read), Counting(without)
    config = dataclasses.replace(CONFIG, layer_id=3, update_layer_ids=(2, 3))
    run(without, config)
    notes: list[str] = []
    run(filled, config, cache_trunk=tmp_path / "cache", note=notes.append)
    run(read, config, cache_trunk=tmp_path / "cache", note=notes.append)
    # A step runs each layer on a forget and on a retain batch, and before the steps there is the batch that the
    # coefficient is found on, which is also the first step's. At the end two batches are run to see what has moved,
    # the trained layers once more with the original weights, and none of it from the cache.
    assert plain.calls[:2] == [13 + 2, 13 + 2]
    assert cold.calls[:2] == [12 + 2, 12 + 2]
    # Only the trained branch is left: of both batches, the trained layers.
    assert warm.calls == [0 + 2, 0 + 2, 12 + 4, 12 + 4]
    assert [note.partition(" (")[0] for note in notes if "trunk cache" in note] == [
        "trunk cache: 1 activations read, 19 computed and written",
        "trunk cache: 20 activations read, 0 computed and written",
    ]


def test_later_epochs_read_what_the_first_has_computed(tmp_path):
    model = runs.model("llama")
    counting = Counting(model)
    config = dataclasses.replace(
        CONFIG, update_layer_ids=(3,), batch_size=10, max_steps=9, epochs=3, steering_coeff=2.0
    )
    run(model, config, cache_trunk=tmp_path / "cache")
    assert counting.calls[:3] == [6 + 2, 6 + 2, 6 + 2]


def test_a_partial_model_and_a_whole_one_share_their_entries(tmp_path):
    """What a run on a checkpoint's first layers has kept serves the whole model in memory with the same weights."""
    run(runs.saved_model(tmp_path / "model", "gemma3_text"), cache_trunk=tmp_path / "cache")
    before = cached_files(tmp_path / "cache")
    run(runs.model("gemma3_text"), cache_trunk=tmp_path / "cache")
    assert cached_files(tmp_path / "cache") == before


# What it depends on


def test_other_weights_tokens_and_layers_have_other_entries(tmp_path):
    cache = tmp_path / "cache"
    model = runs.model("llama")
    run(model, cache_trunk=cache)
    count = len(cached_files(cache))
    changed = runs.model("llama")
    with torch.no_grad():
        changed.model.layers[0].mlp.up_proj.weight[3, 5] += 1e-3
    without = runs.model("llama")
    without.load_state_dict(changed.state_dict())
    assert_equal(run(without), run(changed, cache_trunk=cache))
    assert len(cached_files(cache)) == 2 * count
    # Weights above the steered layer, and the head, change nothing.
    above = runs.model("llama")
    with torch.no_grad():
        above.lm_head.weight.mul_(2)
    run(above, dataclasses.replace(CONFIG, layer_id=3), cache_trunk=cache)
    assert len(cached_files(cache)) == 2 * count
    config = dataclasses.replace(CONFIG, layer_id=2, update_layer_ids=(1,))
    assert_equal(run(runs.model("llama"), config), run(runs.model("llama"), config, cache_trunk=cache))
    # The trunk below layer 1 is the same, so only the targets at layer 2 are new.
    kinds = [path.parent.name.partition("-")[0] for path in cached_files(cache)]
    assert (kinds.count("trunk"), kinds.count("frozen")) == (24, 7 + 7 + 7)
    torch_threads = torch.get_num_threads()
    entries = TrunkCache(cache, decoder_of(runs.model("llama"))).entries("trunk", 1).folder
    try:
        torch.set_num_threads(torch_threads + 1)
        assert TrunkCache(cache, decoder_of(runs.model("llama"))).entries("trunk", 1).folder != entries
    finally:
        torch.set_num_threads(torch_threads)
    assert TrunkCache(cache, decoder_of(runs.model("llama"))).entries("trunk", 1).folder == entries
    rotary = runs.model("llama")
    rotary.config.rope_parameters["rope_theta"] = 5e5
    assert TrunkCache(cache, decoder_of(rotary)).entries("trunk", 1).folder != entries


# What can be wrong with it


def shortened(path):
    path.write_bytes(path.read_bytes()[:-7])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def swapped(path):
    other = next(one for one in sorted(path.parent.iterdir()) if one != path)
    path.write_bytes(other.read_bytes())


def emptied(path):
    path.write_bytes(b"")


def of_another_program(path):
    path.write_text("not a tensor in sight")


def of_the_cache(caught):
    """The warnings but for the one that few steps have unlearned nothing."""
    return [one for one in caught if "unlearned" not in str(one.message)]


@pytest.mark.parametrize("spoil", [shortened, flipped, swapped, emptied, of_another_program])
def test_a_spoilt_entry_is_reported_computed_again_and_replaced(tmp_path, spoil):
    without = run(runs.model("llama"))
    run(runs.model("llama"), cache_trunk=tmp_path / "cache")
    victims = [
        next(path for path in cached_files(tmp_path / "cache") if kind in str(path)) for kind in ("trunk", "frozen")
    ]
    before = [path.read_bytes() for path in victims]
    for path in victims:
        spoil(path)
    with pytest.warns(WmdpFastWarning, match=r"cannot be used.*computed again") as caught:
        again = run(runs.model("llama"), cache_trunk=tmp_path / "cache")
    assert len(of_the_cache(caught)) == 2
    assert_equal(without, again)
    assert [path.read_bytes() for path in victims] == before
    run(runs.model("llama"), cache_trunk=tmp_path / "cache")  # without a warning


def test_past_its_limit_it_keeps_no_more(tmp_path):
    without = run(runs.model("llama"))
    with pytest.warns(WmdpFastWarning, match="reached its limit of 4e-05 GB") as caught:
        limited = run(runs.model("llama"), cache_trunk=tmp_path / "cache", cache_limit=4e-5)
    assert len(of_the_cache(caught)) == 1
    assert_equal(without, limited)
    size = sum(path.stat().st_size for path in cached_files(tmp_path / "cache"))
    assert 0 < size < 5e-5 * 1e9
    with pytest.raises(ValueError, match="cache_trunk, which is not set"):
        run(runs.model("llama"), cache_limit=1)
    with pytest.raises(ValueError, match="above 0"):
        run(runs.model("llama"), cache_trunk=tmp_path / "cache", cache_limit=0)


def test_a_full_disk_ends_the_cache_and_not_the_run(tmp_path, monkeypatch):
    from wmdp_fast.checkpoints import tensor_file

    write = tensor_file.write_tensors

    def full(path, tensors, metadata, *, sync=True):
        write(path, tensors, metadata, sync=sync)
        raise OSError(28, "No space left on device", str(path))

    without = run(runs.model("llama"))
    monkeypatch.setattr(tensor_file, "write_tensors", full)
    with pytest.warns(WmdpFastWarning, match=r"keeps no more.*No space left") as caught:
        limited = run(runs.model("llama"), cache_trunk=tmp_path / "cache")
    assert len(of_the_cache(caught)) == 1
    assert_equal(without, limited)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "lock"] == []


def test_a_model_that_passes_more_than_its_residual_stream_is_refused(tmp_path):
    model = runs.model("llama")
    decoder = decoder_of(model)
    trained = {
        one.name: one.parameter for one in select_parameters(decoder.layers, decoder.prefix, (2,), "mlp.down_proj")
    }
    branches = Branches(decoder, 2, trained, TrunkCache(tmp_path / "cache", decoder))
    first, second = model.model.layers[0], model.model.layers[2]
    passed = []
    first.register_forward_hook(lambda _m, _i, out: passed.append(out.sum()) if out.abs().sum() > 0 else None)
    second.register_forward_pre_hook(
        lambda _m, args, kwargs: (args, {**kwargs, "from_below": passed[-1] * len(passed)}), with_kwargs=True
    )
    ids = torch.tensor([[3, 4, 5]])
    with pytest.raises(ModelError, match=r"passes more between its layers.*leave the trunk cache out"):
        branches.trunk(Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 0, (0,)))


def test_old_unfinished_files_are_cleared_away(tmp_path):
    run(runs.model("llama"), cache_trunk=tmp_path / "cache")
    folder = cached_files(tmp_path / "cache")[0].parent
    old, young = folder / "a.safetensors.1.unfinished", folder / "b.safetensors.2.unfinished"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    run(runs.model("llama"), cache_trunk=tmp_path / "cache")
    assert not old.exists()
    assert young.exists()


# Processes

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["tests.unlearning.test_trunk_cache"])


def _killed_run(model, output, cache, steps):
    torch.set_num_threads(1)

    class Killer:
        def log(self, _values, step):
            if step == steps:
                os.kill(os.getpid(), signal.SIGKILL)

        def close(self):
            pass

    from wmdp_fast.unlearning import reporting

    reporting.open_trackers = lambda *_args: [Killer()]
    run(model, dataclasses.replace(CONFIG, save_every=2), output=output, cache_trunk=cache, resume=True)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_what_is_kept(tmp_path):
    model = runs.saved_model(tmp_path / "model", "llama")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = dataclasses.replace(CONFIG, save_every=2)
        without = run(model, config, output=tmp_path / "without")
        child = CHILDREN.Process(target=_killed_run, args=(model, tmp_path / "out", tmp_path / "cache", 5))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        notes: list[str] = []
        resumed = run(
            model, config, output=tmp_path / "out", cache_trunk=tmp_path / "cache", resume=True, note=notes.append
        )
    finally:
        torch.set_num_threads(threads)
    assert "resuming after step 4" in notes
    # Step 5 was computed and lost, but its activations were not; step 6 is new.
    assert any("trunk cache: 3 activations read, 3 computed" in note for note in notes)
    for name, tensor in without.tensors.items():
        assert torch.equal(resumed.tensors[name], tensor)
    saved = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("without", "out")]
    assert saved[0] == saved[1]


def test_the_command_keeps_activations(tmp_path, capsys):
    arguments = ["unlearn", str(demo.model_path()), "--forget", str(demo.corpus_path("forget"))]
    arguments += ["--retain", str(demo.corpus_path("retain")), "--layer-id", "3", "--update-layer-ids", "3"]
    arguments += ["--max-steps", "2", "--cache-trunk", str(tmp_path / "cache"), "--cache-limit", "0.5"]
    for output in ("first", "second"):
        assert cli.main([*arguments, "--output", str(tmp_path / output)]) == 0
    said = capsys.readouterr().err
    assert "trunk cache: 8 activations read, 0 computed and written (0.0 MB)" in said
    deltas = [(tmp_path / output / "model.safetensors").read_bytes() for output in ("first", "second")]
    assert deltas[0] == deltas[1]


def test_a_batch_that_another_process_computes_is_waited_for_until_that_ends(tmp_path):
    inputs = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    entries = TrunkCache(tmp_path, decoder_of(runs.model("llama"))).entries("trunk", 1)
    with entries.claimed(inputs):
        pass
    # All places in the file, as another process would lock one of them.
    hold = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'ab'); fcntl.lockf(file, fcntl.LOCK_EX);"
        " print(flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, entries.folder / "lock"], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        begun = time.monotonic()
        threading.Timer(0.3, other.kill).start()
        with entries.claimed(inputs):
            assert time.monotonic() - begun > 0.25

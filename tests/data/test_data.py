"""Finding question files: in local folders, in place of the hub, in its cache, and on the hub itself.

The hub is a small HTTP server on this machine that answers what huggingface_hub asks; the rest is the real thing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.hub_stand_in import running
from wmdp_fast.data.locate import Located, local_questions, locate, locate_all
from wmdp_fast.exceptions import DataUnavailableError
from wmdp_fast.tasks.definitions import TASKS
from wmdp_fast.tasks.resolve import resolve

BIO = TASKS["wmdp_bio"]
ASTRONOMY = replace(TASKS["mmlu_astronomy"], num_fewshot=5)
MAIN = "1" * 40


def touch(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(file)
    return root


def relative(files: tuple[Path, ...], root: Path) -> list[str]:
    return [file.relative_to(root).as_posix() for file in files]


# Files given by path.


def found_in(path: Path, root: Path) -> dict[str, tuple]:
    return {
        one.name: (one.test_split, relative(one.test, root), one.fewshot_split, relative(one.fewshot, root))
        for one in local_questions(path)
    }


@pytest.mark.parametrize("extension", ["csv", "json", "jsonl", "parquet", "csv.gz", "jsonl.zst", "JSONL"])
def test_every_file_in_a_folder_is_a_set(tmp_path, extension):
    touch(tmp_path, f"b.{extension}", f"a.{extension}", "notes.md", "sub/c.csv", ".cache/d_test.csv")
    assert found_in(tmp_path, tmp_path) == {
        "a": ("test", [f"a.{extension}"], None, []),
        "b": ("test", [f"b.{extension}"], None, []),
    }


def test_files_named_by_split_belong_together(tmp_path):
    touch(tmp_path, "x_test.csv", "x_dev.csv", "y_validation.csv", "y_train.csv", "z_dev.csv")
    assert found_in(tmp_path, tmp_path) == {
        "x": ("test", ["x_test.csv"], "dev", ["x_dev.csv"]),
        "y": ("validation", ["y_validation.csv"], "train", ["y_train.csv"]),
        "z": ("dev", ["z_dev.csv"], None, []),
    }


def test_a_folder_may_have_the_layout_of_mmlus_archive_or_of_the_hub(tmp_path):
    touch(tmp_path / "archive", "test/x_test.csv", "dev/x_dev.csv")
    touch(
        tmp_path / "hub",
        "x/test-00000-of-00002.parquet",
        "x/test-00001-of-00002.parquet",
        "x/dev-00000-of-00001.parquet",
    )
    touch(tmp_path / "single", "data/test-00000-of-00001-0123456789abcdef.parquet")
    assert found_in(tmp_path / "archive", tmp_path / "archive") == {
        "x": ("test", ["test/x_test.csv"], "dev", ["dev/x_dev.csv"])
    }
    assert found_in(tmp_path / "hub", tmp_path / "hub/x") == {
        "x": (
            "test",
            ["test-00000-of-00002.parquet", "test-00001-of-00002.parquet"],
            "dev",
            ["dev-00000-of-00001.parquet"],
        )
    }
    assert list(found_in(tmp_path / "single", tmp_path)) == ["single"]


def test_one_file_is_one_set_with_the_examples_beside_it(tmp_path):
    touch(
        tmp_path,
        "x.jsonl",
        "x_dev.jsonl",
        "x_test.jsonl",
        "test/y_test.csv",
        "dev/y_dev.csv",
        "z/test.csv",
        "z/dev.csv",
    )
    assert found_in(tmp_path / "x.jsonl", tmp_path) == {"x": ("test", ["x.jsonl"], "dev", ["x_dev.jsonl"])}
    assert found_in(tmp_path / "x_dev.jsonl", tmp_path) == {"x": ("dev", ["x_dev.jsonl"], None, [])}
    assert found_in(tmp_path / "test/y_test.csv", tmp_path) == {
        "y": ("test", ["test/y_test.csv"], "dev", ["dev/y_dev.csv"])
    }
    assert found_in(tmp_path / "z/test.csv", tmp_path) == {"z": ("test", ["z/test.csv"], "dev", ["z/dev.csv"])}


def test_contradicting_or_missing_local_files_are_errors(tmp_path):
    touch(tmp_path / "two", "x_test.csv", "x_test.jsonl")
    touch(tmp_path / "part", "x/test-00000-of-00003.parquet", "x/test-00002-of-00003.parquet")
    touch(tmp_path, "x.txt")
    with pytest.raises(DataUnavailableError, match=r"both .*x_test\.csv and .*x_test\.jsonl could be meant"):
        local_questions(tmp_path / "two")
    with pytest.raises(DataUnavailableError, match=r"test-00001-of-00003\.parquet is missing"):
        local_questions(tmp_path / "part")
    with pytest.raises(DataUnavailableError, match=r"x\.txt: a question file's name must end in \.csv"):
        local_questions(tmp_path / "x.txt")


def test_local_tasks_keep_their_files(tmp_path, monkeypatch):
    monkeypatch.chdir(touch(tmp_path, "x.jsonl", "x_dev.jsonl"))
    zero, two = (resolve("x.jsonl", num_fewshot=shots).tasks[0] for shots in (0, 2))
    assert locate(zero) == Located((Path("x.jsonl"),), (), None)
    assert locate(two) == Located((Path("x.jsonl"),), (Path("x_dev.jsonl"),), None)


# A folder in place of the hub.


@pytest.mark.parametrize("prefix", ["", "mmlu/", "cais/mmlu/"])
@pytest.mark.parametrize(
    ("test", "dev"),
    [
        ("astronomy/test-00000-of-00001.parquet", "astronomy/dev-00000-of-00001.parquet"),
        ("astronomy/test.jsonl", "astronomy/dev.jsonl"),
        ("test/astronomy_test.csv", "dev/astronomy_dev.csv"),
        ("astronomy_test.csv.gz", "astronomy_dev.csv.gz"),
        ("mmlu_astronomy.jsonl.zst", "mmlu_astronomy_dev.json"),
        ("astronomy.parquet", "astronomy_dev.parquet"),
    ],
)
def test_mmlu_is_found_in_every_layout(tmp_path, prefix, test, dev):
    touch(
        tmp_path / prefix, test, dev, "anatomy_test.csv", "auxiliary_train/train.csv", "all/test-00000-of-00001.parquet"
    )
    for task in (ASTRONOMY, replace(TASKS["mmlu_astronomy_continuation"], num_fewshot=1)):
        located = locate(task, data=tmp_path)
        assert relative(located.test, tmp_path) == [prefix + test]
        assert relative(located.fewshot, tmp_path) == [prefix + dev]
        assert located.revision is None


@pytest.mark.parametrize(
    "file",
    [
        "wmdp-bio/test-00000-of-00001.parquet",
        "wmdp-bio.jsonl",
        "wmdp_bio.csv",
        "wmdp-bio_test.json",
        "wmdp/wmdp-bio/test-00000-of-00001.parquet",
        "bio_questions.json",
    ],
)
def test_wmdp_is_found_in_every_layout(tmp_path, file):
    touch(tmp_path, file, "wmdp-chem.jsonl")
    assert relative(locate(BIO, data=tmp_path).test, tmp_path) == [file]


def test_splits_of_other_names_are_found_by_them_alone(tmp_path):
    robust, shortcut = (TASKS[f"wmdp_bio_{half}_dual_use_virology"] for half in ("robust", "shortcut"))
    touch(tmp_path, "dual_use_virology/robust-00000-of-00001.parquet", "wmdp_bio_shortcut_dual_use_virology.csv")
    touch(tmp_path, "data/cloze_compatible-00000-of-00001.parquet", "data/mcqa_only-00000-of-00001.parquet")
    touch(tmp_path, "dual_use_virology.csv")  # of an unknown split
    found = [locate(task, data=tmp_path).test for task in (robust, shortcut, TASKS["wmdp_bio_cloze_verified"])]
    assert [relative(files, tmp_path)[0] for files in found] == [
        "dual_use_virology/robust-00000-of-00001.parquet",
        "wmdp_bio_shortcut_dual_use_virology.csv",
        "data/cloze_compatible-00000-of-00001.parquet",
    ]


def test_few_shot_files_are_needed_only_for_few_shot(tmp_path):
    touch(tmp_path, "astronomy_test.csv")
    assert locate(replace(ASTRONOMY, num_fewshot=0), data=tmp_path).fewshot == ()
    with pytest.raises(DataUnavailableError, match=r"mmlu_astronomy: no file for the split dev.*astronomy_dev\.csv"):
        locate(ASTRONOMY, data=tmp_path)


def test_what_is_missing_is_said_with_the_names_expected(tmp_path):
    with pytest.raises(DataUnavailableError) as error:
        locate(BIO, data=tmp_path)
    assert str(error.value) == (
        f"wmdp_bio: no file for the split test of cais/wmdp in {tmp_path}; expected"
        " wmdp-bio/test-00000-of-00001.parquet or wmdp-bio_test.csv"
        " (or .json, .jsonl, .parquet, also with .gz or .zst behind)"
    )


def test_two_files_that_could_be_meant_are_an_error_that_names_both(tmp_path):
    touch(tmp_path, "wmdp-bio.jsonl", "wmdp/wmdp-bio/test-00000-of-00001.parquet")
    with pytest.raises(DataUnavailableError, match=r"both .*wmdp-bio\.jsonl and .*00001\.parquet could be meant"):
        locate(BIO, data=tmp_path)


def test_the_same_file_by_two_ways_is_no_contradiction(tmp_path):
    touch(tmp_path, "mmlu/astronomy_test.csv", "mmlu/astronomy_dev.csv")
    (tmp_path / "cais").mkdir()
    (tmp_path / "cais/mmlu").symlink_to(tmp_path / "mmlu")
    assert locate(ASTRONOMY, data=tmp_path).test == (tmp_path / "mmlu/astronomy_test.csv",)


def test_a_missing_part_is_an_error(tmp_path):
    touch(tmp_path, "wmdp-bio/test-00001-of-00002.parquet")
    with pytest.raises(DataUnavailableError, match=r"of which .*wmdp-bio/test-00000-of-00002\.parquet is missing"):
        locate(BIO, data=tmp_path)


def test_data_that_is_no_folder_is_an_error(tmp_path):
    with pytest.raises(NotADirectoryError, match="no such folder; it must hold the datasets"):
        locate(BIO, data=tmp_path / "nowhere")


def test_a_hub_cache_may_be_given_and_says_its_revision(tmp_path):
    file = f"datasets--cais--wmdp/snapshots/{BIO.revision}/wmdp-bio/test-00000-of-00001.parquet"
    touch(tmp_path / "hub", file)
    ways = [tmp_path, tmp_path / "hub", tmp_path / "hub/datasets--cais--wmdp", (tmp_path / "hub" / file).parents[1]]
    for data in ways:
        assert locate(BIO, data=data) == Located((tmp_path / "hub" / file,), (), BIO.revision)
    with pytest.raises(DataUnavailableError, match="no file for the split test"):
        locate(BIO, data=tmp_path, dataset_revision="main")


def test_real_mmlu_is_found_in_both_its_forms(mmlu_dir, mmlu_csv_dir):
    tasks = resolve("mmlu", num_fewshot=5).tasks
    for folder in (mmlu_dir, mmlu_dir.parent, mmlu_csv_dir):
        located = locate_all(tasks, data=folder)
        files = {file for one in located for file in one.test + one.fewshot}
        assert len(files) == 2 * 57
        assert all(file.is_file() for file in files)


# Revisions.


def test_one_revision_for_several_datasets_is_an_error_that_shows_how_to_give_each(tmp_path):
    with pytest.raises(DataUnavailableError, match="cais/wmdp=REVISION,cais/mmlu=REVISION"):
        locate_all([BIO, ASTRONOMY], data=tmp_path, dataset_revision="main")


def test_a_revision_of_a_dataset_that_is_not_used_is_an_error(tmp_path):
    with pytest.raises(
        DataUnavailableError, match="revision was given of cais/mmlu, but the datasets used are: cais/wmdp"
    ):
        locate(BIO, data=tmp_path, dataset_revision={"cais/mmlu": "main"})


# The hub.


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running stand-in, which huggingface_hub takes for the hub, with an empty cache."""
    with running(tmp_path / "cache", monkeypatch) as state:
        yield state


def mmlu_files() -> dict[str, bytes]:
    files = {
        f"{config}/{split}-00000-of-00001.parquet": f"{config} {split}".encode()
        for config in ("astronomy", "anatomy", "all")
        for split in ("test", "dev", "validation")
    }
    return {"README.md": b"", "auxiliary_train/train-00000-of-00001.parquet": b"a hundred megabytes", **files}


def test_only_the_files_needed_are_downloaded_at_the_pinned_revision(hub):
    hub.datasets["cais/mmlu"] = {ASTRONOMY.revision: mmlu_files()}
    anatomy = replace(TASKS["mmlu_anatomy"], num_fewshot=0)
    located = locate_all([ASTRONOMY, anatomy])
    assert [one.revision for one in located] == [ASTRONOMY.revision] * 2
    assert [file.read_bytes() for one in located for file in one.test + one.fewshot] == [
        b"astronomy test",
        b"astronomy dev",
        b"anatomy test",
    ]
    assert sorted(hub.downloads) == [
        "anatomy/test-00000-of-00001.parquet",
        "astronomy/dev-00000-of-00001.parquet",
        "astronomy/test-00000-of-00001.parquet",
    ]


def test_what_is_cached_at_a_commit_is_used_without_asking_the_hub(hub):
    hub.datasets["cais/mmlu"] = {ASTRONOMY.revision: mmlu_files()}
    first = locate(ASTRONOMY)
    hub.requests.clear()
    assert locate(ASTRONOMY) == first
    assert hub.requests == []
    locate(replace(TASKS["mmlu_anatomy"], num_fewshot=0))
    assert hub.downloads[-1] == "anatomy/test-00000-of-00001.parquet"


def test_a_dataset_without_a_pin_follows_main_and_says_the_commit(hub):
    cloze = TASKS["wmdp_bio_cloze_verified"]
    name = "data/cloze_compatible-00000-of-00001.parquet"
    hub.datasets[cloze.dataset] = {MAIN: {name: b"old"}, "2" * 40: {name: b"new"}}
    hub.branches["main"] = MAIN
    assert (locate(cloze).test[0].read_bytes(), locate(cloze).revision) == (b"old", MAIN)
    hub.branches["main"] = "2" * 40
    assert (locate(cloze).test[0].read_bytes(), locate(cloze).revision) == (b"new", "2" * 40)
    assert locate(cloze, dataset_revision=MAIN).test[0].read_bytes() == b"old"
    assert locate(cloze, dataset_revision=f"{cloze.dataset}={MAIN}").revision == MAIN


def test_a_split_in_several_parts_is_downloaded_whole_and_in_order(hub):
    files = {f"wmdp-bio/test-{part:05}-of-00003.parquet": str(part).encode() for part in (2, 0, 1)}
    hub.datasets["cais/wmdp"] = {BIO.revision: files}
    assert [file.read_bytes() for file in locate(BIO).test] == [b"0", b"1", b"2"]


def test_offline_uses_the_cache_and_only_that(hub, monkeypatch):
    hub.datasets["cais/wmdp"] = {BIO.revision: {"wmdp-bio/test-00000-of-00001.parquet": b"bio"}}
    hub.branches["main"] = BIO.revision
    located = locate(BIO)
    hub.requests.clear()
    assert locate(BIO, offline=True) == located
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert locate(BIO) == located
    with pytest.raises(
        DataUnavailableError, match=r"wmdp_chem: cais/wmdp at revision .* is not in the cache .*--data DIR"
    ):
        locate_all([BIO, TASKS["wmdp_chem"]])
    with pytest.raises(DataUnavailableError, match="at revision main is not in the cache"):
        locate(BIO, dataset_revision="main")
    assert hub.requests == []


@pytest.mark.parametrize("status", [401, 403])  # without a token, and with that of someone who has not accepted
def test_a_gated_dataset_says_where_to_accept_and_how_to_log_in(hub, status):
    hub.datasets["cais/wmdp"] = {BIO.revision: {"wmdp-bio/test-00000-of-00001.parquet": b"bio"}}
    hub.gated = status
    with pytest.raises(DataUnavailableError) as error:
        locate(BIO)
    message = str(error.value)
    assert message.startswith(f"cais/wmdp is gated: accept its terms at {hub.url}/datasets/cais/wmdp and log in with")
    assert "`hf auth login` or set HF_TOKEN, or pass --data DIR" in message
    assert "DIR/wmdp-bio/test-00000-of-00001.parquet" in message


def test_a_dataset_that_is_not_there_may_be_private(hub):
    with pytest.raises(DataUnavailableError, match=rf"cais/wmdp is not at {hub.url}, or is private: log in"):
        locate(BIO)


def test_an_unknown_revision_says_where_to_find_one(hub):
    hub.datasets["cais/wmdp"] = {MAIN: {}}
    with pytest.raises(DataUnavailableError, match=r"cais/wmdp has no revision v9: choose one of .*/commits/main"):
        locate(BIO, dataset_revision="v9")


def test_a_revision_without_the_files_says_which_were_expected(hub):
    hub.datasets["cais/wmdp"] = {BIO.revision: {"wmdp-bio/train-00000-of-00001.parquet": b""}}
    with pytest.raises(
        DataUnavailableError, match=r"wmdp_bio: cais/wmdp has no file for the split test at revision 71255"
    ):
        locate(BIO)


def test_a_failing_hub_is_said_to_fail(hub):
    hub.status = 418
    with pytest.raises(
        DataUnavailableError, match=r"did not give cais/wmdp, with status 418: try again later, or pass --data"
    ):
        locate(BIO)


@pytest.mark.usefixtures("hub")
def test_an_unreachable_hub_says_how_to_do_without(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataUnavailableError) as error:
        locate(BIO)
    assert "http://127.0.0.1:9 cannot be reached" in str(error.value)
    assert "set HF_HUB_OFFLINE=1 if the files were downloaded before, or pass --data DIR" in str(error.value)


def test_the_environment_says_where_the_hub_is_and_whether_to_ask_it(hub, tmp_path):
    """In a fresh process, where huggingface_hub reads its settings as a user gives them."""
    hub.datasets["cais/wmdp"] = {BIO.revision: {"wmdp-bio/test-00000-of-00001.parquet": b"bio"}}
    script = (
        "import sys; from wmdp_fast.data.locate import locate; from wmdp_fast.tasks.resolve import resolve\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "located = locate(resolve('wmdp_bio').tasks[0]); print(located.test[0].read_text(), located.revision)"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "other"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    }
    for offline in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment | {"HF_HUB_OFFLINE": offline},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, f"bio {BIO.revision}\n"), done.stderr
    assert hub.downloads == ["wmdp-bio/test-00000-of-00001.parquet"]

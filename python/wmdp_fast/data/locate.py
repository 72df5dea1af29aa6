"""Where the data are: files given by path, a folder in place of the hub, the hub's cache, or the hub itself.

Nothing here reads questions or corpora; it finds the files that `wmdp_fast._rust` then reads. The files of one of
the hub's datasets are recognized by their names, which are the same on the hub, in its cache and in a `--data` folder:

    <config>/<split>-00000-of-00001.parquet   the hub's layout; in `data/` or the root if there are no configurations
    <config>/<split>.<extension>
    <name>_<split>.<extension>                plain files, also in a folder `<split>/`, as MMLU was first published
    <name>.<extension>                        plain files with the test split alone

`<name>` is the configuration or the task; `<extension>` is csv, json, jsonl or parquet, also with .gz or .zst behind.
"""

from __future__ import annotations

import glob
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from wmdp_fast.exceptions import DataUnavailableError
from wmdp_fast.runtime.hub import why_unreachable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from os import PathLike

_EXTENSION = re.compile(r"\.(csv|json|jsonl|parquet)(\.(gz|zst))?$", re.IGNORECASE)
_EXTENSION_IN_WORDS = ".csv, .json, .jsonl or .parquet, also with .gz or .zst behind"
_SHARD = re.compile(r"(?P<split>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")

# The splits that names of local files are searched for. The first that is there holds the questions, the first of the
# second list that is left holds the few-shot examples.
_TEST_SPLITS = ("test", "validation", "val", "dev", "train")
_FEWSHOT_SPLITS = ("dev", "validation", "val", "train")

# What `datasets` keeps beside the data.
_NOT_QUESTIONS = frozenset({"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"})


class Wanted(Protocol):
    """What files are looked for: a `wmdp_fast.tasks.resolve.Task`, or a corpus."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def dataset(self) -> str:
        """Repository on the hub."""

    @property
    def config(self) -> str | None:
        """The dataset's configuration, if it has several."""

    @property
    def test_split(self) -> str:
        """Split that holds the data."""

    @property
    def fewshot_split(self) -> str | None:
        """Split that holds few-shot examples, if any."""

    @property
    def num_fewshot(self) -> int | None:
        """How many of those are wanted."""

    @property
    def revision(self) -> str | None:
        """Pinned commit, if any."""

    @property
    def subject(self) -> str | None:
        """MMLU subject, if any."""

    @property
    def test_files(self) -> tuple[Path, ...]:
        """Its files, if they are known already."""

    @property
    def fewshot_files(self) -> tuple[Path, ...]:
        """Its few-shot files, if they are known already."""

    @property
    def extensions(self) -> str:
        """What a plain file in its place may end in, for messages."""


@dataclass(frozen=True)
class Located:
    """The files of one task, all of them on this machine.

    Attributes:
        test: Files with the questions, in order.
        fewshot: Files with the few-shot examples; empty if the task needs none.
        revision: Commit of the dataset if the files are the hub's, else None.
    """

    test: tuple[Path, ...]
    fewshot: tuple[Path, ...]
    revision: str | None


@dataclass(frozen=True)
class QuestionFiles:
    """One set of questions found by path.

    Attributes:
        name: The file's name without extension and split, or the name of its configuration's folder.
        test_split: Name of the split the questions are from.
        test: Files with the questions, in order.
        fewshot_split: Name of the split for few-shot examples, or None.
        fewshot: Files with few-shot examples, in order.
    """

    name: str
    test_split: str
    test: tuple[Path, ...]
    fewshot_split: str | None
    fewshot: tuple[Path, ...]


def without_extension(name: str) -> str | None:
    """The name of a question file without its extension, or None if it cannot be one."""
    match = _EXTENSION.search(name)
    return name[: match.start()] if match else None


# Files given by path.


def local_questions(path: Path) -> list[QuestionFiles]:
    """The sets of questions in a file or folder.

    A file is one set; its few-shot examples are in `<name>_dev` beside it, if that exists. In a folder, every file is a
    set; files named by split (`x_test.csv` and `x_dev.csv`, `test/x_test.csv`, `x/test-00000-of-00001.parquet`) belong
    together.

    Args:
        path: A file or a folder that exists.

    Returns:
        The sets, by name.

    Raises:
        DataUnavailableError: Nothing there has the name of a question file, files contradict each other, or a part of
            several is missing.
    """
    if path.is_file():
        if without_extension(path.name) is None:
            raise DataUnavailableError(f"{path}: a question file's name must end in {_EXTENSION_IN_WORDS}")
        return [_around(path)]
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    below = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for folder in (path, *below):
        for file in _question_files(folder):
            name, split = _name_and_split(file, path)
            # One folder down, only names with a split count: what else is there may be no questions.
            if folder == path or split:
                found[name][split or "test"].append(file)
    if not found:
        raise DataUnavailableError(f"{path}: no question file in this folder; their names end in {_EXTENSION_IN_WORDS}")
    return [_set_of(name, splits) for name, splits in sorted(found.items())]


def _around(path: Path) -> QuestionFiles:
    """The set of one file: the file itself, and the few-shot examples beside it."""
    name, split = _name_and_split(path, path.parent)
    splits = defaultdict(list, {split or "test": [path]})
    folders = [path.parent]
    if path.parent.name == split:
        folders += [path.parent.parent / other for other in _FEWSHOT_SPLITS if (path.parent.parent / other).is_dir()]
    for folder in folders:
        for file in _question_files(folder):
            other_name, other_split = _name_and_split(file, folder)
            if other_name == name and other_split and other_split not in (split or "test", "test"):
                splits[other_split].append(file)
    return _set_of(name, splits, test_split=split or "test")


def _question_files(folder: Path) -> list[Path]:
    """The files in a folder that have the name of a question file, sorted."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if _EXTENSION.search(entry.name)
        and not entry.name.startswith(".")
        and entry.name not in _NOT_QUESTIONS
        and entry.is_file()
    )


def _name_and_split(file: Path, root: Path) -> tuple[str, str | None]:
    """What a file's path says about its set's name, and about its split (None if nothing)."""
    base = without_extension(file.name) or file.name
    shard = _SHARD.fullmatch(base)
    split = shard["split"] if shard else base
    if split in _TEST_SPLITS:
        # `<config>/test-00000-of-00001.parquet`, or in `data/` where there are no configurations.
        folder = root if file.parent.name == "data" else file.parent
        return folder.resolve().name, split
    for split in _TEST_SPLITS:
        if base.endswith(f"_{split}"):
            return base.removesuffix(f"_{split}"), split
    return base, None


def _set_of(name: str, splits: Mapping[str, list[Path]], test_split: str | None = None) -> QuestionFiles:
    test_split = test_split or next(split for split in _TEST_SPLITS if split in splits)
    fewshot_split = next((split for split in _FEWSHOT_SPLITS if split in splits and split != test_split), None)
    return QuestionFiles(
        name=name,
        test_split=test_split,
        test=_only_set(splits[test_split]),
        fewshot_split=fewshot_split,
        fewshot=_only_set(splits[fewshot_split]) if fewshot_split else (),
    )


def _only_set(files: list[Path]) -> tuple[Path, ...]:
    """The files, if they are one file or all the parts of one."""
    sets = _sets([str(file) for file in files])
    if len(sets) > 1:
        raise DataUnavailableError(_ambiguous(sets))
    if len(files) > 1:
        _require_complete(sets[0])
    return tuple(map(Path, sets[0].files))


# The hub's datasets, wherever their files are.


@dataclass(frozen=True)
class _FileSet:
    """Files that together are one split, and the first one missing among its parts."""

    files: tuple[str, ...]
    missing: str | None = None


def _sets(files: Iterable[str]) -> list[_FileSet]:
    """Puts the parts of one split together; every other file is a set by itself."""
    sets: list[_FileSet] = []
    parts: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for file in sorted(files):
        folder, _, name = file.rpartition("/")
        shard = _SHARD.fullmatch(without_extension(name) or name)
        if shard:
            parts[f"{folder}/{shard['split']}", shard["count"]][int(shard["index"])] = file
        else:
            sets.append(_FileSet((file,)))
    for (stem, count), found in parts.items():
        missing = next((index for index in range(int(count)) if index not in found), None)
        absent = None if missing is None else f"{stem.removeprefix('/')}-{missing:05}-of-{count}.parquet"
        sets.append(_FileSet(tuple(found[index] for index in sorted(found)), absent))
    return sets


def _require_complete(files: _FileSet) -> None:
    if files.missing:
        raise DataUnavailableError(f"{files.files[0]} is one of several parts, of which {files.missing} is missing")


def _ambiguous(sets: Sequence[_FileSet]) -> str:
    return f"both {sets[0].files[0]} and {sets[1].files[0]} could be meant; move one of them away"


def _candidates(files: Iterable[str], task: Wanted, split: str) -> list[_FileSet]:
    """The sets among `files` (relative to a dataset's root) that could be `split` of `task`, the hub's layout first."""
    folders = {task.config} if task.config else {"", "data"}
    names = _plain_names(task)
    # Without a split in its name, a file can only be the split that is usually meant, or is named after this very task.
    bare = {name for name in names if split == "test" or name == task.name} if split == task.test_split else set()
    hub, plain = [], []
    for file in files:
        folder, _, name = file.rpartition("/")
        base = without_extension(name) or ""
        shard = _SHARD.fullmatch(base)
        if folder in folders and (shard["split"] if shard else base) == split:
            hub.append(file)
        elif (folder in ("", split) and base in {f"{name}_{split}" for name in names}) or (not folder and base in bare):
            plain.append(file)
    return _sets(hub) + _sets(plain)


def _plain_names(task: Wanted) -> list[str]:
    """The names that a plain file of this task may have."""
    names = [task.config or task.dataset.rpartition("/")[2], task.name]
    if task.subject:
        names.append(f"mmlu_{task.subject}")
    if task.dataset == "cais/wmdp" and task.config:
        # As in the benchmark's own archive: bio_questions.json.
        names.append(f"{task.config.removeprefix('wmdp-')}_questions")
    return names


def _splits(task: Wanted) -> tuple[str, ...]:
    """The splits this task needs: that of the questions and, if there are any, that of the few-shot examples."""
    return (task.test_split, task.fewshot_split) if task.fewshot_split and task.num_fewshot else (task.test_split,)


def _expected(task: Wanted, split: str) -> str:
    hub = f"{task.config or 'data'}/{split}-00000-of-00001.parquet"
    return f"{hub} or {_plain_names(task)[0]}_{split}{task.extensions}"


def locate(
    task: Wanted,
    *,
    data: str | PathLike[str] | None = None,
    dataset_revision: str | Mapping[str, str] | None = None,
    offline: bool | None = None,
) -> Located:
    """Finds the files of one task, downloading them if need be; see `locate_all`, which is faster for several tasks."""
    return locate_all([task], data=data, dataset_revision=dataset_revision, offline=offline)[0]


def locate_all(
    tasks: Sequence[Wanted],
    *,
    data: str | PathLike[str] | None = None,
    dataset_revision: str | Mapping[str, str] | None = None,
    offline: bool | None = None,
) -> list[Located]:
    """Finds the files of tasks, downloading those that are neither given nor cached.

    Few-shot files are looked for only where a task's `num_fewshot` is above 0. Of a dataset on the hub, no other files
    are downloaded than those the tasks need.

    Args:
        tasks: The tasks; those made from local files keep them.
        data: Folder to use in place of the hub: a copy of a dataset, a folder of such copies (`DIR/mmlu` or
            `DIR/cais/mmlu`), a folder with plain files, or a hub cache. Nothing is then downloaded.
        dataset_revision: Commit, tag or branch to use in place of the pinned one, if all tasks are from one dataset;
            else a mapping from datasets to revisions, or the same as `dataset=revision,...`.
        offline: Whether to use only what is cached. None does as `HF_HUB_OFFLINE` says.

    Returns:
        The files of each task, in order.

    Raises:
        DataUnavailableError: Files are missing, ambiguous, gated or out of reach; the message says what to do.
        NotADirectoryError: `data` is not a folder.
    """
    revisions = _revisions(tasks, dataset_revision)
    if data is not None and not Path(data).is_dir():
        raise NotADirectoryError(f"{data}: no such folder; it must hold the datasets that would come from the hub")
    located: dict[int, Located] = {}
    from_hub: dict[str, list[int]] = defaultdict(list)
    for index, task in enumerate(tasks):
        if task.test_files:
            located[index] = Located(task.test_files, task.fewshot_files if task.num_fewshot else (), None)
        elif data is not None:
            located[index] = _in_data_folder(Path(data), task, revisions[task.dataset])
        else:
            from_hub[task.dataset].append(index)
    for dataset, indices in from_hub.items():
        found = _from_hub(dataset, revisions[dataset], [tasks[index] for index in indices], offline)
        located.update(zip(indices, found, strict=True))
    return [located[index] for index in range(len(tasks))]


def _revisions(tasks: Sequence[Wanted], asked: str | Mapping[str, str] | None) -> dict[str, str]:
    """The revision to use of each dataset: what was asked for, else the pinned one, else `main`."""
    revisions = {task.dataset: task.revision or "main" for task in tasks if not task.test_files}
    if asked is None:
        return revisions
    if isinstance(asked, str) and "=" in asked:
        asked = dict(pair.strip().split("=", 1) for pair in asked.split(",") if "=" in pair)
    elif isinstance(asked, str):
        if len(revisions) != 1:
            each = ",".join(f"{dataset}=REVISION" for dataset in revisions) or "no dataset of the hub is used"
            raise DataUnavailableError(f"the revision {asked} does not say of which dataset it is: {each}")
        asked = dict.fromkeys(revisions, asked)
    unused = set(asked) - set(revisions)
    if unused:
        used = ", ".join(revisions) or "none"
        raise DataUnavailableError(f"a revision was given of {min(unused)}, but the datasets used are: {used}")
    return revisions | dict(asked)


# A folder in place of the hub.


def _in_data_folder(data: Path, task: Wanted, revision: str) -> Located:
    roots: list[tuple[Path, str | None]] = [
        (root, _commit_of(root))
        for root in (data, data / task.dataset.rpartition("/")[2], data / task.dataset)
        if root.is_dir()
    ]
    caches = (data, data / "hub", *([data.parent] if data.name == _cache_name(task.dataset) else []))
    roots += filter(None, (_snapshot(cache, task.dataset, revision) for cache in caches))
    test, commit = _search(roots, task, task.test_split, data)
    if len(_splits(task)) == 1:
        return Located(test, (), commit)
    fewshot, fewshot_commit = _search(roots, task, _splits(task)[1], data)
    return Located(test, fewshot, commit if commit == fewshot_commit else None)


def _search(
    roots: Iterable[tuple[Path, str | None]], task: Wanted, split: str, data: Path
) -> tuple[tuple[Path, ...], str | None]:
    """The files of one split, and their commit if known, where exactly one of the roots has them."""
    found: dict[tuple[Path, ...], tuple[_FileSet, str | None]] = {}
    for root, commit in roots:
        for candidate in _candidates(_listing(root, task, split), task, split):
            files = _FileSet(tuple(str(root / file) for file in candidate.files), candidate.missing)
            found.setdefault(tuple(Path(file).resolve() for file in files.files), (files, commit))
    if not found:
        raise DataUnavailableError(
            f"{task.name}: no file for the split {split} of {task.dataset} in {data}; expected {_expected(task, split)}"
        )
    if len(found) > 1:
        raise DataUnavailableError(f"{task.name}: {_ambiguous([files for files, _ in found.values()])}")
    [(only, commit)] = found.values()
    _require_complete(only)
    return tuple(map(Path, only.files)), commit


def _listing(root: Path, task: Wanted, split: str) -> Iterator[str]:
    """The question files, relative to `root`, in those of its folders that can matter to the task."""
    for folder in dict.fromkeys(("", task.config or "data", split)):
        if (root / folder).is_dir():
            for file in _question_files(root / folder):
                yield f"{folder}/{file.name}".lstrip("/")


# The hub and its cache.


def _cache_name(dataset: str) -> str:
    return f"datasets--{dataset.replace('/', '--')}"


def _commit_of(path: Path) -> str | None:
    """The commit, if `path` is a snapshot in the hub's cache."""
    path = path.absolute()
    return path.name if path.parent.name == "snapshots" and _COMMIT.fullmatch(path.name) else None


def _snapshot(cache: Path, dataset: str, revision: str) -> tuple[Path, str] | None:
    """Folder and commit of a dataset's revision, if it is cached."""
    storage = cache / _cache_name(dataset)
    reference = storage / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = storage / "snapshots" / commit
    return (folder, commit) if folder.is_dir() else None


def _in_snapshot(folder: Path, commit: str, task: Wanted) -> Located | None:
    """The files of a task in a snapshot, or None if not all of them were downloaded."""
    found: list[tuple[Path, ...]] = []
    for split in _splits(task):
        complete = [files for files in _candidates(_listing(folder, task, split), task, split) if not files.missing]
        if not complete:
            return None
        found.append(tuple(folder / file for file in complete[0].files))
    return Located(found[0], found[1] if len(found) > 1 else (), commit)


def _from_hub(dataset: str, revision: str, tasks: Sequence[Wanted], offline: bool | None) -> list[Located]:
    from huggingface_hub import HfApi, constants

    offline = constants.HF_HUB_OFFLINE if offline is None else offline
    cached = _snapshot(Path(constants.HF_HUB_CACHE), dataset, revision)
    missing = tasks[0]
    # A commit never changes, so a cached one needs no question to the hub. A branch may have moved.
    if cached and (offline or _COMMIT.fullmatch(revision)):
        located = [_in_snapshot(*cached, task) for task in tasks]
        complete = [files for files in located if files]
        if len(complete) == len(tasks):
            return complete
        missing = tasks[located.index(None)]
    instead = f"pass --data DIR with the files, e.g. DIR/{_expected(missing, missing.test_split)}"
    if offline:
        raise DataUnavailableError(
            f"{missing.name}: {dataset} at revision {revision} is not in the cache {constants.HF_HUB_CACHE}, and the"
            f" hub is switched off; unset HF_HUB_OFFLINE to download it, or {instead}"
        )

    if (reason := why_unreachable(constants.ENDPOINT)) is not None:
        raise DataUnavailableError(f"{_unreachable(dataset, reason)}, or {instead}")
    api = HfApi()
    try:
        info = api.dataset_info(dataset, revision=revision)
        commit = info.sha or revision
        files = [sibling.rfilename for sibling in info.siblings or ()]
        wanted = [file for task in tasks for split in _splits(task) for file in _choose(files, task, split, commit)]
        patterns = [glob.escape(file) for file in wanted]
        folder = Path(api.snapshot_download(dataset, repo_type="dataset", revision=commit, allow_patterns=patterns))
    except _hub_errors() as error:
        raise DataUnavailableError(f"{_explain(error, dataset, revision)}, or {instead}") from error
    downloaded = [files for files in (_in_snapshot(folder, commit, task) for task in tasks) if files]
    if len(downloaded) < len(tasks):
        raise DataUnavailableError(f"{dataset}: the download into {folder} is not complete; delete it and try again")
    return downloaded


def _choose(files: Sequence[str], task: Wanted, split: str, commit: str) -> tuple[str, ...]:
    """The files to download for one split."""
    for candidate in _candidates(files, task, split):
        if not candidate.missing:
            return candidate.files
    raise DataUnavailableError(
        f"{task.name}: {task.dataset} has no file for the split {split} at revision {commit} (expected"
        f" {_expected(task, split)}); choose another with --dataset-revision, or pass --data DIR"
    )


def _hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises if a download fails, errors of the transport included."""
    from huggingface_hub import errors

    # Base of the errors of its HTTP library, which is httpx, or from version 2 on httpx2.
    transport: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    return transport, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError


def _explain(error: Exception, dataset: str, revision: str) -> str:
    """What went wrong, and what the user can do about it; more alternatives can be appended."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"{constants.ENDPOINT}/datasets/{dataset}"
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    match error:
        case GatedRepoError():
            return f"{dataset} is gated: accept its terms at {page} and {log_in}"
        case RevisionNotFoundError():
            return f"{dataset} has no revision {revision}: choose one of {page}/commits/main"
        case RepositoryNotFoundError():
            return f"{dataset} is not at {constants.ENDPOINT}, or is private: {log_in} if you have access"
        case HfHubHTTPError():
            status = error.response.status_code
            return f"{constants.ENDPOINT} did not give {dataset}, with status {status}: try again later"
    return _unreachable(dataset, (str(error).strip() or type(error).__name__).splitlines()[0])


def _unreachable(dataset: str, reason: str) -> str:
    from huggingface_hub import constants

    return (
        f"{dataset}: {constants.ENDPOINT} cannot be reached ({reason}): check the connection, set HF_HUB_OFFLINE=1 if"
        " the files were downloaded before"
    )

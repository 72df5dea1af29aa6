"""Where the files of a model are: a folder, the hub's cache, or the hub itself.

Weights are read from safetensors files only. Pickled weights (`pytorch_model.bin`) can run code of their author's when
they are opened, so they are refused here, before anything reads them; also where an index of safetensors files names
them. Which files are a model's weights, `weight_files` says.
"""

from __future__ import annotations

import difflib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast.checkpoints.model_name import parts_of
from wmdp_fast.checkpoints.weight_files import (
    ADAPTER_CONFIG,
    CONFIG,
    WEIGHTS,
    candidates,
    read_json,
    refuse_adapter_beside_model,
    shards_of,
    shown,
    weight_files,
)
from wmdp_fast.exceptions import DataUnavailableError, ModelError
from wmdp_fast.runtime.hub import why_unreachable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Folders among which one with a name close to that of a missing one is looked for.
_MOST_LOOKED_AT = 10_000

_TO_SAFETENSORS = (
    "pickled weights can run code when they are opened, so only safetensors are read. Convert them where you trust"
    " their author: `model.save_pretrained(folder)` writes safetensors, and https://huggingface.co/spaces/safetensors/convert"
    " does it for a model on the hub"
)


@dataclass(frozen=True)
class Files:
    """The files of a model or adapter on this machine.

    Attributes:
        folder: Holds the configuration and, once they are loaded, the weights.
        commit: The hub's commit, or None for a folder of the user's.
    """

    folder: Path
    commit: str | None

    def address(self, name_or_path: str) -> str:
        """What transformers finds them by: the folder, or the name on the hub."""
        return str(self.folder) if self.commit is None else name_or_path


def locate_model(name_or_path: str, *, revision: str | None) -> Files:
    """Finds a model and makes sure that it has safetensors weights, and that its index names nothing else.

    Args:
        name_or_path: A local folder, or else a name on the hub.
        revision: Branch, tag or commit on the hub. None means `main`.

    Raises:
        DataUnavailableError: It is gated, missing or out of reach; the message says what to do.
        ModelError: It is no model, has pickled weights only, or is damaged; the message says what to do.
        OSError: A file cannot be read.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_file():
        raise ModelError(_about_file(folder))
    if not folder.is_dir():
        return _on_hub(name_or_path, revision, CONFIG)
    if not (folder / CONFIG).is_file():
        raise ModelError(_no_config(folder))
    files = weight_files(folder)
    if files is None:
        raise ModelError(_no_weights(str(folder), candidates(folder), pickled=_pickled(folder)))
    files.refuse_missing()
    return Files(folder, commit=None)


def locate_config(name_or_path: str, *, revision: str | None) -> Files:
    """Finds a model's configuration, beside which its tokenizer is; weights need not be there, and are not asked for.

    Args:
        name_or_path: A local folder, or else a name on the hub.
        revision: Branch, tag or commit on the hub. None means `main`.

    Raises:
        DataUnavailableError: It is gated, missing or out of reach; the message says what to do.
        ModelError: It is no model; the message says what to do.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_file():
        raise ModelError(_about_file(folder))
    if not folder.is_dir():
        return _on_hub(name_or_path, revision, CONFIG, weights=False)
    if not (folder / CONFIG).is_file():
        raise ModelError(_no_config(folder))
    return Files(folder, commit=None)


def locate_adapter(name_or_path: str) -> Files:
    """Finds a PEFT adapter and makes sure that it has safetensors weights.

    Args:
        name_or_path: A local folder, or else a name on the hub.

    Raises:
        DataUnavailableError: It is gated, missing or out of reach; the message says what to do.
        ModelError: It is no adapter, or has pickled weights only; the message says what to do.
        OSError: A file cannot be read.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_file():
        raise ModelError(f"{folder} is a file; pass the folder that `save_pretrained` of the adapter wrote")
    if not folder.is_dir():
        return _on_hub(name_or_path, None, ADAPTER_CONFIG)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(f"{folder} has no {ADAPTER_CONFIG}; pass the folder that `save_pretrained` wrote")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(_no_weights(str(folder), (ADAPTER_WEIGHTS,), pickled=_pickled(folder)))
    read_json(folder / ADAPTER_CONFIG)
    return Files(folder, commit=None)


def _about_file(file: Path) -> str:
    if file.suffix == ".gguf":
        return (
            f"{file} is a model of llama.cpp: serve it with a server that speaks OpenAI's protocol and pass --engine"
            " openai with --base-url, or make safetensors of it: `AutoModelForCausalLM.from_pretrained(folder,"
            " gguf_file=...)` reads it, `save_pretrained` of model and tokenizer writes them"
        )
    return f"{file} is a file; pass the folder that `save_pretrained` wrote, with {CONFIG} and {WEIGHTS} in it"


def _no_config(folder: Path) -> str:
    if (folder / ADAPTER_CONFIG).is_file():
        return _is_adapter(str(folder), folder / ADAPTER_CONFIG)
    if gguf := sorted(folder.glob("*.gguf")):
        return f"{folder} has no {CONFIG}, but {gguf[0].name}: {_about_file(gguf[0])}"
    return f"{folder} has no {CONFIG}; pass the folder that `save_pretrained` wrote"


def _is_adapter(name: str, config: Path) -> str:
    base = read_json(config).get("base_model_name_or_path")
    called = f", {shown(base)}," if isinstance(base, str) and base else ""
    return (
        f"{name} is a PEFT adapter, not a model: pass the model that it belongs to{called} and the adapter with"
        f" peft (--peft {name})"
    )


def _pickled(folder: Path) -> list[str]:
    return sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))


def _no_weights(what: str, weights: tuple[str, ...], *, pickled: list[str]) -> str:
    missing = f"{what} has no {' or '.join(weights)}"
    return f"{missing}, but {pickled[0]}: {_TO_SAFETENSORS}" if pickled else missing


def _on_hub(name: str, revision: str | None, config: str, *, weights: bool = True) -> Files:
    from huggingface_hub import HfApi, errors
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    # Base of the errors of its HTTP library, which is httpx, or from version 2 on httpx2.
    transport_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]

    if is_path(name):
        raise ModelError(no_such_folder(name))
    api = HfApi()
    try:
        _refuse_unreachable(name, revision, config)
        try:
            # A file of the cache lies in snapshots/<commit>/.
            folder = Path(api.hf_hub_download(name, config, revision=revision)).parent
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            if config == CONFIG and (adapter := _downloaded(api, name, ADAPTER_CONFIG, revision)) is not None:
                raise ModelError(_is_adapter(name, adapter)) from None
            raise
        if not weights or _weights_on_hub(api, name, folder, config) is not None:
            return Files(folder, commit=folder.name)
        pickled = [file for file in api.list_repo_files(name, revision=folder.name) if file.endswith(".bin")]
    except HFValidationError:
        raise ModelError(no_such_folder(name)) from None
    except LocalEntryNotFoundError as error:
        raise DataUnavailableError(_out_of_reach(name, revision, error)) from error
    except EntryNotFoundError as error:
        raise ModelError(f"{name} on the hub has no {config}, so it cannot be loaded with transformers") from error
    except (transport_error, errors.OfflineModeIsEnabled) as error:
        raise DataUnavailableError(_refused(name, revision, error)) from error
    names = candidates(folder) if config == CONFIG else (ADAPTER_WEIGHTS,)
    raise ModelError(_no_weights(name, names, pickled=pickled))


def is_path(name: str) -> bool:
    """Whether a name can only be that of a folder; `owner/model` may be one as well."""
    return name.startswith(("/", "./", "../", "~", ".\\")) or name.count("/") > 1 or name.endswith("/")


def no_such_folder(name: str) -> str:
    """What to say of a name that is no folder here and cannot be one on the hub."""
    if parts_of(name)[1] is not None:
        return (
            f"{name} can be scored and attacked, but not trained: make a checkpoint of the two first, by"
            " wmdp-fast apply-delta BASE DELTA OUT"
        )
    return f"{name} is neither a folder nor a name on the hub such as `owner/model`{_did_you_mean(name)}"


def _did_you_mean(name: str) -> str:
    """The folder whose name is closest to one that does not exist, as a question; nothing if none is close."""
    path = Path(name).expanduser()
    try:
        beside = [one.name for one in itertools.islice(path.parent.iterdir(), _MOST_LOOKED_AT) if one.is_dir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, beside, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def _refuse_unreachable(name: str, revision: str | None, file: str) -> None:
    """Raises if a repository is not in the cache, and the hub cannot be asked for it."""
    from huggingface_hub import constants, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(name, file, revision=revision), str):
        return
    if (reason := why_unreachable(constants.ENDPOINT)) is not None:
        raise DataUnavailableError(_cannot_be_reached(name, revision, reason))


def _weights_on_hub(api: HfApi, name: str, folder: Path, config: str) -> Path | None:
    """Downloads the file with the weights or their index, and makes sure that the index names safetensors files only.

    The first of the candidates that is there, by the rule for folders; None if there is none of them. Without the hub
    it is the first in the cache, into which only what the rule chose at this commit ever came.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if config == ADAPTER_CONFIG:
        read_json(folder / config)
        names: tuple[str, ...] = (ADAPTER_WEIGHTS,)
    else:
        _downloaded(api, name, ADAPTER_CONFIG, folder.name)
        refuse_adapter_beside_model(folder)
        names = candidates(folder)
    out_of_reach: LocalEntryNotFoundError | None = None
    for file in names:
        try:
            found = Path(api.hf_hub_download(name, file, revision=folder.name))
        except LocalEntryNotFoundError as error:
            out_of_reach = out_of_reach or error
            continue
        except EntryNotFoundError:
            continue
        if file.endswith(".json"):
            shards_of(found)
        return found
    if out_of_reach is not None:
        raise out_of_reach
    return None


def _downloaded(api: HfApi, name: str, file: str, revision: str | None) -> Path | None:
    """A file of a repository, or None if it is not there or, without the hub, not in the cache."""
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(api.hf_hub_download(name, file, revision=revision))
    except EntryNotFoundError:
        return None


def _out_of_reach(name: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return (
            f"{_not_here(name, revision)}, and the hub is switched off: unset HF_HUB_OFFLINE to download it, or pass a"
            f" local folder{_did_you_mean(name)}"
        )
    cause = error.__cause__ or error
    return _cannot_be_reached(name, revision, (str(cause).strip() or type(cause).__name__).splitlines()[0])


def _not_here(name: str, revision: str | None) -> str:
    from huggingface_hub import constants

    at = f" at revision {revision}" if revision else ""
    return f"{name}{at} is neither a folder here nor in the cache {constants.HF_HUB_CACHE}"


def _cannot_be_reached(name: str, revision: str | None, reason: str) -> str:
    from huggingface_hub import constants

    why = f"{constants.ENDPOINT} cannot be reached ({reason})"
    return f"{_not_here(name, revision)}, and {why}: check the connection, or pass a local folder{_did_you_mean(name)}"


def _refused(name: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"{constants.ENDPOINT}/{name}"
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    match error:
        case GatedRepoError():
            return f"{name} is gated: accept its license at {page} and {log_in}, or pass a local folder"
        case RevisionNotFoundError():
            return f"{name} has no revision {revision}: choose one of {page}/commits/main"
        case RepositoryNotFoundError():
            return (
                f"{name} is no folder here, and not at {constants.ENDPOINT} or private: check the name, and {log_in}"
                f" if you have access{_did_you_mean(name)}"
            )
        case HfHubHTTPError():
            status = error.response.status_code
            return f"{constants.ENDPOINT} did not give {name}, with status {status}: try again later"
    return _out_of_reach(name, revision, error)

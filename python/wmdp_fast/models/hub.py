"""Where the files of a model are: a folder, the hub's cache, or the hub itself.

Weights are read from safetensors files only. Pickled weights (`pytorch_model.bin`) can run code of their author's when
they are opened, so they are refused here, before anything reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wmdp_fast.exceptions import DataUnavailableError, ModelError

MODEL_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
ADAPTER_WEIGHTS = ("adapter_model.safetensors",)

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


def locate(name_or_path: str, *, revision: str | None, config: str, weights: tuple[str, ...]) -> Files:
    """Finds a model or adapter and makes sure that it has safetensors weights.

    Args:
        name_or_path: A local folder, or else a name on the hub.
        revision: Branch, tag or commit on the hub. None means `main`.
        config: Name of its configuration file.
        weights: Names of the file that holds the weights, or their index; one of them must be there.

    Raises:
        DataUnavailableError: It is gated, missing or out of reach; the message says what to do.
        ModelError: It is no model, or has pickled weights only; the message says what to do.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if not (folder / config).is_file():
            raise ModelError(f"{folder} has no {config}; pass the folder that `save_pretrained` wrote")
        if not any((folder / file).is_file() for file in weights):
            raise ModelError(_no_weights(str(folder), weights, pickled=sorted(_pickled(folder))))
        return Files(folder, commit=None)
    return _on_hub(name_or_path, revision, config, weights)


def _pickled(folder: Path) -> list[str]:
    return [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)]


def _no_weights(what: str, weights: tuple[str, ...], *, pickled: list[str]) -> str:
    missing = f"{what} has no {' or '.join(weights)}"
    return f"{missing}, but {pickled[0]}: {_TO_SAFETENSORS}" if pickled else missing


def _on_hub(name: str, revision: str | None, config: str, weights: tuple[str, ...]) -> Files:
    from huggingface_hub import HfApi, errors
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    # Base of the errors of its HTTP library, which is httpx, or from version 2 on httpx2.
    transport_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]

    api = HfApi()
    try:
        # A file of the cache lies in snapshots/<commit>/.
        folder = Path(api.hf_hub_download(name, config, revision=revision)).parent
        for file in weights:
            try:
                api.hf_hub_download(name, file, revision=folder.name)
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue
            return Files(folder, commit=folder.name)
        pickled = [file for file in api.list_repo_files(name, revision=folder.name) if file.endswith(".bin")]
    except HFValidationError:
        raise ModelError(f"{name} is neither a folder nor a name on the hub such as `owner/model`") from None
    except LocalEntryNotFoundError as error:
        raise DataUnavailableError(_out_of_reach(name, revision, error)) from error
    except EntryNotFoundError as error:
        raise ModelError(f"{name} on the hub has no {config}, so it cannot be loaded with transformers") from error
    except (transport_error, errors.OfflineModeIsEnabled) as error:
        raise DataUnavailableError(_refused(name, revision, error)) from error
    raise ModelError(_no_weights(name, weights, pickled=pickled))


def _out_of_reach(name: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants

    at = f" at revision {revision}" if revision else ""
    missing = f"{name}{at} is neither a folder here nor in the cache {constants.HF_HUB_CACHE}"
    if constants.HF_HUB_OFFLINE:
        return f"{missing}, and the hub is switched off: unset HF_HUB_OFFLINE to download it, or pass a local folder"
    cause = error.__cause__ or error
    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    why = f"{constants.ENDPOINT} cannot be reached ({reason})"
    return f"{missing}, and {why}: check the connection, or pass a local folder"


def _refused(name: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"{constants.ENDPOINT}/{name}"
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    match error:
        case GatedRepoError():
            return f"{name} is gated: accept its licence at {page} and {log_in}, or pass a local folder"
        case RevisionNotFoundError():
            return f"{name} has no revision {revision}: choose one of {page}/commits/main"
        case RepositoryNotFoundError():
            return (
                f"{name} is no folder here, and not at {constants.ENDPOINT} or private: check the name, and {log_in}"
                " if you have access"
            )
        case HfHubHTTPError():
            status = error.response.status_code
            return f"{constants.ENDPOINT} did not give {name}, with status {status}: try again later"
    return _out_of_reach(name, revision, error)

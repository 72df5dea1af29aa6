"""What of a model makes its prompts into tokens: the tokenizer and the configuration, without the weights.

Neither this nor what it calls imports transformers' code for models, which takes longer than all else: prompts are
tokenized meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints.weight_files import CONFIG, read_json, shown
from wmdp_fast.exceptions import ModelError, TokenizerError
from wmdp_fast.models import locate
from wmdp_fast.models.reading import check_config, failures_as
from wmdp_fast.prompts.tokenizer import prefix_token_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from wmdp_fast.models.kept_tokenizer import KeptTokenizer
    from wmdp_fast.models.locate import Files

# lm-eval's default where neither the configuration nor the tokenizer knows a limit.
_DEFAULT_MAX_LENGTH = 2048
_MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class TokenizerOnly:
    """A model's tokenizer, with what `LoadedModel` says of the model by the same names.

    Attributes:
        tokenizer: Its tokenizer of transformers.
        model_type: Transformers' name for its architecture.
        max_length: Maximum sequence length of the model, by lm-eval's rule.
        prefix_token_id: Token that stands for an empty context, by lm-eval's rule: BOS, else EOS.
        files: Where the model's files are.
        source: More for transformers to find the same files by.
    """

    tokenizer: PreTrainedTokenizerBase
    model_type: str
    max_length: int
    prefix_token_id: int
    files: Files
    source: Mapping[str, Any]


def load_tokenizer_only(
    name_or_path: str,
    *,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    files: Files | None = None,
    kept: KeptTokenizer | None = None,
) -> TokenizerOnly:
    """Loads a model's tokenizer as `load_model` does; of the model only `config.json` is needed.

    Args:
        name_or_path: A folder, or a name on the hub.
        tokenizer: Another tokenizer than the model's: one in memory, a folder, or a name on the hub.
        revision: Branch, tag or commit of the model on the hub.
        trust_remote_code: Whether to run Python code that comes with the model.
        files: Where the model's files are, if they have been found.
        kept: Has the tokenizer of a model before, if that may be this one's too.

    Raises:
        DataUnavailableError: The model is gated, missing or out of reach; the message says what to do.
        ModelError: There is no configuration, or a wrong one.
        TokenizerError: The tokenizer cannot be loaded, or has neither a BOS nor an EOS token.
    """
    files = files or locate.locate_config(name_or_path, revision=revision)
    # From the hub everything is taken at one commit, even if the branch moves on meanwhile.
    source: dict[str, Any] = {"revision": files.commit or revision, "trust_remote_code": trust_remote_code}
    where = files.address(name_or_path)
    config = check_config(files.folder, where, source)
    if kept is not None and tokenizer is None and not trust_remote_code:
        loaded = kept.of(files.folder, lambda: load_tokenizer(where, source))
    else:
        own = {"trust_remote_code": trust_remote_code} if isinstance(tokenizer, str) else source
        loaded = load_tokenizer(tokenizer or where, own)
    prefix = prefix_token_id(loaded)
    if prefix is None:
        raise TokenizerError(
            f"the tokenizer of {name_or_path} has neither a BOS nor an EOS token; set one, e.g. `bos_token`"
        )
    return TokenizerOnly(
        tokenizer=loaded,
        model_type=str(read_json(files.folder / CONFIG).get("model_type", "")),
        max_length=max_length(config, loaded),
        prefix_token_id=prefix,
        files=files,
        source=source,
    )


def max_length(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Maximum sequence length of a model, by lm-eval's rule (`resolve_max_length`, 0.4.13).

    The configuration's limit (that of the text model, if it has several parts), else the tokenizer's, else 2048.

    Raises:
        ModelError: It is not a positive number.
    """
    from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

    text_config = getattr(config, "text_config", None) or config
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if (limit := getattr(text_config, name, None)) is not None:
            break
    else:
        limit = tokenizer.model_max_length
        if limit is None or limit == VERY_LARGE_INTEGER:
            return _DEFAULT_MAX_LENGTH
        name = "the tokenizer's model_max_length"
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 1 <= limit < float("inf"):
        model = getattr(config, "name_or_path", "") or type(config).__name__
        raise ModelError(f"{model}: {name} is {shown(limit)}, which is no number of tokens; correct it")
    # No prompt is longer, and this is a number for any machine.
    return min(int(limit), _MOST_TOKENS)


def load_tokenizer(
    tokenizer: str | PreTrainedTokenizerBase, source: Mapping[str, Any] | None = None
) -> PreTrainedTokenizerBase:
    """A tokenizer of transformers: the one given, or that of a folder or of a name on the hub.

    Args:
        tokenizer: The tokenizer, or where it is.
        source: More to tell transformers, such as the `revision`.

    Raises:
        TokenizerError: It cannot be loaded.
    """
    from transformers import AutoTokenizer

    if not isinstance(tokenizer, str):
        return tokenizer
    if locate.is_path(tokenizer) and not Path(tokenizer).expanduser().exists():
        raise TokenizerError(f"the tokenizer {locate.no_such_folder(tokenizer)}")
    problem = f"the tokenizer of {tokenizer} cannot be loaded"
    # Some tokenizers have no such file, so that transformers tries first.
    if Path(tokenizer).is_dir() and not (Path(tokenizer) / "tokenizer_config.json").exists():
        problem += (
            "; the folder has no tokenizer_config.json: copy the tokenizer's files of the model that this one was made"
            " of into it, or name that model as the tokenizer (tokenizer=..., `eval --tokenizer`)"
        )
    with failures_as(TokenizerError, problem):
        # Asked for code that it may not run, transformers would wait for an answer on stdin.
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            tokenizer, **{"trust_remote_code": False, **(source or {})}
        )
        few = loaded.vocab_size <= len(loaded.all_special_tokens)
    # Where its files are missing, some versions of transformers make one of nothing, to which every word is unknown.
    if few:
        raise TokenizerError(
            f"the tokenizer of {tokenizer} cannot be loaded: it knows only special tokens, as if its files were"
            " missing; copy or download them again"
        )
    return loaded


def tokenizer_of(
    name: str, folder: Path, commit: str | None, *, trust_remote_code: bool
) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a checkpoint, or None if its folder has none.

    Args:
        name: Folder, or name on the hub.
        folder: Holds its files.
        commit: The hub's commit, or None for a folder of the user's.
        trust_remote_code: Whether code that comes with it may run.

    Raises:
        TokenizerError: It cannot be loaded.
    """
    has_files = commit is not None or any(
        (folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")
    )
    if not has_files:
        return None
    where = name if commit is not None else str(folder)
    return load_tokenizer(where, {"revision": commit, "trust_remote_code": trust_remote_code})

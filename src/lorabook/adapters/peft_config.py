"""PEFT's ``adapter_config.json``: what of it has a meaning here, read strictly and written. It knows no model and no tensor."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from lorabook.adapters.bases import AdapterError

# Settings that change nothing about what a saved adapter computes.
_IDLE = (
    *("auto_mapping", "base_model_name_or_path", "eva_config", "fan_in_fan_out", "inference_mode", "layers_pattern", "loftq_config"),
    *("megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type"),
)
# Initializations that leave the base's weights alone, so that the saved factors mean the same to every reader.
_HARMLESS_INITS = ("gaussian", "orthogonal", "eva")
_LONGEST_PATTERN = 2**16
_PATH_LENGTH = 50
_MOST_WAYS = 8 * _PATH_LENGTH**3
_MOST_PATTERNS = 2**13


@dataclass(frozen=True)
class PeftConfig:
    """An adapter's settings in PEFT's terms.

    Args:
        r: rank of every layer that no pattern names.
        lora_alpha: alpha likewise.
        target_modules: names, or one regular expression for whole paths, or None where the tensors alone say.
        exclude_modules: likewise, of layers that are not adapted though targeted.
        lora_dropout, use_rslora, use_dora, bias, modules_to_save: as PEFT means them.
        rank_pattern, alpha_pattern: by regular expression; the first that matches the end of a path counts.

    Example:
        >>> PeftConfig(r=2, lora_alpha=8.0, target_modules=frozenset({"q_proj"})).targets("blocks.0.q_proj")
        True
    """

    r: int
    lora_alpha: float
    target_modules: frozenset[str] | str | None
    exclude_modules: frozenset[str] | str | None = None
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    bias: str = "none"
    modules_to_save: frozenset[str] = frozenset()
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def targets(self, path: str) -> bool:
        """Whether the config names this layer; always, where it names none."""
        if self.exclude_modules and _named(path, self.exclude_modules):
            return False
        return self.target_modules is None or _named(path, self.target_modules)

    def rank_and_alpha(self, path: str) -> tuple[int, float]:
        """The rank and alpha of one layer."""
        rank = next((rank for pattern, rank in self._ranks if pattern.match(path)), self.r)
        alpha = next((alpha for pattern, alpha in self._alphas if pattern.match(path)), self.lora_alpha)
        return rank, alpha

    @cached_property
    def _ranks(self) -> list[tuple[re.Pattern[str], int]]:
        return [(re.compile(_of_an_ending(pattern)), rank) for pattern, rank in self.rank_pattern.items()]

    @cached_property
    def _alphas(self) -> list[tuple[re.Pattern[str], float]]:
        return [(re.compile(_of_an_ending(pattern)), alpha) for pattern, alpha in self.alpha_pattern.items()]


def parse_config(content: bytes, where: str) -> PeftConfig:
    """Read a config, refusing whatever is not understood.

    Args:
        content: of the file.
        where: the file's name, for messages.

    Raises:
        AdapterError: not JSON, no LoRA, a setting that is missing, of the wrong type, out of range, or that this package does not
            implement and that is not off.

    Example:
        >>> parse_config(b'{"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}', "adapter_config.json").r
        2
    """
    try:
        raw = json.loads(content.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"'{where}' is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise AdapterError(f"'{where}' must hold an object, got {type(raw).__name__}")
    if raw.pop("peft_type", None) != "LORA":
        raise AdapterError(f"'{where}' must say peft_type LORA: other kinds of adapters are not read")
    for key in ("r", "lora_alpha", "target_modules"):
        if key not in raw:
            raise AdapterError(f"'{where}' lacks {key!r}, which nothing else tells")
    init = raw.pop("init_lora_weights", True)
    if not isinstance(init, bool) and init not in _HARMLESS_INITS:
        raise AdapterError(
            f"'{where}': factors from init_lora_weights={init!r} are meant for a changed base: have PEFT convert them, "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    settings: dict[str, Any] = {}
    for key, value in raw.items():
        if key in _FIELDS:
            check, rule = _FIELDS[key]
            if not check(value):
                raise AdapterError(f"'{where}': {key} must be {rule}, got {_short(value)}")
            settings[key] = frozenset(value) if isinstance(value, list) else value
        elif key not in _IDLE and value not in (None, False, {}, []):
            raise AdapterError(f"'{where}': {key}={_short(value)} is not implemented here, so the adapter would not compute the same")
    settings["modules_to_save"] = settings.get("modules_to_save") or frozenset()
    settings["target_modules"] = None if settings["target_modules"] == "all-linear" else settings["target_modules"]
    for key in ("rank_pattern", "alpha_pattern"):
        settings[key] = settings.get(key) or {}
    patterns = [settings["target_modules"], settings.get("exclude_modules"), *settings["rank_pattern"], *settings["alpha_pattern"]]
    for pattern in patterns:
        if isinstance(pattern, str):
            check_pattern(pattern, where)
    return PeftConfig(**settings)


def dump_config(config: PeftConfig, *, base_name: str | None, fan_in_fan_out: bool) -> bytes:
    """The file's content, keys sorted as PEFT does it.

    Example:
        >>> content = dump_config(PeftConfig(r=2, lora_alpha=8.0, target_modules=None), base_name=None, fan_in_fan_out=False)
        >>> parse_config(content, "adapter_config.json").lora_alpha
        8.0
    """
    given = {field.name: getattr(config, field.name) for field in fields(config)}
    raw = {
        **{key: sorted(value) if isinstance(value, frozenset) else value for key, value in given.items()},
        "modules_to_save": sorted(config.modules_to_save) or None,
        "peft_type": "LORA",
        "base_model_name_or_path": base_name,
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "task_type": None,
    }
    return (json.dumps(raw, indent=2, sort_keys=True) + "\n").encode()


def check_pattern(pattern: str, where: str) -> None:
    r"""Refuse a regular expression that does not compile, or that could take very long: files come from strangers.

    Raises:
        AdapterError: as said.

    Example:
        >>> check_pattern(r"blocks\.\d+\.(q|v)_proj", "adapter_config.json")
    """
    if len(pattern) > _LONGEST_PATTERN or _ways(pattern) > _MOST_WAYS:
        raise AdapterError(
            f"'{where}': the pattern {_short(pattern)} is too long or could take too long: name the layers instead (at most three of "
            "* + ? {}, none of * + {} after a group, few alternatives, no back-references, no flags)"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # a set within a set, whose meaning is to change
            re.compile(pattern)
            re.compile(_of_an_ending(pattern))
    except (re.error, OverflowError, RecursionError, FutureWarning) as error:
        raise AdapterError(f"'{where}': {_short(pattern)} is not a regular expression: {error}") from None


def _ways(pattern: str) -> float:
    """At most about how many ways there are to go through a path with the pattern, all of which a failing match would try."""
    bare = re.sub(r"\\.|\[[^\]]*\]", "x", pattern)  # escapes and classes are one character each
    nested = re.search(r"\)[*+{]|[*+{?]\?*[*+{]", bare)
    # What else may follow "(?": flags and comments, within which signs mean other things, and references back.
    if nested or re.search(r"\\[1-9]", pattern) or re.search(r"\(\?(?!:|=|!|<=|<!|P<|i:)", bare):
        return math.inf
    bare = re.sub(r"([*+?}])\?", r"\1", bare.replace("(?", "("))  # a lazy quantifier is one
    ways, groups = float(_PATH_LENGTH) ** min(9, len(re.findall(r"[*+?{]", bare))), [1]
    for sign in bare:
        if sign == "(":
            groups.append(1)
        elif sign == "|":
            groups[-1] += 1
        elif sign == ")" and len(groups) > 1:
            ways *= groups.pop()
    return ways


def endings(path: str) -> list[str]:
    """The path and what follows each of its dots, which are the names that mean it.

    Example:
        >>> endings("blocks.0.q_proj")
        ['blocks.0.q_proj', '0.q_proj', 'q_proj']
    """
    parts = path.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def _named(path: str, names: frozenset[str] | str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(ending in names for ending in endings(path))


def _of_an_ending(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _number(value: object, above: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value) and value > above
    except OverflowError:
        return False


def _rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 2**20


def _names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name != "" for name in value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _pattern_of(value: object, check: Callable[[object], bool]) -> bool:
    return value is None or (isinstance(value, dict) and len(value) <= _MOST_PATTERNS and all(check(item) for item in value.values()))


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_rank, "an integer from 1"),
    "lora_alpha": (lambda value: _number(value, 0), "a finite number above 0"),
    "lora_dropout": (lambda value: _number(value, -1) and 0 <= value < 1, "a number of at least 0 and below 1"),
    "target_modules": (
        lambda value: value is None or (isinstance(value, str) and value != "") or _names(value),
        "names, a pattern or null",
    ),
    "exclude_modules": (lambda value: value is None or isinstance(value, str) or _names(value), "names, a pattern or null"),
    "modules_to_save": (lambda value: value is None or _names(value), "names or null"),
    "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
    "use_dora": (lambda value: isinstance(value, bool), "true or false"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
    "rank_pattern": (lambda value: _pattern_of(value, _rank), f"integers from 1 by pattern, at most {_MOST_PATTERNS}"),
    "alpha_pattern": (
        lambda value: _pattern_of(value, lambda alpha: _number(alpha, 0)),
        f"finite numbers above 0 by pattern, at most {_MOST_PATTERNS}",
    ),
}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")

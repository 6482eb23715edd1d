"""What an adapter asks of the layer below it: its sizes, its weight as (out_features, in_features). It knows no adapter."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.utils.parametrize
from torch import Tensor, nn
from torch.func import functional_call


class AdapterError(RuntimeError):
    """An adapter cannot do what was asked; the message names the rule, the value and the remedy.

    Example:
        >>> raise AdapterError("no adapter is called 'sql'; there are: text")
        Traceback (most recent call last):
        lorabook.adapters.bases.AdapterError: no adapter is called 'sql'; there are: text
    """


class OwnBias(nn.Module):
    r"""A frozen layer with a trainable bias in place of its own: :math:`y = f(x; W, b')`. The layer itself keeps its bias.

    Args:
        base: any layer with a parameter called ``bias``.

    Source: Ben Zaken et al. 2022 (BitFit).

    Example:
        >>> layer = OwnBias(nn.Linear(6, 4))
        >>> [name for name, parameter in layer.named_parameters() if parameter.requires_grad]
        ['bias']
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        bias: Tensor = base.get_parameter("bias").detach()
        self.bias = nn.Parameter(bias.to(torch.promote_types(bias.dtype, torch.float32), copy=True))

    @property
    def weight(self) -> Tensor:
        """The layer's weight."""
        return self.base.get_parameter("weight")

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The layer's output with this bias, whichever inputs the layer takes."""
        bias = self.bias.to(self.base.get_parameter("bias").dtype)
        return functional_call(self.base, {"bias": bias}, inputs, named)


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is GPT-2's ``Conv1D``, a linear layer that stores its weight as (in_features, out_features).

    Example:
        >>> is_conv1d(nn.Linear(6, 4))
        False
    """
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_linear(module: nn.Module) -> bool:
    """Whether :class:`~lorabook.LoRALinear` can stand on this layer: one that has sizes, and no layers inside.

    Example:
        >>> is_linear(nn.Linear(6, 4)), is_linear(nn.LayerNorm(6))
        (True, False)
    """
    module = module.base if isinstance(module, OwnBias) else module
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False  # nn.MultiheadAttention reads this one's weight and never calls it, so an adapter there would do nothing
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return False  # it has no sizes before its first input
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    if not all(isinstance(size, int) for size in sizes) or any(True for _ in module.children()):
        return is_conv1d(module)
    return takes_one_input(module)


def takes_one_input(module: nn.Module) -> bool:
    """Whether the layer is called with one tensor, as an adapted layer is: an adjacency matrix or positions it would not hand on.

    A linear layer may have further inputs that need not be given; an embedding with such, as OPT's and BART's tables of positions, makes
    its ids from them.

    Example:
        >>> takes_one_input(nn.Linear(6, 4)), takes_one_input(nn.Bilinear(6, 6, 4))
        (True, False)
    """
    inputs = list(inspect.signature(type(module).forward).parameters.values())[1:]
    needed = [one for one in inputs if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    return len(inputs if isinstance(module, nn.Embedding) else needed) == 1


def why_not(module: nn.Module) -> str:
    """Why no adapter can stand on this module, in words that say what can be done.

    Example:
        >>> why_not(nn.Conv2d(3, 6, 1))
        'a Conv2d is neither a linear layer nor an embedding'
    """
    name = type(module).__name__
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention reads its weight and never calls it; name the whole attention among train_modules"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return f"a {name} has no sizes before its first input: run the model once first"
    if torch.nn.utils.parametrize.is_parametrized(module):
        return f"a {name} works its weight out from others: torch.nn.utils.parametrize.remove_parametrizations first"
    if hasattr(module, "in_features") and not takes_one_input(module):
        return f"a {name} takes more than one input, which an adapted layer would not hand on"
    return f"a {name} is neither a linear layer nor an embedding"


def features(base: nn.Module) -> tuple[int, int]:
    """out_features and in_features; an embedding is a linear layer on one-hot inputs, (embedding_dim, num_embeddings).

    Raises:
        TypeError: neither a linear layer nor an embedding.

    Example:
        >>> features(nn.Linear(6, 4)), features(nn.Embedding(9, 6))
        ((4, 6), (6, 9))
    """
    if isinstance(base, OwnBias):
        return features(base.base)
    if isinstance(base, nn.Embedding):
        return base.embedding_dim, base.num_embeddings
    if is_conv1d(base):
        in_features, out_features = base.get_parameter("weight").shape
        return out_features, in_features
    if not is_linear(base):
        raise TypeError(
            f"base must be an nn.Linear, got {type(base).__name__}; Conv1D, or a layer with in_features and out_features, will do too"
        )
    return int(base.out_features), int(base.in_features)  # type: ignore[arg-type]


def weight_of(base: nn.Module) -> Tensor:
    """W as (out_features, in_features): a view of the layer's own weight, or a new tensor for a quantized layer.

    Raises:
        AdapterError: the layer has no weight of that shape and cannot dequantize one.

    Example:
        >>> weight_of(nn.Embedding(9, 6)).shape
        torch.Size([6, 9])
    """
    if isinstance(base, OwnBias):
        return weight_of(base.base)
    if is_quantized(base):
        dequantize = getattr(base, "dequantize", None)
        if dequantize is None:
            raise AdapterError(f"{type(base).__name__} keeps its weight packed: dequantize it to an nn.Linear first")
        weight: Tensor = dequantize()
        return weight
    own = base._parameters.get("weight", base._buffers.get("weight"))
    if own is None:
        raise AdapterError(f"{type(base).__name__} works its weight out from others: make it a parameter first, as remove_weight_norm does")
    weight = own.detach()
    weight = weight.T if is_transposed(base) else weight
    if weight.shape != torch.Size(features(base)):
        raise AdapterError(f"{type(base).__name__} has a weight of shape {tuple(own.shape)}, not {features(base)}: it cannot be added to")
    return weight


@torch.no_grad()
def computes_its_weight(base: nn.Module) -> bool:
    """Whether the layer multiplies with its weight and does no more than add a bias, so that adding to the weight is adding to the output.

    The classes that are known to do so are not asked; any other is tried on four inputs.

    Example:
        >>> computes_its_weight(nn.Linear(6, 4))
        True
    """
    base = base.base if isinstance(base, OwnBias) else base
    if type(base) in (nn.Linear, nn.Embedding) or is_conv1d(base):
        return True
    weight = weight_of(base)
    if isinstance(base, nn.Embedding):
        ids = torch.arange(min(4, base.num_embeddings), device=weight.device)
        expected, found = weight.T[ids] * embedding_scale(base), base(ids)
    else:
        x = torch.randn(4, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
        expected, found = x @ weight.T, base(x) - base(torch.zeros_like(x))
    return bool((found - expected).norm() <= 0.02 * expected.norm())  # room for the rounding of half precision


def embedding_scale(base: nn.Module) -> float | Tensor:
    """The factor by which some models' embeddings, Gemma's for one, multiply the row that they look up; 1 for others.

    Example:
        >>> embedding_scale(nn.Embedding(9, 6))
        1.0
    """
    scale: float | Tensor = getattr(base, "embed_scale", 1.0)
    return scale


def is_transposed(base: nn.Module) -> bool:
    """Whether the layer stores its weight as (in_features, out_features).

    Example:
        >>> is_transposed(nn.Linear(6, 4)), is_transposed(nn.Embedding(9, 6))
        (False, True)
    """
    base = base.base if isinstance(base, OwnBias) else base
    return is_conv1d(base) or isinstance(base, nn.Embedding)


def is_quantized(base: nn.Module) -> bool:
    """Whether the layer holds no floating-point weight of its own that could be added to.

    Example:
        >>> is_quantized(nn.Linear(6, 4))
        False
    """
    base = base.base if isinstance(base, OwnBias) else base
    weight = getattr(base, "weight", None)
    return not (isinstance(weight, Tensor) and weight.is_floating_point())


def adapter_options(base: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype for an adapter's tensors: the base's, but never narrower than float32.

    Example:
        >>> adapter_options(nn.Linear(6, 4).half())
        (device(type='cpu'), torch.float32)
    """
    tensors = [*base.parameters(), *base.buffers()]
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    dtype = torch.promote_types(floating[0].dtype, torch.float32) if floating else torch.float32
    return (tensors[0].device if tensors else torch.device("cpu")), dtype

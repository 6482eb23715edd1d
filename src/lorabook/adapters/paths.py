"""From a path to the module that stands there. It knows no adapter."""

from __future__ import annotations

from torch import nn


def unwrapped(module: nn.Module) -> nn.Module:
    """The module itself, where torch.compile or data parallelism has put a wrapper around it, whose name is no part of a path.

    Example:
        >>> layer = nn.Linear(6, 4)
        >>> unwrapped(nn.DataParallel(layer)) is layer
        True
    """
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif "_orig_mod" in module._modules:  # of torch.compile; importing its class would load the compiler
            module = module.get_submodule("_orig_mod")
        else:
            return module


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The module at a path, whatever wrappers stand on the way.

    Raises:
        AttributeError: the model has no such path.

    Example:
        >>> submodule(nn.Sequential(nn.DataParallel(nn.Sequential(nn.ReLU()))), "0.0")
        ReLU()
    """
    module = unwrapped(model)
    for name in path.split(".") if path else ():
        module = unwrapped(module.get_submodule(name))
    return module


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a path of the model, which is not empty.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> replace(model, "0", nn.ReLU())
        >>> model[0]
        ReLU()
    """
    parent, _, name = path.rpartition(".")
    setattr(submodule(model, parent), name, module)

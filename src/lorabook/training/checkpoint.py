"""A run's state in one safetensors file, of which a crash leaves the old or the new; it knows no loss and no step."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorabook.adapters.bases import is_linear, is_quantized
from lorabook.training.batches import Batches
from lorabook.training.distributed import barrier, gather, is_main, rank
from lorabook.training.identity import Identity, differences
from lorabook.training.progress import Tally
from lorabook.training.runtime import rng_states, set_rng_states

_METADATA_KEY = "lorabook checkpoint"


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file, what is wrong and the remedy."""


@dataclass(frozen=True)
class RunState:
    """Everything that decides how a run goes on, and its way into a file and back.

    Stored are the parameters that require a gradient, the buffers (running means change in training), Adam's moments, the position in the
    data, and the states of PyTorch's generators on every rank. The schedule is a function of the step. Frozen weights are not stored but
    recognized, by the identity.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    tally: Tally
    identity: Identity

    def save(self, path: Path) -> None:
        """Write the state; every rank calls this, the first one writes.

        Raises:
            OSError: the file cannot be written; the old one, if any, is still there.
        """
        ranks = gather(rng_states(self._device()))
        if is_main():
            generators = {f"rng.{index}.{name}": state for index, states in enumerate(ranks) for name, state in states.items()}
            tally = {name: value for name, value in asdict(self.tally).items() if name != "losses"}
            write_checkpoint(path, {**self._tensors(), **generators}, {"identity": self.identity, "tally": tally})
        barrier()

    def resume(self, path: Path) -> None:
        """Take on the state of a file, on every rank.

        Raises:
            CheckpointError: the file cannot be read, comes from a run with other settings, data or weights, or does not fit this model.
                The model and its optimizer have not changed then.
        """
        tensors, description = read_checkpoint(path)
        changed = differences(self.identity, description["identity"])
        if changed:
            raise CheckpointError(f"'{path}' is of another run: here {changed}; call train as then, or name another checkpoint")
        try:
            moments = self._checked(tensors)
            tally = Tally(tensors["losses"].tolist(), **description["tally"])
            self.batches.load_state({name: tensors[f"batches.{name}"] for name in self.batches.state()})
            set_rng_states({name: tensors[f"rng.{rank()}.{name}"] for name in rng_states(self._device())}, self._device())
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"'{path}' does not fit this run: {error}; delete it to begin anew") from None
        with torch.no_grad():
            for name, tensor in self._stored().items():
                tensor.copy_(tensors[name])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.tally.__dict__.update(tally.__dict__)

    def _tensors(self) -> dict[str, Tensor]:
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        moments = {
            f"optimizer.{key}.{names[parameter]}": value
            for parameter, state in self.optimizer.state.items()
            for key, value in state.items()
        }
        position = {f"batches.{name}": value for name, value in self.batches.state().items()}
        losses = torch.tensor(self.tally.losses, dtype=torch.float64)
        return {**self._stored(), **moments, **position, "losses": losses}

    def _stored(self) -> dict[str, Tensor]:
        trained = {f"parameters.{name}": p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        quantized = [module for module in self.model.modules() if is_linear(module) and is_quantized(module)]
        packed = {id(buffer) for module in quantized for buffer in module.buffers(recurse=False)}
        kept = self.model.state_dict()  # leaves out the buffers that are not worth keeping
        buffers = {f"buffers.{name}": b for name, b in self.model.named_buffers() if name in kept and id(b) not in packed}
        return {**trained, **buffers}

    def _checked(self, tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
        """Adam's moments by the optimizer's own numbering, once everything is known to fit."""
        for name, tensor in self._stored().items():
            _check(tensors[name], tensor, name)
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for index, parameter in enumerate(parameters):
            stored = {key: f"optimizer.{key}.{names[parameter]}" for key in ("step", "exp_avg", "exp_avg_sq")}
            if stored["step"] in tensors:  # a parameter without gradient so far has none
                moments[index] = {key: tensors[name] for key, name in stored.items()}
                _check(moments[index]["step"], torch.zeros(()), stored["step"])
                _check(moments[index]["exp_avg"], parameter, stored["exp_avg"])
                _check(moments[index]["exp_avg_sq"], parameter, stored["exp_avg_sq"])
        return moments

    def _device(self) -> torch.device:
        return next(parameter.device for parameter in self.model.parameters() if parameter.requires_grad)


def _check(found: Tensor, expected: Tensor, name: str) -> None:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ValueError(f"{name} is {found.dtype} {tuple(found.shape)}, here {expected.dtype} {tuple(expected.shape)}")


def write_checkpoint(path: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Put the tensors and what JSON can hold into one file, which appears under its name only when it is whole and on the disk.

    Raises:
        OSError: the file cannot be written; the old one, if any, is still there.
    """
    from safetensors.torch import save  # here, so that importing the package does not load it

    content = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, {_METADATA_KEY: json.dumps(description)})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    if os.name == "posix":  # the new name must outlast a loss of power, too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the description of a file that :func:`write_checkpoint` wrote.

    Raises:
        CheckpointError: not such a file.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118  a file is no dictionary
            description = json.loads((file.metadata() or {})[_METADATA_KEY])
            if not isinstance(description["identity"], dict) or not isinstance(description["tally"], dict):
                raise TypeError("the description is not what it should be")
    except Exception as error:  # the parser's errors come in many types
        raise CheckpointError(f"'{path}' is not a checkpoint that can be read: {error}; delete it to begin anew") from None
    return tensors, description

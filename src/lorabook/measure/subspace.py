"""Training inside a random subspace of all parameters: how many coordinates does a task need? It knows no task."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call


class RandomSubspace(nn.Module):
    r"""A model whose D parameters move only along q random directions.

    .. math:: \Theta = \Theta_0 + P z, \qquad P \in \{-1, 0, 1\}^{D \times q}

    Every row of P has one entry that is not zero, at a random place and with a random sign; every coordinate of z moves about D / q
    parameters. The columns do not overlap, so they are orthogonal, and P takes 5 bytes a parameter and no product. As the entries
    are one in size, a step of Adam on z moves the parameters as far as a step of Adam on them would.

    Args:
        model: its parameters are frozen; a parameter that two modules share counts once.
        dimension: q, from 1 to D; the papers call it d.
        seed: of P.

    Raises:
        ValueError: a dimension outside its range.

    Source: Li et al. 2018 (Measuring the Intrinsic Dimension of Objective Landscapes); their P is dense or Fastfood's.
    Chapter: How large is the update, really?

    Example:
        >>> subspace = RandomSubspace(nn.Linear(6, 4), dimension=5, seed=0)
        >>> [(name, tuple(parameter.shape)) for name, parameter in subspace.named_parameters() if parameter.requires_grad]
        [('coordinates', (5,))]
    """

    place: Tensor
    sign: Tensor

    def __init__(self, model: nn.Module, dimension: int, *, seed: int) -> None:
        super().__init__()
        parameters = dict(model.named_parameters())
        total = sum(parameter.numel() for parameter in parameters.values())
        if not 1 <= dimension <= total:
            raise ValueError(f"dimension must be 1..{total}, the number of parameters, got {dimension}")
        first = next(iter(parameters.values()))
        generator = torch.Generator().manual_seed(seed)
        self.model = model.requires_grad_(False)
        self.names = tuple(parameters)
        self.sizes = tuple(parameter.numel() for parameter in parameters.values())
        self.coordinates = nn.Parameter(torch.zeros(dimension, device=first.device, dtype=first.dtype))
        place = (torch.randperm(total, generator=generator) % dimension).to(first.device, torch.int32)  # D / q parameters each
        sign = (2 * torch.randint(2, (total,), generator=generator) - 1).to(first.device, torch.int8)
        self.register_buffer("place", place, persistent=False)
        self.register_buffer("sign", sign, persistent=False)

    def change(self) -> dict[str, Tensor]:
        """P z, by the names of the model's parameters."""
        whole = self.coordinates.index_select(0, self.place) * self.sign  # (q,) -> (D,)
        parts = torch.split(whole, list(self.sizes))
        return {name: part.view_as(self.model.get_parameter(name)) for name, part in zip(self.names, parts, strict=True)}

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the model computes with its parameters moved."""
        moved = {name: self.model.get_parameter(name) + change for name, change in self.change().items()}
        output: Tensor = functional_call(self.model, moved, inputs)
        return output

    @torch.no_grad()
    def write(self) -> None:
        """Move the model's own parameters by P z and set z back to zero: the model alone then computes the same."""
        for name, change in self.change().items():
            self.model.get_parameter(name).add_(change)
        self.coordinates.zero_()

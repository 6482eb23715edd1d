"""One run on several processes, as torchrun starts them. It knows no adapter: what requires a gradient travels, nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Item = TypeVar("Item")


@contextmanager
def process_group() -> Iterator[None]:
    """Inside the block the processes that torchrun started are one group; a process started otherwise is left alone.

    NCCL where there are GPUs, one for each process, else gloo.

    Example:
        >>> with process_group():  # not under torchrun
        ...     rank(), rank_count(), is_main()
        (0, 1, True)
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        yield
        return
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if gpus else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process in its group, from 0; 0 without a group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def rank_count() -> int:
    """Processes in the group; 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return rank() == 0


def share(batch: Sequence[Item]) -> Sequence[Item]:
    """What this rank takes of a batch that all ranks have drawn alike."""
    return batch[rank() :: rank_count()]


def agree(loss: Tensor, stop: bool) -> tuple[float, bool]:
    """The sum of all ranks' losses, and whether any wants to stop: two numbers, known to all ranks alike."""
    if rank_count() == 1:
        return loss.item(), stop
    both = torch.stack((loss.double(), loss.new_tensor(float(stop), dtype=torch.float64)))
    dist.all_reduce(both)
    total, stops = both.tolist()
    return total, stops > 0


def gather(value: Any) -> list[Any]:
    """Every rank's value, in the order of the ranks."""
    if rank_count() == 1:
        return [value]
    values: list[Any] = [None] * rank_count()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every rank is here."""
    if rank_count() > 1:
        dist.barrier()


@dataclass
class Traffic:
    """Bytes of gradients that this rank has given to the all-reduce."""

    gradient_bytes: int = 0


def data_parallel(model: nn.Module) -> tuple[nn.Module, Traffic]:
    """A model whose backward pass leaves on every rank the *sum* of all ranks' gradients, and a count of what that sent.

    Only parameters that require a gradient travel: from the first rank to all others now, so that all start alike, and their gradients in
    each step. Frozen ones are taken to be the same everywhere. The sum stands in place of DistributedDataParallel's mean because each
    rank's loss is divided by the target tokens of all ranks already; a mean over ranks would weight tokens unequally.

    Args:
        model: a parameter that requires a gradient but gets none in some step is an error of DistributedDataParallel.

    Returns:
        The model itself and a count that stays 0, where there is only one rank.
    """
    traffic = Traffic()
    if rank_count() == 1:
        return model, traffic

    def add_up(bucket: Any) -> torch.futures.Future[Tensor]:
        buffer: Tensor = bucket.buffer()
        traffic.gradient_bytes += buffer.nbytes
        work = dist.all_reduce(buffer, async_op=True)
        reduced: torch.futures.Future[Tensor] = work.get_future().then(lambda future: future.value()[0])
        return reduced

    frozen = [name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad]
    fixed = [name for name, _ in model.named_buffers(remove_duplicate=False)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, [*frozen, *fixed])  # type: ignore[no-untyped-call]
    parallel = DistributedDataParallel(model)
    # The registration refuses annotations that are strings, as all are in this file.
    parallel.register_comm_hook(None, lambda _, bucket: add_up(bucket))
    return parallel, traffic


def shard_frozen_weights(model: nn.Module) -> None:
    """Leave on each rank only its part of every frozen weight (FSDP2); the parts meet again for as long as a block computes.

    The blocks are the members of each ``nn.ModuleList``; all other weights form one more block. What trains stays whole on every rank,
    as do buffers, the 4-bit weights of :class:`~lorabook.NF4Linear` among them. Every rank must hold the whole model at first. It stays
    sharded afterwards.

    Raises:
        ValueError: no process group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("shard_frozen needs several processes: start the script with torchrun, inside process_group()")
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if isinstance(model, FSDPModule):
        return
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for blocks in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block, ignored_params=trained)
    fully_shard(model, ignored_params=trained)

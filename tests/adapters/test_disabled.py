"""adapter_disabled: what its end puts back is what was there, since nothing else may come in between."""

import copy

import pytest
import torch

from lorabook import (
    AdapterError,
    LoRAConfig,
    active_adapter,
    adapter_disabled,
    add_lora,
    combine_adapters,
    delete_adapter,
    load_adapter,
    mixed_batch,
    rename_adapter,
    save_adapter,
    use_adapter,
)

from .moving import adapt


@pytest.fixture(params=[("default",), ("default", "sql")])
def adapted(request, make_model):
    model = make_model()
    for name in request.param:
        adapt(model, name)
    return use_adapter(model, "default") or model


def state(model):
    return active_adapter(model), repr(model), [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    "action",
    [
        lambda model, folder: use_adapter(model, "default"),
        lambda model, folder: delete_adapter(model, "default"),
        lambda model, folder: rename_adapter(model, "default", "new"),
        lambda model, folder: add_lora(model, LoRAConfig(rank=3, targets=("proj",)), "new"),
        lambda model, folder: combine_adapters(model, {"default": 2.0}, "new"),
        lambda model, folder: load_adapter(model, folder, "new"),
        lambda model, folder: mixed_batch(model, ["default", None]).__enter__(),
    ],
)
def test_what_the_end_of_the_block_would_undo_is_refused(action, adapted, ids, tmp_path):
    save_adapter(adapted, tmp_path)
    before, expected = state(adapted), adapted(ids)
    refused = pytest.raises(AdapterError, match=r"adapter_disabled block is running.*leave the block first")
    with adapter_disabled(adapted), adapter_disabled(adapted), refused:
        action(adapted, tmp_path)
    assert state(adapted) == before
    assert torch.equal(adapted(ids), expected)
    use_adapter(adapted, "default")


def test_inside_the_block_adapters_can_be_saved_and_copies_are_free(adapted, make_model, ids, tmp_path):
    expected = adapted(ids)
    with adapter_disabled(adapted):
        save_adapter(adapted, tmp_path)
        other = copy.deepcopy(adapted)
    use_adapter(other, "default")
    load_adapter(loaded := make_model(), tmp_path)
    assert torch.equal(other(ids), expected)
    assert torch.equal(loaded(ids), expected)

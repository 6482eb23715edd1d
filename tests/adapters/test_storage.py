"""The two files on disk: a crash at any moment leaves the old adapter or the new one; paths stay where they belong."""

import contextlib
import json
import os

import pytest
import torch
from safetensors.torch import load_file

from lorabook import AdapterError, LoRAConfig, add_lora, load_adapter, save_adapter
from lorabook.adapters import storage

CONFIG, TENSORS = storage.CONFIG, storage.TENSORS


class Crash(BaseException):
    """The process dies here."""


class DiesAt:
    """Lets so many operations on files happen, then dies; of a write that it dies in, half has happened."""

    def __init__(self, monkeypatch, moment):
        self.left, self.happened = moment, 0
        self.write = storage._write
        monkeypatch.setattr(storage.os, "replace", self.wrap(os.replace))
        monkeypatch.setattr(storage.Path, "unlink", self.wrap(storage.Path.unlink))
        monkeypatch.setattr(storage, "_write", self.write_or_die)

    def step(self):
        if not self.left:
            raise Crash
        self.left -= 1
        self.happened += 1

    def wrap(self, operation):
        def wrapped(*arguments, **options):
            self.step()
            return operation(*arguments, **options)

        return wrapped

    def write_or_die(self, path, content):
        try:
            self.step()
        except Crash:
            path.write_bytes(content[: len(content) // 2])
            raise
        self.write(path, content)


def adapted(make_model, rank, value):
    model = make_model()
    add_lora(model, LoRAConfig(rank=rank, targets=("q_proj",)), generator=torch.Generator().manual_seed(rank))
    with torch.no_grad():
        for path in (0, 1):
            model.blocks[path].q_proj.lora_B.fill_(value)
    return model


@pytest.mark.parametrize("moment", range(7))
@pytest.mark.parametrize("again", [False, True])
def test_a_crash_at_any_moment_leaves_the_old_adapter_or_the_new_one(moment, again, make_model, ids, tmp_path, monkeypatch):
    old, new = adapted(make_model, 2, 0.5), adapted(make_model, 3, -0.7)
    save_adapter(old, tmp_path)
    with monkeypatch.context() as patch:
        dies = DiesAt(patch, moment)
        try:
            save_adapter(new, tmp_path)
            crashed = False
        except Crash:
            crashed = True
    assert crashed == (moment < 6)
    assert dies.happened == min(moment, 6)
    if again:  # the next save starts from whatever the crash left, and crashes as early as it can
        with monkeypatch.context() as patch, contextlib.suppress(Crash):
            DiesAt(patch, 0)
            save_adapter(adapted(make_model, 1, 9.0), tmp_path)
    load_adapter(found := make_model(), tmp_path)
    expected = new if moment >= 3 else old
    assert torch.equal(found(ids), expected(ids))
    save_adapter(new, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".part")) == [CONFIG, TENSORS]
    load_adapter(found := make_model(), tmp_path)
    assert torch.equal(found(ids), new(ids))


@pytest.mark.parametrize("moment", range(5))
def test_a_crash_of_the_first_save_leaves_nothing_or_the_adapter(moment, make_model, ids, tmp_path, monkeypatch):
    new = adapted(make_model, 3, -0.7)
    with monkeypatch.context() as patch:
        DiesAt(patch, moment)
        with pytest.raises(Crash):
            save_adapter(new, tmp_path)
    model = make_model()
    if moment < 3:
        with pytest.raises(AdapterError, match=r"holds no adapter_config\.json"):
            load_adapter(model, tmp_path)
    else:
        load_adapter(model, tmp_path)
        assert torch.equal(model(ids), new(ids))


def test_between_the_two_files_no_other_reader_finds_a_pair_that_does_not_belong_together(make_model, tmp_path, monkeypatch):
    save_adapter(adapted(make_model, 2, 0.5), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in (CONFIG, TENSORS)}
    for moment in range(7):
        for name in (CONFIG, TENSORS):
            (tmp_path / name).write_bytes(before[name])
        with monkeypatch.context() as patch:
            DiesAt(patch, moment)
            with contextlib.suppress(Crash):
                save_adapter(adapted(make_model, 3, -0.7), tmp_path)
        if (tmp_path / CONFIG).exists():
            rank = json.loads((tmp_path / CONFIG).read_text())["r"]
            assert {min(tensor.shape) for tensor in load_file(tmp_path / TENSORS).values()} == {rank}
        for leftover in tmp_path.glob("*.new"):
            leftover.unlink()


@pytest.fixture
def saved(make_model, tmp_path):
    save_adapter(adapted(make_model, 2, 0.5), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_link_that_leaves_the_directory_is_not_followed(name, saved, make_model):
    outside = saved.parent / "outside"
    (saved / name).rename(outside)
    (saved / name).symlink_to(outside)
    with pytest.raises(AdapterError, match="is a link that leaves its directory"):
        load_adapter(make_model(), saved)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_what_is_no_plain_file_is_not_read(name, saved, make_model):
    (saved / name).unlink()
    (saved / name).symlink_to("/dev/zero")
    with pytest.raises(AdapterError, match="is not a plain file"):
        load_adapter(make_model(), saved)


def test_a_subfolder_that_leads_elsewhere_is_not_followed(saved, make_model, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "sql").symlink_to(saved)
    with pytest.raises(AdapterError, match="is a link that leaves its directory"):
        load_adapter(make_model(), tmp_path / "folder", "sql")


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_file_of_absurd_size_is_not_read(name, saved, make_model):
    with (saved / name).open("r+b") as file:
        file.truncate(2**42)  # takes no room on the disk
    with pytest.raises(AdapterError, match="has 4,398,046,511,104 bytes, and no adapter of this model needs"):
        load_adapter(make_model(), saved)


@pytest.mark.parametrize("name", [f"{TENSORS}.new", f"{CONFIG}.part", TENSORS, CONFIG])
def test_saving_does_not_write_through_a_link(name, make_model, ids, tmp_path):
    other = tmp_path / "other"
    other.write_text("precious")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / name).symlink_to(other)
    save_adapter(adapted(make_model, 2, 0.5), tmp_path / "adapter")
    assert other.read_text() == "precious"
    load_adapter(model := make_model(), tmp_path / "adapter")
    assert torch.equal(model(ids), adapted(make_model, 2, 0.5)(ids))


def test_names_that_differ_in_case_only_do_not_share_a_directory(make_model, tmp_path):
    model = make_model()
    for name in ("sql", "SQL"):
        add_lora(model, LoRAConfig(rank=2, targets=("q_proj",)), name)
    save_adapter(model, tmp_path, "sql")
    with pytest.raises(AdapterError, match="holds 'sql', and some systems cannot tell 'SQL' from it"):
        save_adapter(model, tmp_path, "SQL")
    save_adapter(model, tmp_path, "sql")
    assert [path.name for path in tmp_path.iterdir()] == ["sql"]


def test_a_pickle_is_never_read(saved, make_model):
    (saved / TENSORS).rename(saved / "adapter_model.bin")
    with pytest.raises(AdapterError, match="only safetensors is read, no pickle"):
        load_adapter(make_model(), saved)


@pytest.mark.parametrize(
    ("directory", "message"),
    [
        ("nothing-here", "'nothing-here' does not exist: give the directory"),
        ("file", "'file' is no directory: give the directory"),
        ("a\0b", "does not exist|cannot be read"),
        ("", "holds no adapter_config.json: give the directory"),
    ],
)
def test_a_directory_that_is_not_there_is_named(directory, message, make_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(AdapterError, match=message):
        load_adapter(make_model(), directory)


def test_a_directory_that_cannot_be_written_keeps_what_it_holds(saved, make_model, ids):
    expected = adapted(make_model, 2, 0.5)(ids)
    (saved / f"{TENSORS}.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        save_adapter(adapted(make_model, 3, 1.0), saved)
    load_adapter(model := make_model(), saved)
    assert torch.equal(model(ids), expected)

"""An adapter's two files on disk: written so that a crash leaves the old pair or the new, read with suspicion. It knows no model."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from lorabook.adapters.bases import AdapterError

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
LARGEST_CONFIG_BYTES = 2**22
DTYPES = ("F64", "F32", "F16", "BF16", "I64")  # the last for counters, which some modules hold


def write_pair(directory: Path, config: bytes, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write both files, in place of those that are there.

    New files get new names. The appearance of ``adapter_config.json.new``, which comes last and whole, is the moment from which
    the new pair counts; a reader that finds it takes the new files, and the next writer puts them under their names.

    Raises:
        OSError: the directory cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_pair(Path(folder), b"{}", {"A": torch.ones(2)}, {})
        ...     read_pair(Path(folder), 2**20)
        (b'{}', {'A': tensor([1., 1.])}, {})
    """
    from safetensors.torch import save  # here, so that importing the package does not load it

    directory.mkdir(parents=True, exist_ok=True)
    _finish(directory)
    _write(directory / f"{TENSORS}.new", save(tensors, metadata=metadata))
    _write(directory / f"{CONFIG}.part", config)
    _rename(directory / f"{CONFIG}.part", directory / f"{CONFIG}.new")
    _finish(directory)


def _finish(directory: Path) -> None:
    """Put a complete new pair under its names. The old config goes first, so that no reader pairs it with new tensors."""
    if not (directory / f"{CONFIG}.new").exists():
        return
    (directory / CONFIG).unlink(missing_ok=True)
    if (directory / f"{TENSORS}.new").exists():
        _rename(directory / f"{TENSORS}.new", directory / TENSORS)
    _rename(directory / f"{CONFIG}.new", directory / CONFIG)


def check_case(target: Path) -> None:
    """Refuse a folder beside one that holds an adapter and whose name some systems take for the same.

    Raises:
        AdapterError: there is one.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_case(Path(folder) / "sql")
    """
    there = _adapters_in(target.parent) if target.parent.is_dir() else []
    other = next((name for name in there if name != target.name and name.lower() == target.name.lower()), None)
    if other is not None:
        raise AdapterError(f"'{target.parent}' holds '{other}', and some systems cannot tell '{target.name}' from it: take another name")


def _write(path: Path, content: bytes) -> None:
    if path.is_symlink():  # or a link that lies there would decide which file is overwritten
        path.unlink()
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _rename(source: Path, target: Path) -> None:
    os.replace(source, target)
    if os.name == "posix":  # the order of renames must outlast a loss of power, too
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def holds_adapter(directory: Path) -> bool:
    """Whether there is a config, final or complete but not yet under its name.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     holds_adapter(Path(folder))
        False
    """
    return (directory / CONFIG).exists() or (directory / f"{CONFIG}.new").exists()


def locate(directory: Path, name: str) -> Path:
    """Where the adapter of that name lies: in the subfolder of its name, or in the directory itself if that holds only one.

    Raises:
        AdapterError: not there, one of several and none of that name, or a subfolder that is a link to elsewhere.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_pair(Path(folder) / "sql", b"{}", {}, {})
        ...     locate(Path(folder), "sql").name
        'sql'
    """
    if name != "default" and holds_adapter(directory / name):
        if (directory / name).resolve().parent != directory.resolve():
            raise AdapterError(f"'{directory / name}' is a link that leaves its directory: give the folder that it leads to")
        return directory / name
    remedy = "give the directory that save_adapter or PEFT wrote"
    if not holds_adapter(directory):
        if not directory.is_dir():
            raise AdapterError(f"'{directory}' {'is no directory' if directory.exists() else 'does not exist'}: {remedy}")
        if inside := _adapters_in(directory):
            raise AdapterError(f"'{directory}' holds no adapter {name!r}; it holds {', '.join(inside)}: give one of these names")
        raise AdapterError(f"'{directory}' holds no {CONFIG}: {remedy}")
    others = _adapters_in(directory)
    if name != "default" and others:
        raise AdapterError(f"'{directory}' holds no adapter {name!r}; it holds default, {', '.join(others)}")
    return directory


def _adapters_in(directory: Path) -> list[str]:
    """Names of the subfolders that hold an adapter."""
    return [child.name for child in sorted(directory.iterdir()) if child.is_dir() and holds_adapter(child)]


def read_pair(directory: Path, largest_bytes: int) -> tuple[bytes, dict[str, Tensor], dict[str, str]]:
    """The config, the tensors and their metadata, as they are in the files; the tensors' file is read up to a size.

    Raises:
        AdapterError: a file that is missing, not a plain file, outside the directory, too large or not safetensors; a tensor that
            is not of floating-point numbers or not finite.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_pair(Path(folder), b"{}", {"A": torch.ones(2)}, {"format": "pt"})
        ...     content, tensors, metadata = read_pair(Path(folder), 2**20)
        >>> tensors["A"].shape
        torch.Size([2])
    """
    pending = (directory / f"{CONFIG}.new").exists()
    config = _plain_file(directory, f"{CONFIG}.new" if pending else CONFIG)
    new_tensors = pending and (directory / f"{TENSORS}.new").exists()
    path = _plain_file(directory, f"{TENSORS}.new" if new_tensors else TENSORS)
    for file, largest in ((config, LARGEST_CONFIG_BYTES), (path, largest_bytes)):
        if file.stat().st_size > largest:
            raise AdapterError(f"'{file}' has {file.stat().st_size:,} bytes, and no adapter of this model needs {largest:,}")
    tensors, metadata = _read_tensors(path)
    return config.read_bytes(), tensors, metadata


def _plain_file(directory: Path, name: str) -> Path:
    path = directory / name
    if not path.exists():
        pickled = (directory / "adapter_model.bin").exists()
        hint = ": only safetensors is read, no pickle" if pickled else ": an adapter is two files, copy both"
        raise AdapterError(f"'{path}' is missing{hint}")
    if not path.is_file():
        raise AdapterError(f"'{path}' is not a plain file")
    if path.resolve().parent != directory.resolve():
        raise AdapterError(f"'{path}' is a link that leaves its directory: copy the files themselves there")
    return path


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  a file is no dictionary
                dtype = file.get_slice(key).get_dtype()
                if dtype not in DTYPES:
                    raise AdapterError(f"'{path}': {key} is of type {dtype}, an adapter's tensors are {', '.join(DTYPES)}")
            tensors: dict[str, Tensor] = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except AdapterError:
        raise
    except Exception as error:  # the parser's errors come in many types
        raise AdapterError(f"'{path}' is not a safetensors file that can be read: {error}") from None
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all() or not tensor.float().isfinite().all():
            raise AdapterError(f"'{path}': {key} holds a NaN, an infinity or a number too large for float32")
    return tensors, metadata

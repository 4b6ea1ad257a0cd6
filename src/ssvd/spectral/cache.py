"""A cache of bases on disk, so that each weight of a model is decomposed once.

It has one file per weight in `$SSVD_CACHE`, by default `~/.cache/ssvd`; `SSVD_CACHE=off` turns it off. When the files
take more than `$SSVD_CACHE_GB` (10), the least recently used are deleted. A file is named by a hash of the weight and
of the settings, is written atomically, and holds a hash of its content: a damaged one is ignored and replaced.
"""

import hashlib
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssvd.spectral.basis import Basis, Subspace

# Part of the file names; raise it when `Basis.of` computes something else.
_VERSION = 2
# Decomposing a smaller weight is as fast as hashing it and reading its file.
_SMALLEST = 256
_PARTS = ("U", "S", "V", "probe")


def cached_basis(weight: Tensor, k: int, svd: str = "exact", subspace: Subspace = "top") -> Basis:
    """Return `Basis.of(weight, k, svd, subspace=subspace)`, read from the cache if it was computed before."""
    folder = cache_folder()
    if folder is None or min(weight.shape) < _SMALLEST or weight.is_meta:
        return Basis.of(weight, k, svd, subspace=subspace)
    settings = (k, svd) if subspace == "top" else (k, svd, subspace)  # the names of older files
    path = folder / f"{_hash(weight.detach(), *settings)}.safetensors"
    tensors = _read(path)
    if tensors is None:
        basis = Basis.of(weight, k, svd, subspace=subspace)
        _write(path, {name: getattr(basis, name) for name in _PARTS})
        return basis
    U, S, V, probe = (tensors[name].to(weight.device) for name in _PARTS)
    return Basis(U, S, V, probe, k)


def cache_folder() -> Path | None:
    """Return the folder of the cache; None if it is turned off, or has no place."""
    name = os.environ.get("SSVD_CACHE", "")
    if name.lower() in ("off", "0", "false", "no"):
        return None
    try:
        return Path(name or "~/.cache/ssvd").expanduser()
    except RuntimeError:  # the user has no home folder
        return None


def _hash(tensor: Tensor, *settings: object) -> str:
    content = hashlib.sha256(repr((_VERSION, *settings, tensor.dtype, tuple(tensor.shape))).encode())
    content.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()


def _content(tensors: dict[str, Tensor]) -> str:
    return "-".join(_hash(tensors[name]) for name in sorted(tensors))


def _read(path: Path) -> dict[str, Tensor] | None:
    """Return the tensors of a file; None if it is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in _PARTS}
            if (file.metadata() or {}).get("content") != _content(tensors):
                return None
        os.utime(path)  # the time of the last use
    except (OSError, SafetensorError):
        return None
    return tensors


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file atomically; if the disk is full or read-only, write nothing: the cache is optional."""
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A unique name, since another process may be writing the same basis.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".partial")
        os.close(handle)
        partial = Path(name)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(tensors, partial, metadata={"content": _content(tensors)})
        partial.replace(path)
        _make_room(path.parent, keep=path)
    except (OSError, SafetensorError):
        if partial is not None:
            partial.unlink(missing_ok=True)


def _make_room(folder: Path, keep: Path) -> None:
    limit = float(os.environ.get("SSVD_CACHE_GB", "10")) * 1e9
    files = []
    digest = "[0-9a-f]" * 64  # the folder may hold other files, which are none of ours
    for file in folder.glob(f"{digest}*"):  # partial ones are left by a killed process
        try:
            state = file.stat()
        except FileNotFoundError:  # another process deleted it
            continue
        files.append((state.st_mtime, state.st_size, file))
    total = sum(size for _, size, _ in files)
    for _, size, file in sorted(files):
        if total <= limit:
            return
        if file != keep:
            file.unlink(missing_ok=True)
            total -= size

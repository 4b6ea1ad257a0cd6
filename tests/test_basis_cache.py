"""Bases on disk: found again, never wrong, never in the way."""

import os
import subprocess
import sys

import pytest
import torch

from ssvd.spectral import Basis, cached_basis
from ssvd.spectral.cache import cache_folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SSVD_CACHE", str(tmp_path / "bases"))
    return tmp_path / "bases"


@pytest.fixture
def decompositions(monkeypatch):
    """Counts them."""
    made, of = [], Basis.of
    monkeypatch.setattr(Basis, "of", lambda *args, **kwargs: made.append(args) or of(*args, **kwargs))
    return made


def weight(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return torch.randn(260, 300).to(dtype)


def same(first, second):
    parts = ("U", "S", "V", "probe", "fingerprint")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_second_time_nothing_is_decomposed_and_all_is_the_same(folder, decompositions, dtype):
    first = cached_basis(weight(dtype=dtype), 7)
    second = cached_basis(weight(dtype=dtype), 7)
    assert len(decompositions) == 1 and same(first, second) and second.U.dtype == dtype
    assert same(cached_basis(weight(dtype=dtype), 7).narrow(7, 5), first.narrow(7, 5)) and len(decompositions) == 1


def test_another_weight_or_setting_is_another_entry(folder, decompositions):
    cached_basis(weight(), 7)
    changed = weight()
    changed[100, 100] += 1e-6
    for other in ((changed, 7), (weight().mT, 7), (weight(), 8), (weight().double(), 7), (weight(), 7, "randomized")):
        before = len(decompositions)
        cached_basis(*other)
        assert len(decompositions) == before + 1
    assert len(list(folder.iterdir())) == 6


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign"])
def test_a_damaged_entry_is_computed_anew(folder, decompositions, damage):
    first = cached_basis(weight(), 7)
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-1000] ^= 1
    file.write_bytes({"cut": content[:-100], "flip": content, "empty": b"", "foreign": b"no tensors"}[damage])
    assert same(cached_basis(weight(), 7), first) and len(decompositions) == 2
    assert same(cached_basis(weight(), 7), first) and len(decompositions) == 2, "it was mended"


def test_it_can_be_turned_off_and_small_weights_stay_out(folder, monkeypatch):
    cached_basis(torch.randn(100, 1000), 5)
    monkeypatch.setenv("SSVD_CACHE", "off")
    assert cache_folder() is None
    cached_basis(weight(), 7)
    assert not folder.exists()


def test_what_was_unused_for_longest_makes_room(folder, monkeypatch):
    cached_basis(weight(), 7)
    (first,) = folder.iterdir()
    monkeypatch.setenv("SSVD_CACHE_GB", str(2.5 * first.stat().st_size / 1e9))
    os.utime(first, (1, 1))
    cached_basis(weight(1), 7)
    (second,) = set(folder.iterdir()) - {first}
    os.utime(second, (2, 2))
    cached_basis(weight(), 7)  # used again
    cached_basis(weight(2), 7)
    assert len(list(folder.iterdir())) == 2 and first.exists() and not second.exists()


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SSVD_CACHE", str(tmp_path / "file" / "bases"))
    assert cached_basis(weight(), 7).k == 7


WRITER = """
import sys, time, torch
from ssvd.spectral import cached_basis
torch.manual_seed(0)
weight = torch.randn(260, 300)
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    cached_basis(weight, 7 + number % 4)
torch.save(cached_basis(weight, 7).V, sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_at_once(folder, tmp_path):
    results = [tmp_path / "first.pt", tmp_path / "second.pt"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen([sys.executable, "-c", WRITER, str(path)], **pipes) for path in results]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert all(torch.equal(torch.load(path), Basis.of(weight(), 7).V) for path in results)
    assert [file.suffix for file in folder.iterdir()] == [".safetensors"] * 4

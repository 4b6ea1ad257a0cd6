"""SVFT, and what it shares with SSVD: batches of mixed adapters, two processes that train one model."""

import os
from datetime import timedelta

import pytest
import torch
import torch.multiprocessing as processes
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssvd import SSVDConfig, SVFTConfig
from ssvd.spectral import pattern_positions
from test_tuner import FEATURES, TOKENS, Layers, X, layers, logits, perturb, train, whisper

PATTERNS = [("plain", 0, 12), ("banded", 2, 12 * 5 - 6), ("random", 2, 12 * 5 - 6), ("top-k", 1, 12 * 3 - 2)]


def adapted(**fields):
    return perturb(get_peft_model(layers(), SVFTConfig(target_modules=["wide", "tall"], **fields)))


@pytest.mark.parametrize(("pattern", "d", "size"), PATTERNS)
@torch.no_grad()
def test_the_adapted_weight_is_that_of_the_paper(pattern, d, size):
    model = adapted(pattern=pattern, off_diagonals=d)
    for name in ("wide", "tall"):
        layer = model.base_model.model.get_submodule(name)
        basis, M = layer.bases["default"], layer.svft_M["default"]
        assert M.shape == (size,) and sum(p.numel() for p in layer.parameters() if p.requires_grad) == size
        core = torch.diag(basis.S).flatten()
        core[pattern_positions(basis.U, basis.V, pattern, d)] += M
        W = basis.U @ core.view(12, 12) @ basis.V.mT
        assert torch.allclose(layer.weight, W, atol=1e-5) and not torch.allclose(W, layer.base_layer.weight, atol=0.1)
    before = model(X)
    model.merge_adapter()
    assert torch.allclose(model(X), before, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(model(X), before)


@pytest.mark.parametrize(("pattern", "d", "size"), PATTERNS)
def test_training_starts_at_the_pretrained_model_and_moves_the_entries_alone(pattern, d, size):
    base = whisper()
    before = logits(base)
    model = get_peft_model(base, SVFTConfig(pattern=pattern, off_diagonals=d)).train()
    assert torch.equal(logits(model), before)
    losses = train(model, rate=0.05)
    assert losses[-1] < losses[0] - 0.1
    assert torch.equal(logits(model.unload().eval()), before)


def test_no_dense_core_is_held():
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(400, 400)), SVFTConfig(target_modules=["0"], off_diagonals=2))
    held = [*model.parameters(), *model.buffers()]
    assert sum(t.shape == (400, 400) for t in held) == 3, "the weight, U and V"
    assert max((t.numel() for t in held if t.shape != (400, 400)), default=0) < 400 * 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pattern": "diagonal"}, "`pattern` must be one of plain, banded, random, top-k"),
        ({"off_diagonals": -1}, "`off_diagonals` must be an integer from 0 on"),
        ({"basis": "none"}, "`basis` must be one of recompute, stored"),
    ],
)
def test_a_wrong_configuration_says_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        SVFTConfig(**fields)


# --- batches of mixed adapters

KINDS = {"ssvd": SSVDConfig, "svft": SVFTConfig}


@pytest.fixture(params=KINDS)
def mixed(request):
    """Whisper with two trained adapters."""
    model = get_peft_model(whisper(), KINDS[request.param](), "a")
    model.add_adapter("b", KINDS[request.param](target_modules=["q_proj", "fc1"]))
    return perturb(model).eval()


@torch.no_grad()
def test_each_row_gets_its_own_adapter(mixed):
    features = torch.cat([FEATURES, FEATURES[:1]])
    tokens = torch.cat([TOKENS, TOKENS[:1]])
    names = ["b", "__base__", "a"]
    together = mixed(input_features=features, decoder_input_ids=tokens, adapter_names=names).logits
    for row, name in enumerate(names):
        arguments = {"input_features": features[row : row + 1], "decoder_input_ids": tokens[row : row + 1]}
        if name == "__base__":
            with mixed.disable_adapter():
                alone = mixed(**arguments).logits
        else:
            mixed.set_adapter(name)
            alone = mixed(**arguments).logits
        assert torch.allclose(together[row], alone[0], atol=1e-4)
    assert not torch.allclose(together[0], together[2], atol=0.01)


@pytest.mark.parametrize("beams", [1, 3])
def test_each_row_is_decoded_with_its_own_adapter(mixed, beams):
    arguments = {"max_new_tokens": 6, "num_beams": beams, "do_sample": False}
    together = mixed.generate(input_features=FEATURES, adapter_names=["a", "b"], **arguments)
    for row, name in enumerate("ab"):
        mixed.set_adapter(name)
        alone = mixed.generate(input_features=FEATURES[row : row + 1], **arguments)[0]
        assert torch.equal(together[row][: len(alone)], alone)


def test_mixed_batches_that_cannot_be_are_refused(mixed):
    arguments = {"input_features": FEATURES, "decoder_input_ids": TOKENS}
    with pytest.raises(ValueError, match=r"non-existing adapter.*: c"):
        mixed(**arguments, adapter_names=["a", "c"])
    with pytest.raises(ValueError, match="same as the number of inputs, but got 3 and 2"):
        mixed(**arguments, adapter_names=["a", "b", "a"])
    with pytest.raises(ValueError, match="in training mode"):
        mixed.train()(**arguments, adapter_names=["a", "b"])
    mixed.eval().merge_adapter(["a"])
    with pytest.raises(ValueError, match="when there are merged adapters"):
        mixed(**arguments, adapter_names=["a", "b"])


# --- two processes


def _train(rank, kind, sharded, path):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # whatever the name of this machine resolves to
    meeting = f"file://{path}.meeting"  # a port that is free now may be taken when it is used
    torch.distributed.init_process_group("gloo", meeting, timedelta(seconds=60), rank=rank, world_size=2)
    torch.manual_seed(0)
    model = get_peft_model(Layers(), KINDS[kind](target_modules=["wide", "tall"]))
    if sharded:
        from torch.distributed.fsdp import FullyShardedDataParallel

        wrapped = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    else:
        wrapped = DistributedDataParallel(model)
    optimiser = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        wrapped(X[rank::2][:3]).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    if sharded:
        with FullyShardedDataParallel.summon_full_params(wrapped):
            state = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    else:
        state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if rank == 0:
        torch.save({name.replace("_fsdp_wrapped_module.", ""): p for name, p in state.items()}, path)
    torch.distributed.barrier()
    os._exit(0)  # now and then torch 2.13 waits for ever while it takes DDP and its gloo group down


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["DDP", "FSDP"])
@pytest.mark.parametrize("kind", ["ssvd", pytest.param("svft", marks=pytest.mark.slow)])
def test_two_processes_train_as_one(kind, sharded, tmp_path):
    path = tmp_path / "state.pt"
    both = processes.spawn(_train, (kind, sharded, path), nprocs=2, join=False)
    finished = both.join(timeout=120) or both.join(timeout=120)  # once for each process
    for process in both.processes:
        process.kill()
    assert finished, "the two processes wait for each other"
    torch.manual_seed(0)
    model = get_peft_model(Layers(), KINDS[kind](target_modules=["wide", "tall"]))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.SGD(trained.values(), lr=0.1)
    for _ in range(3):
        sum(model(X[rank::2][:3]).square().mean() / 2 for rank in (0, 1)).backward()
        optimiser.step()
        optimiser.zero_grad()
    state = torch.load(path)
    assert state.keys() == trained.keys()
    assert all(torch.allclose(state[name], p, atol=1e-6) for name, p in trained.items())
    assert any(p.abs().max() > 1e-3 for p in trained.values())


def test_adapters_survive_two_rounds_of_saving(tmp_path):
    model = adapted(pattern="top-k")
    model.save_pretrained(tmp_path / "first")
    again = PeftModel.from_pretrained(layers(), tmp_path / "first")
    again.save_pretrained(tmp_path / "second")
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("first", "second")]
    assert files[0] == files[1]

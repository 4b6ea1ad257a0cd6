"""SSVD in the format of its authors' branch of ESPnet (espnet pull request 6425): read, and written.

Their layer computes W' = U (S + s sigmoid(gate)) A V^T on the top k triplets, where U, S and V are `u`, `s_pre` and the
transpose of `v`. A is I + 2 T (`rotation_map: linear`) or (I - T)^-1 (I + T) (`cayley`), and the skew-symmetric T has
-`K_vec` above its diagonal, row by row. So A is our G at K = -T. Where a layer is wide (out < in), they factorise its
transpose, which rotates the basis of the output. The file of a model holds all of its tensors; `weight` is merged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from ssvd.errors import UserError
from ssvd.recognisers.base import Recogniser
from ssvd.recognisers.espnet_checkpoint import Checkpoint, read_weights
from ssvd.spectral import Basis, Form, step
from ssvd.tuners import SSVDConfig, SSVDLinear, portion_rank
from ssvd.tuners.ssvd import SSVDConvolution

_FORMS: dict[str, Form] = {"linear": "approx", "cayley": "strict"}
_TRAINED, _FROZEN = ("s", "gate", "K_vec"), ("u", "s_pre", "v")
# What their layers have beside a linear layer.
_PARTS = (*_TRAINED, *_FROZEN, "svd_initialized", "K_triu_idx")
# How far u s_pre v, of an SVD in float32, may be from the weight, as a share of its norm; another model is near 1.
_SAME_WEIGHT = 1e-3
# How far the change of a layer may be from theirs, as a share of it, before their own basis is stored.
_SAME_CHANGE = 1e-3


@dataclass(frozen=True)
class Converted:
    """How an adapter was converted.

    Attributes:
        layers: Number of adapted layers.
        error: ||dW - dW'|| / ||dW'|| of the layer where it is largest; dW' is the authors' change of the weight.
        basis: "recompute", or "stored" where their decomposition in float32 differs from an exact one too much.
    """

    layers: int
    error: float
    basis: str


@dataclass(frozen=True)
class _Layer:
    """An adapted layer of theirs, as tensors in float64: U (out, k), S (k,), V (in, k), K (k, k), and dS as `added`."""

    U: Tensor
    S: Tensor
    V: Tensor
    K: Tensor
    added: Tensor
    wide: bool

    def change(self, form: Form) -> Tensor:
        """Return the change of the weight, (out, in)."""
        eye = torch.eye(len(self.S), dtype=torch.float64)
        G = eye - 2 * self.K if form == "approx" else torch.linalg.solve(eye + self.K, eye - self.K)
        scale = torch.diag(self.S + self.added)
        core = G.mT @ scale if self.wide else scale @ G
        return self.U @ (core - torch.diag(self.S)) @ self.V.mT

    def in_basis(self, basis: Basis) -> "_Layer":
        """Return the layer with the signs of a basis, to whose singular values dS is added."""
        U, S, V = (tensor.double()[..., : basis.k] for tensor in (basis.U, basis.S, basis.V))
        signs = torch.where((U * self.U).sum(0) + (V * self.V).sum(0) < 0, -1.0, 1.0).double()
        return _Layer(U, S, V, signs[:, None] * self.K * signs, self.S + self.added - S, self.wide)


def read_espnet_ssvd(speech: Recogniser, model: str, theirs: Checkpoint, folder: Path) -> Converted:
    """Write an adapter of the authors' ESPnet as a PEFT adapter with the same outputs.

    Args:
        speech: The base model, which is changed.
        model: Its name.
        theirs: Config and weights that their ESPnet wrote (`save_strategy: all`).
        folder: Where to write, a folder that exists.

    Raises:
        UserError: The files hold no adapter of SSVD, or changes that a PEFT adapter of SSVD cannot hold, or the base
            model is another one.
    """
    if theirs.weights_file is None:
        raise UserError(f"There are no weights (.pth) beside {theirs.config_file}.")
    conf = theirs.config.get("adapter_conf") or {}
    form = _form(conf, theirs.config_file)
    state = {_published(name): tensor for name, tensor in read_weights(theirs.weights_file).items()}
    names = [name.removesuffix(".K_vec") for name in state if name.endswith(".K_vec")]
    if not names:
        raise UserError(
            f"{theirs.weights_file} holds no adapter of SSVD (K_vec) of the authors' ESPnet: give the file of a model "
            "that it trained with adapter_type: ssvd and save_strategy: all."
        )
    base = speech.module.state_dict()
    layers = {name: _read_layer(name, state, base, theirs.weights_file) for name in names}
    _check_rest(state, base, layers, theirs.weights_file)
    config = SSVDConfig(
        rotation=form,
        rotate="smaller",
        target_modules=names,
        **_portions(layers, conf),
    )
    network = get_peft_model(speech.module, config)
    config.base_model_name_or_path = model
    error = _fill(network, layers, form)
    if error > _SAME_CHANGE:
        config.basis = "stored"
        _store_bases(network, layers)
        error = _fill(network, layers, form)
    network.save_pretrained(str(folder))
    return Converted(len(layers), error, config.basis)


def _form(conf: Mapping[str, Any], file: Path) -> Form:
    map_name = conf.get("rotation_map") or "linear"
    if map_name not in _FORMS:
        raise UserError(f"{file}: rotation_map is {map_name!r}, and only {' and '.join(_FORMS)} are known here.")
    return _FORMS[map_name]


def _published(name: str) -> str:
    """Return a name of theirs as our networks have it; see `espnet_checkpoint`."""
    head, separator, tail = name.partition(".embed.out.")
    return f"{head}{separator}0.{tail}" if separator and not tail.startswith("0.") else name


def _read_layer(name: str, state: Mapping[str, Tensor], base: Mapping[str, Tensor], file: Path) -> _Layer:
    missing = [part for part in (*_TRAINED, *_FROZEN) if f"{name}.{part}" not in state]
    weight = base.get(f"{name}.weight")
    if missing or weight is None:
        what = f"it lacks {missing[0]}" if missing else "the base model has no such layer"
        raise UserError(f"{file}: {name} is not a layer of SSVD on this base model: {what}.")
    s, gate, K_vec, u, S, v = (state[f"{name}.{part}"].double() for part in (*_TRAINED, *_FROZEN))
    W, k, r = weight.double(), s.numel(), min(weight.shape)
    wide = W.shape[0] < W.shape[1]
    shapes = [tuple(part.shape) for part in (u, S, v)]
    if shapes != [(max(W.shape), r), (r,), (r, r)] or not 1 <= k <= r or K_vec.numel() != k * (k - 1) // 2:
        raise UserError(f"{file}: the sizes in {name} do not fit the base model: give the one that it was trained on.")
    found = u * S @ v
    if not torch.linalg.norm((found.mT if wide else found) - W) <= _SAME_WEIGHT * torch.linalg.norm(W):
        raise UserError(
            f"{file} was trained on another base model: u, s_pre and v of {name} are not the decomposition of its "
            "weight. Give the checkpoint that its training began with."
        )
    K = torch.zeros(k, k, dtype=torch.float64)
    K[tuple(torch.triu_indices(k, k, 1))] = K_vec.flatten()
    u, v = u[:, :k], v[:k].mT
    dS = s.flatten() * torch.sigmoid(gate.flatten())
    return _Layer(*((v, S[:k], u) if wide else (u, S[:k], v)), K - K.mT, dS, wide)


def _check_rest(
    state: Mapping[str, Tensor], base: Mapping[str, Tensor], layers: Mapping[str, _Layer], file: Path
) -> None:
    """Refuse a file with trained tensors that an adapter of SSVD has no place for."""
    own = {f"{name}.{part}" for name in layers for part in (*_PARTS, "weight")}
    for name, tensor in state.items():
        if name in own:
            continue
        if name not in base:
            raise UserError(
                f"{file} holds {name}, which an adapter of SSVD has no place for: layers of other methods, such as the "
                "LoRA that ESPnet gives the embedding at a rank above 0, cannot be converted."
            )
        if tensor.shape != base[name].shape or not torch.allclose(tensor.double(), base[name].double(), atol=1e-6):
            raise UserError(
                f"{file}: {name} is not that of the base model, and an adapter of SSVD has no place for it. Give the "
                "checkpoint that its training began with; what was trained in full beside SSVD cannot be converted."
            )


def _portions(layers: Mapping[str, _Layer], conf: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the configuration that state the k of each layer."""
    sizes = {name: (len(layer.S), min(len(layer.U), len(layer.V))) for name, layer in layers.items()}
    ranks = {k for k, _ in sizes.values()}
    ratio = conf.get("rotation_ratio")
    if isinstance(ratio, float) and all(k == portion_rank(ratio, r) for k, r in sizes.values()):
        return {"portion": ratio}
    if len(ranks) == 1:
        return {"rank": ranks.pop()}
    return {"portion_pattern": {name.replace(".", r"\."): k / r for name, (k, r) in sizes.items()}}


@torch.no_grad()
def _fill(network: PeftModel, layers: Mapping[str, _Layer], form: Form) -> float:
    """Set the parameters of the adapter, and return the largest error of the change of a weight."""
    errors = []
    for name, theirs in layers.items():
        layer = _adapted_layer(network, name)
        basis = layer.bases["default"]
        ours = theirs.in_basis(basis)
        k = basis.k
        if k > 1:
            below = tuple(torch.tril_indices(k, k, -1))
            layer.ssvd_theta["default"].copy_(ours.K[below] / step(k))
        layer.ssvd_s["default"].copy_(ours.added / ours.S)
        wanted = theirs.change(form)
        off = torch.linalg.norm(layer.get_delta_weight("default").double() - wanted)
        # What rounds away in float32 is no error.
        size = torch.linalg.norm(wanted).clamp(min=1e-4 * torch.linalg.norm(theirs.S))
        errors.append(float(off / size))
    return max(errors)


def _store_bases(network: PeftModel, layers: Mapping[str, _Layer]) -> None:
    """Give each layer the decomposition of theirs, to be saved with the adapter."""
    for name, theirs in layers.items():
        layer = _adapted_layer(network, name)
        groups = len(layer.bases["default"].fingerprint)
        dtype = layer.get_base_layer().weight.dtype
        U, S, V = (tensor.to(dtype) for tensor in (theirs.U, theirs.S, theirs.V))
        layer.bases["default"] = Basis.of_triplets(U, S, V, groups)


def _adapted_layer(network: PeftModel, name: str) -> SSVDLinear:
    layer = network.base_model.model.get_submodule(name)
    assert isinstance(layer, SSVDLinear)
    return layer


def write_espnet_ssvd(speech: Recogniser, folder: Path) -> None:
    """Write a model of OWSM's kind and its adapter of SSVD as the authors' ESPnet would have saved them.

    The folder is laid out as OWSM is published, with the names that layers have from ESPnet 202611 on.

    Args:
        speech: The recogniser, whose module is a `PeftModel` with one adapter.
        folder: Where to write, a folder that exists.

    Raises:
        UserError: Their format has no place for the adapter.
    """
    network = speech.module
    if speech.checkpoint_format != "espnet":
        raise UserError("The authors' format is for models of ESPnet, and this is none.")
    if not isinstance(network, PeftModel) or not isinstance(config := network.peft_config["default"], SSVDConfig):
        raise UserError("The authors' format holds adapters of SSVD alone, and this model has none.")
    maps = {form: map_name for map_name, form in _FORMS.items()}
    if config.rotation not in maps:
        raise UserError(f"The authors' format has the rotations {' and '.join(maps)}, and no {config.rotation!r}.")
    if config.modules_to_save or config.subspace != "top":
        what = "modules trained in full" if config.modules_to_save else "other triplets than the first"
        raise UserError(f"The authors' format has no place for {what}.")
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in network.named_modules()
        if isinstance(layer, SSVDLinear)
    }
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in network.base_model.model.state_dict().items()
        if ".ssvd_" not in name
    }
    for name, layer in layers.items():
        state |= {f"{name}.{part}": tensor for part, tensor in _their_parts(name, layer).items()}
    conf = {
        "alpha": 1,
        "dropout_rate": 0.0,
        "adapter_type": "ssvd",
        "rotation_map": maps[config.rotation],
        "target_modules": [_flat(name) for name in layers],
        **_their_size(layers, config.portion),
    }
    changes = {"use_adapter": True, "adapter": "lora", "adapter_conf": conf, "save_strategy": "all", "init_param": []}
    checkpoint: Checkpoint = speech.checkpoint  # type: ignore[attr-defined]
    checkpoint.write({_flat(name): tensor for name, tensor in state.items()}, folder, changes)


def _flat(name: str) -> str:
    """Return a name of ours as their ESPnet has it."""
    return name.replace(".embed.out.0", ".embed.out")


@torch.no_grad()
def _their_parts(name: str, layer: SSVDLinear) -> dict[str, Tensor]:
    """Return the tensors of a layer of theirs, whose first k triplets are those of our basis."""
    if isinstance(layer, SSVDConvolution):
        raise UserError(f"The authors' format holds linear layers alone, and {name} is a convolution.")
    W, basis, theta = layer.get_base_layer().weight.double(), layer.bases["default"], layer.ssvd_theta.get("default")
    wide, k = W.shape[0] < W.shape[1], basis.k
    if theta is not None and layer.rotation["default"].side != ("output" if wide else "input"):
        raise UserError(
            f"The authors' code rotates the {'output' if wide else 'input'} basis of {name}, which is "
            f"{'wide' if wide else 'not wide'}, and this adapter another: train with rotate='smaller' (the method "
            "'ssvd smaller')."
        )
    U, S, V = basis.U.double()[:, :k], basis.S.double(), basis.V.double()[:, :k]
    rest = torch.linalg.svd(W - U * S @ V.mT, full_matrices=False)
    others = min(W.shape) - k
    U, V = torch.cat([U, rest.U[:, :others]], 1), torch.cat([V, rest.Vh[:others].mT], 1)
    dS = torch.zeros_like(S) if "default" not in layer.ssvd_s else S * layer.ssvd_s["default"].double()
    K = torch.zeros(k, k, dtype=torch.float64)
    if theta is not None:
        K[tuple(torch.tril_indices(k, k, -1))] = theta.double() * step(k)
    above = torch.triu_indices(k, k, 1)
    parts = {
        "s": 2 * dS,  # behind a gate of sigmoid(0)
        "gate": torch.zeros(1),
        "K_vec": -K.mT[tuple(above)],
        "u": V if wide else U,
        "s_pre": torch.cat([S, rest.S[:others]]),
        "v": U.mT if wide else V.mT,
    }
    merged = layer.get_base_layer().weight + layer.get_delta_weight("default")
    return {
        **{part: tensor.to(merged.dtype).contiguous() for part, tensor in parts.items()},
        "svd_initialized": torch.tensor(True),
        "K_triu_idx": above,
        "weight": merged,
    }


def _their_size(layers: Mapping[str, SSVDLinear], portion: float) -> dict[str, Any]:
    """Return the fields of `adapter_conf` that state the k of each layer."""
    sizes = {
        name: (layer.bases["default"].k, min(layer.out_features, layer.in_features)) for name, layer in layers.items()
    }
    if len({k for k, _ in sizes.values()}) == 1:
        return {"rank": next(iter(sizes.values()))[0]}
    for ratio in (portion, portion + 1e-9):  # theirs is rounded down in binary
        if all(int(r * ratio) == k for k, r in sizes.values()):
            return {"rank": 0, "rotation_ratio": ratio}
    raise UserError("The authors' format states one number or one portion of triplets for all layers: adapt with one.")

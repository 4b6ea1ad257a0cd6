"""The files of an OWSM checkpoint as ESPnet lays them out, and the network that they describe."""

import argparse
import copy
import io
import shutil
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import yaml
from torch import nn

from ssvd.documents import read_yaml
from ssvd.errors import UserError
from ssvd.recognisers.agreement import MOST_LAYERS, check_finite

# The last ESPnet for Python 3.11 pins old versions of what it needs: pip cannot install it with its dependencies.
_EXTRA = "pip install 'ssvd[espnet]' (in a clone: make setup-espnet)."
SETUP = _EXTRA if sys.version_info >= (3, 12) else f"pip install --no-deps espnet==202511 && {_EXTRA}"


@contextmanager
def espnet_importable(*, silent: bool = True) -> Iterator[None]:
    """ESPnet's imports succeed, with or without torchaudio.

    It imports torchaudio for effects that OWSM does not use: where there is none, or one that does not load, an empty
    module stands in, which nobody else gets to see.

    Args:
        silent: Whether to swallow what is printed meanwhile: it talks of parts that OWSM does not use.

    Raises:
        UserError: ESPnet, or a package that it needs, is not installed, or it is a release without what OWSM needs.
    """
    missing = "torchaudio" not in sys.modules
    if missing:
        try:
            import torchaudio  # noqa: F401
        except (ImportError, OSError):  # OSError: built for another torch
            sys.modules["torchaudio"] = types.ModuleType("torchaudio")
        else:
            missing = False
    try:
        with ExitStack() as quiet:
            if silent:
                quiet.enter_context(redirect_stdout(io.StringIO()))
                quiet.enter_context(redirect_stderr(io.StringIO()))
            yield
    except ModuleNotFoundError as error:
        raise UserError(_what_is_missing(error)) from None
    finally:
        if missing:
            sys.modules.pop("torchaudio", None)


def _what_is_missing(error: ModuleNotFoundError) -> str:
    package, _, inner = (error.name or "").partition(".")
    if inner and package.startswith("espnet") and find_spec("espnet2") is not None:
        return (
            f"ESPnet {espnet_release()} has no {error.name}: install one of the releases that are known here: {SETUP}"
        )
    return f"OWSM models need ESPnet, and {error.name} is not installed: {SETUP}"


def espnet_release() -> str:
    """Return the release of the installed ESPnet, such as "202611"; "?" where it is not installed by pip."""
    try:
        return version("espnet")
    except PackageNotFoundError:
        return "?"


@dataclass(frozen=True)
class Checkpoint:
    """An ESPnet model on disk.

    Attributes:
        config_file: Its YAML, which lists the tokens too.
        weights_file: A state dict (.pth); None where only the config is known.
        config: The content of `config_file`, as it stands there.
    """

    config_file: Path
    weights_file: Path | None
    config: dict[str, Any]

    @property
    def is_ctc(self) -> bool:
        """Whether this is OWSM-CTC (arXiv 2402.12654), which has a prompt encoder and no decoder."""
        return "promptencoder" in self.config

    def absolute(self) -> dict[str, Any]:
        """Return the config with absolute paths of what loading reads.

        The paths in the file are relative to a folder above it.

        Raises:
            UserError: A file is missing.
        """
        config = copy.deepcopy(self.config)
        for holder, name in _file_fields(config):
            holder[name] = str(self._find(holder[name], name))
        return config

    def _find(self, path: str, field: str) -> Path:
        for folder in [self.config_file.parent, *self.config_file.parents[1:5]]:
            if (folder / path).is_file():
                return (folder / path).absolute()
        raise UserError(
            f"{self.config_file}: {field} is {path}, and there is no such file in the folders above; fetch it from "
            "where the checkpoint comes from."
        )

    def task(self) -> Any:
        """ESPnet's task, which builds the network."""
        with espnet_importable():
            if self.is_ctc:
                from espnet2.tasks.s2t_ctc import S2TTask
            else:
                from espnet2.tasks.s2t import S2TTask
        return S2TTask

    def outline(self) -> nn.Module:
        """The network without weights, on the meta device."""
        config = copy.deepcopy(self.config)
        config["normalize"] = None  # its statistics are a file, and are not trained
        with torch.device("meta"):
            return self._build(config)

    def network(self) -> tuple[nn.Module, argparse.Namespace]:
        """The network in float32 with its weights, and its config with absolute paths.

        Raises:
            UserError: The file cannot be read, or it does not hold exactly the network's tensors. (ESPnet itself leaves
                what is missing at random.)
        """
        if self.weights_file is None:
            raise UserError(f"There are no weights (.pth) beside {self.config_file}.")
        config = self.absolute()
        state = read_weights(self.weights_file)
        _check_shapes(self.outline(), state, self.weights_file)  # a damaged config may state any size
        network = self._build(config)
        _load(network, state, self.weights_file)
        return network.float().eval(), argparse.Namespace(**config)

    def _build(self, config: dict[str, Any]) -> nn.Module:
        if config.get("use_adapter"):
            raise UserError(
                f"{self.config_file} describes a model with an adapter of ESPnet ({config.get('adapter')}): decode it "
                "with ESPnet, or give the checkpoint that it was trained from. One of SSVD can be converted: see "
                "docs/espnet.md."
            )
        task = self.task()
        try:
            for part in config.values():
                _check_sizes(part if isinstance(part, dict) else {})
            return with_published_names(task.build_model(argparse.Namespace(**config)))
        except UserError:
            raise
        except Exception as error:  # a config of another task or version fails in many ways
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            raise UserError(
                f"{self.config_file} does not describe a model that ESPnet {espnet_release()} can build as OWSM "
                f"({reason})."
            ) from error

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write a folder as OWSM is published: meta.yaml, config, weights, tokens; paths relative to the folder."""
        self.write(network.state_dict(), folder)

    def write(
        self, state: Mapping[str, torch.Tensor], folder: Path, changes: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Write a state dict as `save` does, with changed fields of the config."""
        config, places = copy.deepcopy(self.config) | dict(changes), {}
        for holder, name in _file_fields(config):
            source = self._find(holder[name], name)
            place = Path("data" if name != "stats_file" else "exp/stats") / source.name
            holder[name] = str(place)
            places[place] = source
        config_file, weights_file = Path("exp/s2t/config.yaml"), Path("exp/s2t/model.pth")
        (folder / config_file).parent.mkdir(parents=True, exist_ok=True)
        for place, source in places.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            if (folder / place).resolve() != source.resolve():  # a checkpoint may be saved where it came from
                shutil.copyfile(source, folder / place)
        with (folder / config_file).open("w", encoding="utf-8") as file:
            yaml.safe_dump(config, file, sort_keys=False, allow_unicode=True)
        torch.save({name: tensor.cpu() for name, tensor in state.items()}, folder / weights_file)
        meta = {
            "espnet": espnet_release(),
            "files": {"s2t_model_file": str(weights_file)},
            "yaml_files": {"s2t_train_config": str(config_file)},
        }
        (folder / "meta.yaml").write_text(yaml.safe_dump(meta), encoding="utf-8")


def with_published_names(network: nn.Module) -> nn.Module:
    """Return a network in which the projection of the subsampling is `embed.out.0`, as in OWSM's files.

    ESPnet 202511 calls it so too, and 202611 `embed.out`. With one name, adapters, fingerprints and checkpoints do not
    depend on the release; both releases read the published name.
    """
    embed: Any = getattr(getattr(network, "encoder", None), "embed", None)
    if isinstance(getattr(embed, "out", None), nn.Linear):
        embed.out = nn.Sequential(embed.out)
        embed.out.register_load_state_dict_pre_hook(_keep_published_names)
    return network


def _keep_published_names(module: nn.Module, state: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
    # ESPnet 202611 has taken the index out of the names by now.
    for name in ("weight", "bias"):
        if f"{prefix}{name}" in state:
            state[f"{prefix}0.{name}"] = state.pop(f"{prefix}{name}")


def _check_sizes(part: dict[str, Any]) -> None:
    """Check what building a part of a network would not find, or find only after hours: raise ValueError."""
    for field, value in part.items():
        least, most = (1, MOST_LAYERS) if field in ("num_blocks", "attention_heads") else (0, 1)
        if (most > 1 or field.endswith("dropout_rate")) and value is not None and not least <= value <= most:
            raise ValueError(f"{field} is {value}")


def find_checkpoint(path: Path) -> Checkpoint | None:
    """The ESPnet model of a folder, or None where there is none.

    Args:
        path: A folder with `meta.yaml`, as OWSM is published; a folder of an experiment with `config.yaml` and one
            .pth file; such a config or .pth file itself.

    Raises:
        UserError: There are several to choose from, or a file is missing or no YAML.
    """
    if path.suffix == ".pth" and path.is_file():
        return _checkpoint(path.parent / "config.yaml", path)
    if path.suffix == ".yaml" and path.is_file():
        return _checkpoint(path, None)
    if (path / "meta.yaml").is_file():
        meta = _read_yaml(path / "meta.yaml")
        try:
            config, weights = path / meta["yaml_files"]["s2t_train_config"], path / meta["files"]["s2t_model_file"]
        except (KeyError, TypeError):
            raise UserError(
                f"{path}/meta.yaml names no speech-to-text model (s2t_train_config, s2t_model_file)."
            ) from None
        return _checkpoint(config, weights)
    configs = [path / "config.yaml"] if (path / "config.yaml").is_file() else sorted(path.glob("exp/*/config.yaml"))
    found = [(config, weights) for config in configs for weights in sorted(config.parent.glob("*.pth"))]
    if not found:
        return None
    distinct = {weights.resolve() for _, weights in found}  # ESPnet links valid.acc.best.pth to 12epoch.pth
    if len(distinct) > 1:
        names = ", ".join(str(weights.relative_to(path)) for _, weights in found)
        raise UserError(f"{path} holds several models ({names}); give one of these files.")
    return _checkpoint(*found[0])


def _checkpoint(config_file: Path, weights_file: Path | None) -> Checkpoint:
    for file in filter(None, (config_file, weights_file)):
        if not file.is_file():
            raise UserError(f"{file} is missing; fetch the checkpoint whole.")
    config = _read_yaml(config_file)
    if "token_list" not in config or "encoder" not in config:
        raise UserError(f"{config_file} is not the config of an ESPnet model: it has no token_list and encoder.")
    return Checkpoint(config_file, weights_file, config)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not YAML ({error}).") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold fields by name.")
    return values


def _file_fields(config: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """(dictionary, key) of each value that names a file which loading reads."""
    fields = [
        (config, "bpemodel"),
        (config, "token_list"),
        (config.get("normalize_conf") or {}, "stats_file"),
    ]
    return [(holder, name) for holder, name in fields if isinstance(holder.get(name), str)]


def load_weights(network: nn.Module, file: Path) -> None:
    """Load a state dict, every tensor of which must be accounted for.

    Raises:
        UserError: The file cannot be read, it does not hold exactly the network's tensors, or not all are finite.
    """
    _load(network, read_weights(file), file)


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """Read a state dict.

    Raises:
        UserError: The file cannot be read, or holds something else.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has many
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"The weights {file} cannot be read ({reason}).") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(
            f"The weights {file} are no tensors by name, as ESPnet's models are: give the model's own file."
        )
    return state


def _load(network: nn.Module, state: dict[str, torch.Tensor], file: Path) -> None:
    expected = network.state_dict().keys()
    state = _renamed(state, expected)
    missing, extra = expected - state.keys(), state.keys() - expected
    if missing or extra:
        what = f"lacks {min(missing)}" if missing else f"holds {min(extra)}, which the network of its config lacks"
        raise UserError(
            f"{file} {what} (missing: {len(missing)}, too many: {len(extra)}): weights and config.yaml "
            "must be of one model, without adapters."
        )
    _check_shapes(network, state, file)
    network.load_state_dict(state)
    check_finite(str(file), network)


def _check_shapes(network: nn.Module, state: dict[str, torch.Tensor], file: Path) -> None:
    expected = network.state_dict()
    for name, tensor in _renamed(state, expected).items():
        if name in expected and tensor.shape != expected[name].shape:
            raise UserError(
                f"{file} does not fit its config.yaml (size mismatch): {name} has the shape {tuple(tensor.shape)}, and "
                f"the network {tuple(expected[name].shape)}."
            )


def _renamed(state: dict[str, torch.Tensor], expected: Any) -> dict[str, torch.Tensor]:
    """Weights under the names of this ESPnet: releases disagree on whether the first layer is `out` or `out.0`."""
    names = {name.replace(".embed.out.0.", ".embed.out."): name for name in expected if ".embed.out." in name}
    return {names.get(name.replace(".embed.out.0.", ".embed.out."), name): tensor for name, tensor in state.items()}

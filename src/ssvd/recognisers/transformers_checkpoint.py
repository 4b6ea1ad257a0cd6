"""Load networks of Transformers: from safetensors only, and with no weight left at random."""

from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig

from ssvd.errors import UserError


def load_network(kind: Any, name: str) -> tuple[Any, torch.dtype]:
    """Load the network of a checkpoint in float32 and evaluation mode; return it and the dtype of its stored weights.

    Args:
        kind: The class of the network, or an auto class.
        name: Folder, or name on the hub.

    Raises:
        UserError: The weights are not in safetensors files or damaged, or some are missing.
    """
    try:
        dtype = AutoConfig.from_pretrained(name, trust_remote_code=False).dtype or torch.float32
        network, report = kind.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"The weights of {name} cannot be read from safetensors files; pickled ones (.bin, .pt) are never loaded, "
            "so convert those first, and fetch damaged files anew."
        ) from error
    if report["missing_keys"]:
        raise UserError(
            f"The checkpoint {name} lacks weights, among them {min(report['missing_keys'])}: take a whole one that was "
            "trained to transcribe."
        )
    return network.eval(), dtype

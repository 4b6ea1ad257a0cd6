"""The layers of a recogniser that an adapter may change, in the groups that a user chooses from."""

import re
from collections.abc import Mapping, Sequence

from torch import nn

from ssvd.errors import UserError

FRONT_END, ENCODER, PROJECTOR, DECODER, ALL = "front-end", "encoder", "projector", "decoder", "all"
USUAL_GROUPS = (ENCODER, PROJECTOR, DECODER)
_GROUPS = (FRONT_END, *USUAL_GROUPS)
_CHOICES = (*_GROUPS, ALL)

LayerGroups = Mapping[str, str]
"""Full name of each layer -> its group, in the order of the network."""


def front_end_convolutions(network: nn.Module, prefix: str | tuple[str, ...]) -> dict[str, str]:
    """Return the convolutions without groups, of names with one of these prefixes, as layers of the front end."""
    return {
        name: FRONT_END
        for name, layer in network.named_modules()
        if name.startswith(prefix) and isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.groups == 1
    }


def chosen_layers(groups: LayerGroups, wanted: Sequence[str] = USUAL_GROUPS) -> list[str]:
    """Return the full names of the layers that are chosen, in the order of the network.

    Args:
        groups: All layers that can be adapted.
        wanted: Names of groups, of which the network need not have each; "all" for every group; or regular expressions,
            each of which must match a part of a full name.

    Raises:
        UserError: A regular expression is not one or matches no layer, or the network has none of the groups.
    """
    chosen: set[str] = set()
    for item in wanted:
        if item in _CHOICES:
            chosen |= {name for name, group in groups.items() if item in (group, ALL)}
            continue
        matched = {name for name in groups if re.search(item, name)}
        if not matched:
            raise UserError(
                f"No layer of the model matches {item!r}; its layers have names such as {next(iter(groups))}, and the "
                f"groups are {', '.join(dict.fromkeys(groups.values()))}."
            )
        chosen |= matched
    if not chosen:
        raise UserError(
            f"The model has no {' and no '.join(wanted)}; its groups of layers are "
            f"{', '.join(dict.fromkeys(groups.values()))}."
        )
    return [name for name in groups if name in chosen]


def check_choice(wanted: Sequence[str]) -> None:
    """Raise UserError if nothing is chosen or an item is neither the name of a group nor a regular expression."""
    if not wanted:
        raise UserError(f"layers names nothing to adapt: choose among {', '.join(_CHOICES)}")
    for item in wanted:
        try:
            re.compile(item)
        except re.error as error:
            raise UserError(
                f"layers {item!r} is neither a group ({', '.join(_CHOICES)}) nor a regular expression ({error})"
            ) from None

"""A hook of MkDocs that writes the page on families of models from the registry, so that the two cannot differ."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from ssvd.recognisers.families import COMMANDS, ESPNET_FAMILIES, FAMILIES, REFUSED, Family

PAGE = "reference/families.md"
_KINDS = {
    "encoder and decoder": "Encoders with decoders",
    "language-model decoder": "Language models that listen",
    "CTC": "Encoders with a CTC head",
    "transducer": "Transducers",
}
_INTRODUCTION = f"""# Families of models

A checkpoint of Transformers belongs to the family that its `config.json` names as `model_type`. This page is made from
the registry by which `ssvd` decides; [models](../models.md) says more about their use.

*Adapted* are the linear layers of encoder, projector and decoder by default; `--layers` chooses among the groups that
the tables list. *Random weights*: for each family, the tests make a tiny checkpoint, compare losses and texts with
those of Transformers or ESPnet, train it, and reload and merge its adapter; "commands" says that they also run
{COMMANDS} on it. *Real weights*: what was run with published weights. The other families have met none here, so
learning rates and budgets are not tuned for them.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to those of the site."""
    files.append(File.generated(config, PAGE, content=page()))
    return files


def page() -> str:
    """Return the page: the families of each kind, then those that are refused."""
    text = _INTRODUCTION
    rows = [*FAMILIES.items(), *(("", family) for family in ESPNET_FAMILIES)]
    for kind, title in _KINDS.items():
        text += f"\n## {title}\n\n"
        text += _table(
            ("family", "`model_type`", "checkpoints", "adapted", "random weights", "real weights", "notes"),
            [_row(model_type, family) for model_type, family in rows if family.kind == kind],
        )
    refused = [
        (row.name, f"`{model_type}`", row.kind, row.reason, f"`{row.sibling}`") for model_type, row in REFUSED.items()
    ]
    text += "\n## Refused\n\n"
    text += (
        "A checkpoint of one of these is refused with its reason; one of an unknown family, with the nearest name.\n\n"
    )
    return text + _table(("family", "`model_type`", "kind", "why", "nearest"), refused)


def _row(model_type: str, family: Family) -> tuple[str, ...]:
    tested = "yes, and commands" if family.random_weights == COMMANDS else "yes" if family.random_weights else "no"
    name = f"`{model_type}`" if model_type else "ESPnet"
    return family.name, name, family.checkpoints, family.adapted, tested, family.real_weights or "none", family.notes


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', ' ') for cell in line)} |\n" for line in lines)

"""Grids: what a benchmark compares, as a YAML file of models, corpora, methods, budgets, learning rates and seeds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from ssvd.demo import EMBEDDED
from ssvd.documents import read_yaml
from ssvd.errors import UserError, shortened
from ssvd.files import whole_folder
from ssvd.methods import Budget, Method, find_method
from ssvd.training.options import checked_options
from ssvd_options.adapt import LARGEST_SEED

_RANDOM = "random:"
# The options of a training that its cell sets.
_OF_CELLS = ("model", "train", "dev", "where", "method", "budget", "learning_rate", "seed", "skip_bad", "device")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class CorpusParts(_Part):
    """Where the utterances of a corpus are; paths are what `ssvd.corpora.corpus.read_corpus` takes.

    Attributes:
        train, dev, test: The parts of the corpus; they should share no speakers.
        sources: Test sets of the domain that the model comes from, by name, which measure forgetting.
        where: Conditions on train, dev and test; see `ssvd.corpora.selection.select`.
        by: Fields to break the test scores down by, such as `gender` and `age:6-10,11-15`.
        synthetic: Kind of synthetic speech to make for the benchmark instead of reading the paths. The source is then
            adult speech, and scores are broken down by accent.
        utterances: Number of utterances of the synthetic training set.
    """

    train: list[str] = []
    dev: list[str] = []
    test: list[str] = []
    sources: dict[str, list[str]] = {}
    where: list[str] = []
    by: list[str] = []
    synthetic: Literal["child", "accent"] | None = None
    utterances: int = Field(480, ge=16, le=1_000_000)

    @field_validator("train", "dev", "test", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("sources", mode="before")
    @classmethod
    def _listed_by_name(cls, value: Any) -> Any:
        return {k: [v] if isinstance(v, str) else v for k, v in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _whole(self) -> "CorpusParts":
        if self.synthetic is None and not (self.train and self.dev and self.test):
            raise ValueError("give train, dev and test, or synthetic: child (or accent)")
        if self.synthetic:
            self.sources, self.by = {"adult": []}, self.by or ["accent"]
        _check_names("the name of a source corpus", self.sources)
        if "test" in self.sources:
            raise ValueError("a source corpus cannot be called test")
        return self


class Grid(_Part):
    """What a benchmark compares.

    Attributes:
        title: Title of the benchmark.
        models: Checkpoints (folders or names on the hub) by name; "embedded" is the recogniser of this package, and
            "random:wavlm" a tiny checkpoint of that family with random weights, which the benchmark makes.
        corpora: Corpora by name.
        methods: Names of `ssvd.methods.METHODS`, with a further group of layers to adapt where wanted, such as
            "ssvd + front-end"; as {name: budget} or {name: [budgets]} with its own budgets.
        budgets: Budgets of the other methods; see `ssvd.methods.Budget.parse`.
        learning_rates: Rates to search, by method; by default those of `METHODS`. A single rate is not searched.
        extensions: Maximum number of further rates, a factor of three apart, while the best one lies on the edge.
        scales: Scales below 1, on the way from the base model to each adapted one, at which tests are repeated, for the
            curve of gain against forgetting.
        refine: Whether to try half and twice the best rate at the end, for every method alike.
        seeds: Random seeds; learning rates are searched with the first.
        training: Options of `ssvd adapt` for all trainings.
        skip_bad: Whether to leave out unusable utterances and list them.
        small: Fields that replace those above in the small version of the grid.
    """

    title: str = ""
    models: dict[str, str] = Field(min_length=1)
    corpora: dict[str, CorpusParts] = Field(min_length=1)
    methods: list[str | dict[str, str | list[str]]] = Field(min_length=1)
    budgets: list[str] = ["p=0.4"]
    learning_rates: dict[str, list[float]] = {}
    extensions: int = Field(2, ge=0, le=1000)
    scales: list[Annotated[float, Field(gt=0, lt=1)]] = []
    refine: bool = False
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    training: dict[str, Any] = {}
    skip_bad: bool = False
    small: dict[str, Any] = {}
    _folder: Path = PrivateAttr(Path())

    @field_validator("models", "corpora")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        _check_names("the name of a model or corpus", value)
        return value

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or not 0 <= min(seeds) <= max(seeds) <= LARGEST_SEED:
            raise ValueError(f"seeds must be different numbers from 0 to {LARGEST_SEED}")
        return seeds

    @model_validator(mode="after")
    def _known(self) -> "Grid":
        for name, rates in self.learning_rates.items():
            find_method(_parts_of(name)[0])
            if not rates or min(rates) <= 0:
                raise ValueError(f"learning_rates of {name} must be above 0")
        for _, budget in self.compared():
            if budget:
                Budget.parse(budget)
        for name in self.training:
            if name in _OF_CELLS:
                raise ValueError(f"training: {name} is set by the grid")
        if self.training.get("batch_seconds") == "auto":
            raise ValueError(
                "training: batch_seconds cannot be auto, as methods that take less memory would learn from larger "
                "batches than others: give a number"
            )
        checked_options({"model": "", "train": [""], **self.training}, "training: ")
        return self

    def compared(self) -> list[tuple[str, str]]:
        """Return the method and budget of each row of the comparison; the budget is "" if the method has none."""
        lines: list[tuple[str, str]] = [("frozen", "")]
        for entry in self.methods:
            budgets_of = entry if isinstance(entry, dict) else {entry: self.budgets}
            for name, budgets in budgets_of.items():
                has_setting = bool(find_method(_parts_of(name)[0]).unit)
                wanted = [budgets] if isinstance(budgets, str) else budgets
                lines += [(name, str(budget)) for budget in wanted] if has_setting else [(name, "")]
        return list(dict.fromkeys(lines))

    def groups(self) -> list["Group"]:
        """Return each row of the comparison on each model and corpus."""
        return [
            Group(model, corpus, method, budget)
            for model in self.models
            for corpus in self.corpora
            for method, budget in self.compared()
        ]

    def checkpoint(self, model: str) -> str:
        """Return the folder or hub name of a model of the grid; that of a random one is there after `place`."""
        name = self.models[model]
        if name.startswith(_RANDOM):
            return str(self._folder / name.removeprefix(_RANDOM))
        return str(EMBEDDED) if name == "embedded" else name

    def place(self, folder: Path) -> None:
        """Make the random checkpoints of the grid in a folder, unless they are there.

        Raises:
            UserError: There is no random checkpoint of such a family.
        """
        self._folder = folder.resolve()
        families = [name.removeprefix(_RANDOM) for name in self.models.values() if name.startswith(_RANDOM)]
        if not families:
            return
        from ssvd.demo.random_checkpoints import check_random_family, write_random_checkpoint  # imports many networks

        for family in dict.fromkeys(families):
            check_random_family(family)
            if not (self._folder / family / "config.json").is_file():
                with whole_folder(self._folder / family) as staging:
                    write_random_checkpoint(family, staging)


@dataclass(frozen=True)
class Group:
    """A method at a budget on a model and a corpus; its cells differ in their seeds.

    Attributes:
        model, corpus: Names in the grid.
        method: Name of the method, with a further group of layers where it has one, such as "ssvd + front-end".
        budget: As in the grid; "" if the method has none.
    """

    model: str
    corpus: str
    method: str
    budget: str

    @property
    def id(self) -> str:
        """Return the name of the group, suitable as a file name."""
        method = self.method.replace(" + ", "+").replace(" ", "-")
        parts = self.model, self.corpus, method, self.budget.replace("%", "pc")
        return "_".join(part for part in parts if part)

    @property
    def adaptation(self) -> Method:
        """Return the method without the layers that are named with it."""
        return find_method(_parts_of(self.method)[0])

    @property
    def further_layers(self) -> list[str]:
        """Return the groups of layers that are adapted beside those of all methods."""
        return _parts_of(self.method)[1]


def read_grid(path: Path, *, small: bool = False) -> Grid:
    """Read a grid from a YAML file.

    Args:
        path: The file.
        small: Whether to replace fields by those under `small`.

    Raises:
        UserError: The file is missing or not YAML, or a field is unknown, missing or wrong.
    """
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except ValueError as error:
        raise UserError(f"{path} is not YAML ({error}).") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold the fields of a grid: {', '.join(Grid.model_fields)}.")
    if small:
        if not isinstance(values.get("small"), dict):
            raise UserError(f"{path} has no field small, so there is no small version of this grid.")
        values |= values["small"]
    return checked_grid(values, str(path))


def checked_grid(values: Mapping[str, Any], source: str) -> Grid:
    """Return a grid with these fields.

    Args:
        values: The fields.
        source: What the message of an error begins with, such as the file.

    Raises:
        UserError: A field is unknown, missing or wrong.
    """
    try:
        return Grid.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"] if part not in ("str", "dict[str,union[str,list[str]]]"))
        raise UserError(
            f"{source}: {name + ': ' if name else ''}{first['msg'].removeprefix('Value error, ')}."
        ) from None
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _parts_of(name: str) -> tuple[str, list[str]]:
    """Return the method and the further groups of layers that an entry of `methods` names."""
    method, *layers = (part.strip() for part in name.split(" + "))
    return method, layers


def _check_names(what: str, names: Mapping[str, Any]) -> None:
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name):
            raise ValueError(f"{what} may hold letters, digits, dots and hyphens, and {shortened(name)} does not")

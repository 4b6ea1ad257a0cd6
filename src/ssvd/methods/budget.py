"""The notation of budgets: how much of a model to train."""

import math
import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from ssvd.errors import UserError, shortened

Setting = Literal["band", "block", "portion", "rank", "width"]
"""What a method may be set by."""

Unit = Literal["p", "%", ""] | Setting

_NUMBER = r"[0-9]{1,3}(?:[_,][0-9]{3})+|[0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?"
_NOTATION = re.compile(rf"(?:([a-z]+)=)?({_NUMBER})(%?)")


@dataclass(frozen=True)
class Budget:
    """How much of a model to train.

    Attributes:
        unit: "p", as many parameters as SSVD trains at the portion `value`; "%", that share of the model's parameters;
            "", that many parameters; or one of `Setting`, the setting of a method itself, such as "rank".
        value: The number.
    """

    unit: Unit
    value: float

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read a budget: `p=0.4`, `2%`, `750000`, or a setting such as `rank=8`, `portion=0.4` or `width=64`.

        Raises:
            UserError: The text is not a budget, or the budget trains nothing or more than there is.
        """
        settings = get_args(Setting)
        match = _NOTATION.fullmatch(text.strip().lower())
        if match is None or (match[1] and (match[3] or match[1] not in ("p", *settings))):
            raise UserError(
                f"The budget {shortened(text)} cannot be read: write p=0.4 (as many parameters as SSVD at that "
                f"portion), 2% (of the model), 750000, or the setting of a method: "
                f"{', '.join(f'{name}=' for name in settings)}."
            )
        value = float(re.sub("[_,]", "", match[2]))
        if value <= 0 and match[1] != "band":  # SVFT with a band of 0 trains the diagonal
            raise UserError(f"The budget {shortened(text)} trains nothing: give a number above 0.")
        if not math.isfinite(value):
            raise UserError(f"The budget {shortened(text)} is beyond all bounds: give a number that a model has.")
        if match[1] == "p" and value > 1:
            raise UserError(f"The portion {value:g} must lie above 0 and be at most 1.")
        return cls(cast(Unit, match[1] or match[3]), value)

    @property
    def is_setting(self) -> bool:
        """Whether the budget states the setting of a method instead of a number of parameters."""
        return self.unit in get_args(Setting)

"""All methods in one table; a new method is one more row of `METHODS`.

LoRA and its variants, AdaLoRA, VeRA, PSOFT, OFT and OSF are PEFT's own.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from peft import AdaLoraConfig, LoraConfig, OFTConfig, OSFConfig, PeftConfig, PsoftConfig, VeraConfig

from ssvd.errors import UserError
from ssvd.methods.method import Method, Shape, Shapes, Trained
from ssvd.spectral import Form, Subspace, pattern_size, step_products
from ssvd.tuners import BottleneckConfig, Rotated, SSVDConfig, SVFTConfig, portion_rank


def find_method(name: str) -> Method:
    """Return the row of `METHODS` with this name.

    Raises:
        UserError: There is none.
    """
    if name not in METHODS:
        raise UserError(f"There is no method {name!r}; choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def _largest_rank(shapes: Shapes) -> int:
    return max(min(shape) for shape in shapes.values())


def _ranks(shapes: Shapes) -> range:
    return range(1, _largest_rank(shapes) + 1)


def _twice(rank: int) -> float:
    return 2 * rank


# -- rows; each function makes one


def _ssvd(
    name: str,
    form: Form = "approx",
    side: Rotated = "input",
    subspace: Subspace = "top",
    outer_share: float | None = None,
    paper: str = "2509.02830",
) -> Method:
    """Make a row of SSVD; of the rotations' parameters, `outer_share` belong to the output side."""
    # A rotation of k directions has about k^2 / 2 parameters.
    ratio = None if outer_share is None else math.sqrt(outer_share / (1 - outer_share))

    def settings(shapes: Shapes) -> Sequence[float]:
        r = _largest_rank(shapes)
        return [k / r for k in range(1, r + 1) if k * max(1, ratio or 0) <= r]

    def config(shapes: Shapes, portion: float) -> SSVDConfig:
        return SSVDConfig(
            portion=portion,
            outer_portion=None if ratio is None else ratio * portion,
            rotation=form,
            rotate=side,
            subspace=subspace,
            target_modules=list(shapes),
        )

    def count(shapes: Shapes, portion: float) -> int:
        rotation_of = config(shapes, portion).rotation_of
        return sum(k + rotation.size(k) for k, rotation in (rotation_of("", *shape) for shape in shapes.values()))

    def products(shape: Shape, portion: float, tokens: int) -> int:
        k = portion_rank(portion * max(1, ratio or 0), min(shape))
        return step_products(tokens, *shape, k, has_inverse=form != "none")

    # The paper's rates, 1e-4 to 1e-3 at k from 227 to 409, are for K itself; ssvd.spectral.rotation converts them.
    rates = (7e-4, 2e-3, 6e-3)
    return Method(
        name,
        paper,
        rates,
        Trained.ADAPTER,
        "portion",
        settings,
        count,
        config,
        products,
        adapts_convolutions=True,
    )


def _svft(name: str, pattern: Literal["plain", "banded", "random", "top-k"], rates: tuple[float, ...]) -> Method:
    def settings(shapes: Shapes) -> Sequence[float]:
        return range(1) if pattern == "plain" else range(_largest_rank(shapes))

    def count(shapes: Shapes, band: float) -> int:
        return sum(pattern_size(min(shape), pattern, int(band)) for shape in shapes.values())

    def config(shapes: Shapes, band: float) -> PeftConfig:
        return SVFTConfig(pattern=pattern, off_diagonals=int(band), target_modules=list(shapes))

    def products(shape: Shape, band: float, tokens: int) -> int:
        return step_products(tokens, *shape, min(shape))

    return Method(
        name, "2405.19597", rates, Trained.ADAPTER, "band", settings, count, config, products, adapts_convolutions=True
    )


def _lora(
    name: str,
    paper: str,
    rates: tuple[float, ...],
    alpha: Callable[[int], float],
    rate_factors: Mapping[str, float] = MappingProxyType({}),
    starts_from_inputs: bool = False,
    **options: Any,
) -> Method:
    """Make a row of a variant of LoRA: `alpha` follows from the rank, `options` are fields of its configuration."""
    is_dora, trains_a_alone = bool(options.get("use_dora")), options.get("init_lora_weights") == "mica"
    has_usual_start = "init_lora_weights" not in options  # PEFT decomposes no kernels

    def settings(shapes: Shapes) -> Sequence[float]:
        # The minor components of a layer are at most as many as it has.
        return range(1, min(min(shape) for shape in shapes.values()) + 1) if trains_a_alone else _ranks(shapes)

    def count(shapes: Shapes, rank: float) -> int:
        return sum(int(rank) * (n if trains_a_alone else m + n) + is_dora * m for m, n in shapes.values())

    def config(shapes: Shapes, rank: float) -> PeftConfig:
        return LoraConfig(r=int(rank), lora_alpha=alpha(int(rank)), target_modules=list(shapes), **options)

    def products(shape: Shape, rank: float, tokens: int) -> int:
        m, n = shape
        # DoRA: W + B A for its norms, and the frozen product once more, since it is scaled before B A x is added.
        trained = n if trains_a_alone else m + n
        return 2 * tokens * int(rank) * (m + n) + tokens * int(rank) * trained + is_dora * int(rank) * m * n

    def frozen(shapes: Shapes, rank: float) -> int:
        return sum(int(rank) * m for m, _ in shapes.values()) if trains_a_alone else 0

    return Method(
        name,
        paper,
        rates,
        Trained.ADAPTER,
        "rank",
        settings,
        count,
        config,
        products,
        frozen,
        rate_factors,
        adapts_convolutions=has_usual_start and not starts_from_inputs,
        adapts_quantised=has_usual_start,
        starts_from_inputs=starts_from_inputs,
    )


def _adalora() -> Method:
    def initial(rank: float) -> float:
        return math.ceil(1.5 * rank)  # as the authors do

    def settings(shapes: Shapes) -> Sequence[float]:
        return [rank for rank in _ranks(shapes) if initial(rank) <= _largest_rank(shapes)]

    def count(shapes: Shapes, rank: float) -> int:
        return sum(int(rank) * (m + n + 1) for m, n in shapes.values())

    def config(shapes: Shapes, rank: float) -> PeftConfig:
        return AdaLoraConfig(
            init_r=int(initial(rank)),
            target_r=int(rank),
            lora_alpha=2 * int(initial(rank)),
            orth_reg_weight=0.1,  # of the authors, for SST-2; PEFT's default is 0.5
            total_step=1,  # training sets it
            target_modules=list(shapes),
        )

    def products(shape: Shape, rank: float, tokens: int) -> int:
        return 3 * tokens * int(initial(rank)) * sum(shape)

    # The authors' rates are 5e-4 to 2.2e-3, for tens of thousands of updates. The change is a product of three factors
    # that begin near zero, so that a short training at 1e-3 learns almost nothing.
    return Method(
        "adalora",
        "2303.10512",
        (1e-3, 3e-3, 1e-2),
        Trained.ADAPTER,
        "rank",
        settings,
        count,
        config,
        products,
        initial=initial,
        allocates_ranks=True,
    )


def _vera() -> Method:
    def count(shapes: Shapes, rank: float) -> int:
        return sum(m + int(rank) for m, _ in shapes.values())

    def config(shapes: Shapes, rank: float) -> PeftConfig:
        return VeraConfig(r=int(rank), target_modules=list(shapes))

    def products(shape: Shape, rank: float, tokens: int) -> int:
        return 2 * tokens * int(rank) * sum(shape)

    def shared(shapes: Shapes, rank: float) -> int:
        return int(rank) * (max(m for m, _ in shapes.values()) + max(n for _, n in shapes.values()))

    rates = (3e-3, 1e-2, 3e-2)
    return Method(
        "vera", "2310.11454", rates, Trained.ADAPTER, "rank", _ranks, count, config, products, frozen_numbers=shared
    )


def _psoft() -> Method:
    def settings(shapes: Shapes) -> Sequence[float]:
        return range(1, min(min(shape) for shape in shapes.values()) + 1)

    def count(shapes: Shapes, rank: float) -> int:
        k = int(rank)
        return len(shapes) * (k * (k - 1) // 2 + 2 * k)

    def config(shapes: Shapes, rank: float) -> PeftConfig:
        return PsoftConfig(r=int(rank), psoft_alpha=int(rank), target_modules=list(shapes))

    def products(shape: Shape, rank: float, tokens: int) -> int:
        k = int(rank)
        return 2 * tokens * k * sum(shape) + 3 * tokens * k * k

    rates = (1e-4, 3e-4, 1e-3)
    return Method(
        "psoft",
        "2505.11235",
        rates,
        Trained.ADAPTER,
        "rank",
        settings,
        count,
        config,
        products,
        adapts_quantised=False,
    )


def _oft() -> Method:
    def settings(shapes: Shapes) -> Sequence[float]:
        divisor = math.gcd(*(n for _, n in shapes.values()))
        return [b for b in range(2, divisor + 1) if divisor % b == 0]

    def count(shapes: Shapes, block: float) -> int:
        return sum(n // int(block) * (int(block) * (int(block) - 1) // 2) for _, n in shapes.values())

    def config(shapes: Shapes, block: float) -> PeftConfig:
        return OFTConfig(r=0, oft_block_size=int(block), target_modules=list(shapes))

    def products(shape: Shape, block: float, tokens: int) -> int:
        return 3 * tokens * int(block) * shape[1]

    return Method("oft", "2306.07280", (1e-4, 3e-4, 1e-3), Trained.ADAPTER, "block", settings, count, config, products)


def _osf() -> Method:
    def settings(shapes: Shapes) -> Sequence[float]:
        return range(1, min(min(shape) for shape in shapes.values()))

    def count(shapes: Shapes, rank: float) -> int:
        return sum(int(rank) * (m + n + 1) for m, n in shapes.values())

    def config(shapes: Shapes, rank: float) -> PeftConfig:
        # PEFT states how many directions are frozen: all but the last ones.
        frozen = {rf"(^|\.){re.escape(name)}$": min(shape) - int(rank) for name, shape in shapes.items()}
        return OSFConfig(rank_pattern=frozen, target_modules=list(shapes))

    def products(shape: Shape, rank: float, tokens: int) -> int:
        return 5 * tokens * int(rank) * sum(shape)  # those of the frozen start have no gradients

    rates = (1e-4, 3e-4, 1e-3)
    return Method(
        "osf", "2504.07097", rates, Trained.ADAPTER, "rank", settings, count, config, products, adapts_quantised=False
    )


# The last linear layer of each attention and of each feed-forward block: in Whisper and wav2vec 2.0, in Moonshine,
# Parakeet and language models, and in ESPnet.
_LAST_OF_BLOCK = re.compile(r"(^|\.)(out_proj|o_proj|linear_out|fc2|linear2|output_dense|output\.dense|down_proj|w_2)$")


def _bottleneck() -> Method:
    def adapted(shapes: Shapes) -> Shapes:
        last = {name: shape for name, shape in shapes.items() if _LAST_OF_BLOCK.search(name)}
        if not last:
            raise UserError(
                "The method 'bottleneck' follows the last layer of attention and feed-forward blocks, and none of "
                f"these layers has the name of one, as fc2 has, but such as {next(iter(shapes))}: choose other layers, "
                "or another method."
            )
        return last

    def settings(shapes: Shapes) -> Sequence[float]:
        return range(1, max(m for m, _ in adapted(shapes).values()) + 1)

    def count(shapes: Shapes, width: float) -> int:
        return sum(2 * m * int(width) + int(width) + m for m, _ in adapted(shapes).values())

    def config(shapes: Shapes, width: float) -> PeftConfig:
        return BottleneckConfig(width=int(width), target_modules=list(adapted(shapes)))

    def products(shape: Shape, width: float, tokens: int) -> int:
        return 6 * tokens * int(width) * shape[0]

    # The authors' range is 3e-5 to 3e-3, in steps of ten; short trainings need its upper end.
    return Method(
        "bottleneck",
        "1902.00751",
        (1e-3, 3e-3, 1e-2),
        Trained.ADAPTER,
        "width",
        settings,
        count,
        config,
        products,
        adapted=adapted,
        can_merge=False,
    )


def _without_adapter(name: str, rates: tuple[float, ...], trains: Trained) -> Method:
    # Counts the layers alone; the part that is trained has other parameters too.
    def count(shapes: Shapes, setting: float) -> int:
        layers = {
            Trained.EVERYTHING: shapes,
            Trained.ENCODER: {name: shape for name, shape in shapes.items() if "encoder." in name},
        }
        return sum(m * n for m, n in layers.get(trains, {}).values())

    def products(shape: Shape, setting: float, tokens: int) -> int:
        return 0 if trains is Trained.NOTHING else tokens * shape[0] * shape[1]

    return Method(name, "", rates, trains, "", lambda shapes: (), count, None, products, adapts_quantised=False)


METHODS = {
    method.name: method
    for method in (
        _ssvd("ssvd"),
        _ssvd("ssvd strict", form="strict"),
        _ssvd("ssvd neumann", form="neumann"),
        _ssvd("ssvd none", form="none"),
        _ssvd("ssvd output", side="output"),
        _ssvd("ssvd both", side="both"),
        _ssvd("ssvd smaller", side="smaller"),
        # Both sides with budgets of their own; "ssvd both" divides it equally.
        _ssvd("ssvd-o 25", side="both", outer_share=0.25, paper="2601.12600"),
        _ssvd("ssvd-o 75", side="both", outer_share=0.75, paper="2601.12600"),
        _ssvd("ssvd tail", subspace="tail", paper="2606.09342"),
        _ssvd("ssvd ends", subspace="ends"),
        # alpha = 2 r is common with PEFT, and the setting of SSVD's authors; PiSSA's own is alpha = r.
        _lora("lora", "2106.09685", (3e-4, 1e-3, 3e-3), _twice),
        # Its authors' ratio of the two rates is 16.
        _lora("lora+", "2402.12354", (1e-4, 3e-4, 1e-3), _twice, rate_factors={"lora_B": 16}),
        _lora("rslora", "2312.03732", (1e-4, 3e-4, 1e-3), lambda rank: 16, use_rslora=True),
        _lora("dora", "2402.09353", (1e-4, 3e-4, 1e-3), _twice, use_dora=True),
        # PiSSA's randomised decompositions differ between processes, so a reloaded adapter would differ too.
        _lora("pissa", "2404.02948", (1e-4, 3e-4, 1e-3), lambda rank: rank, init_lora_weights="pissa"),
        _lora("mica", "2604.01694", (3e-4, 1e-3, 3e-3), _twice, init_lora_weights="mica"),
        # Without the paper's redistribution of ranks. Its authors' alpha is 1; here it is LoRA's, as are the rates.
        _lora("eva", "2410.07170", (3e-4, 1e-3, 3e-3), _twice, starts_from_inputs=True),
        _adalora(),
        _vera(),
        _svft("svft", "banded", (1e-3, 3e-3, 1e-2)),
        _svft("svft plain", "plain", (2e-2, 5e-2, 1.5e-1)),
        _svft("svft random", "random", (1e-3, 3e-3, 1e-2)),
        _svft("svft top-k", "top-k", (1e-3, 3e-3, 1e-2)),
        _psoft(),
        _oft(),
        _osf(),
        _bottleneck(),
        _without_adapter("full", (1e-5, 3e-5, 1e-4), Trained.EVERYTHING),
        _without_adapter("full encoder", (1e-5, 3e-5, 1e-4), Trained.ENCODER),
        _without_adapter("frozen", (1e-5,), Trained.NOTHING),
    )
}

"""Measure what differs between SSVD here and in its authors' ESPnet, on the recogniser of `ssvd demo`.

    python scripts/compare_espnet_ssvd.py folder

It is a small trained Whisper, not OWSM: start, gate, side and signs are matters of single layers. Synthetic adult
speech, which the recogniser knows, is written to the folder, which must be new. It takes a few minutes of a core.
"""

import statistics
import sys
from pathlib import Path

import torch

from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.selection import field_value
from ssvd.demo import EMBEDDED
from ssvd.demo.synthetic import write_corpus
from ssvd.evaluate import decode
from ssvd.methods import linear_shapes
from ssvd.recognisers.loading import Recogniser, load_model
from ssvd.scoring import score
from ssvd.spectral import Basis, Rotation, core_change, step
from ssvd.tuners import portion_rank

PORTION, RATE, STARTS = 0.4, 1e-4, 3
TURN = 5e-3  # standard deviation of the entries of K, as after training at the authors' rate


def main(folder: Path) -> None:
    speech = load_model(EMBEDDED)
    layers = speech.adaptable_layers()
    weights = {name: speech.module.get_submodule(name).weight.detach().clone() for name in layers}
    ranks = {name: portion_rank(PORTION, min(shape)) for name, shape in linear_shapes(speech.module, layers).items()}
    bases = {name: Basis.of(weights[name], ranks[name]) for name in layers}
    compare_gate(bases)
    compare_sides(weights, bases)
    compare_signs(weights, bases)
    compare_starts(speech, weights, bases, folder)


def compare_gate(bases: dict[str, Basis]) -> None:
    theirs = [RATE / 2 / value for basis in bases.values() for value in basis.S.tolist()]
    ours = [RATE / step(basis.k) for basis in bases.values() for _ in range(basis.k)]
    print(f"relative change of a singular value in an update of Adam: theirs {statistics.median(theirs):.1e}, "
          f"here {statistics.median(ours):.1e} (medians), at {RATE:g} for K")  # fmt: skip


def turned(basis: Basis, K: torch.Tensor, side: str) -> torch.Tensor:
    theta = K[tuple(torch.tril_indices(basis.k, basis.k, -1))] / step(basis.k)
    U, V = basis.U[:, : basis.k], basis.V[:, : basis.k]
    return U @ core_change(basis.S, theta, None, Rotation("approx", side)) @ V.mT


def skew(k: int, generator: torch.Generator) -> torch.Tensor:
    K = torch.randn(k, k, generator=generator).tril(-1) * TURN
    return K - K.mT


def compare_sides(weights: dict[str, torch.Tensor], bases: dict[str, Basis]) -> None:
    generator, apart = torch.Generator().manual_seed(0), []
    wide = [name for name, W in weights.items() if W.shape[0] < W.shape[1]]
    for name in wide:
        K = skew(bases[name].k, generator)
        one, other = (turned(bases[name], K, side) for side in ("input", "output"))
        apart.append(float((one - other).norm() / one.norm()))
    print(f"wide layers: {len(wide)} of {len(weights)}; the same K as a rotation of the other side differs by "
          f"{statistics.mean(apart):.2f} of the change")  # fmt: skip


def compare_signs(weights: dict[str, torch.Tensor], bases: dict[str, Basis]) -> None:
    generator, flipped, apart, negated, vectors = torch.Generator().manual_seed(0), [], [], [], []
    for name, basis in bases.items():
        k = basis.k
        u = torch.linalg.svd(weights[name], full_matrices=False).U
        agreement = (u[:, :k] * basis.U[:, :k]).sum(0)
        signs = torch.where(agreement < 0, -1.0, 1.0)
        vectors.append(float((1 - agreement.abs()).max()))
        flipped.append(float((signs < 0).float().mean()))
        K = skew(k, generator)
        wanted = turned(basis, signs[:, None] * K * signs, "input")
        apart.append(float((turned(basis, K, "input") - wanted).norm() / wanted.norm()))
        negated.append(float((turned(basis, -signs[:, None] * K * signs, "input") - wanted).norm() / wanted.norm()))
    print(f"signs of torch.linalg.svd that are not ours: {statistics.mean(flipped):.0%}")
    print(f"error of the change, relative to it: {statistics.mean(apart):.2f} with K as it stands, "
          f"{statistics.mean(negated):.2f} with the other sign of K_vec")  # fmt: skip
    print(f"least agreement of a singular vector in float32 and here: 1 - {max(vectors):.1e}")


def compare_starts(speech: Recogniser, weights: dict[str, torch.Tensor], bases: dict[str, Basis], folder: Path) -> None:
    cuts = list(read_corpus(write_corpus(folder, "adult", 60, speakers=12, seed=11)).cuts)
    references = [field_value(cut, "text") for cut in cuts]

    def error_rate() -> float:
        texts = [transcript.text for transcript in decode(speech, cuts)]
        return score(references, texts, normaliser="english", resamples=2).wer

    print(f"WER of the pretrained model: {error_rate():.1%}")
    for seed in range(STARTS):
        torch.manual_seed(seed)
        moved = total = 0.0
        with torch.no_grad():
            for name, W in weights.items():
                basis = bases[name]
                s = torch.nn.init.kaiming_uniform_(torch.empty(1, basis.k))[0]
                U, V = basis.U[:, : basis.k], basis.V[:, : basis.k]
                change = U * (s / 2) @ V.mT
                moved, total = moved + float(change.square().sum()), total + float(W.square().sum())
                speech.module.get_submodule(name).weight.copy_(W + change)
        print(
            f"random start {seed}: weights moved by {(moved / total) ** 0.5:.1%} of their norm, WER {error_rate():.1%}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

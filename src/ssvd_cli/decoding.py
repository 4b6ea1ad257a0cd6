"""Settings of decoding from a command's options."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssvd.recognisers.decoding import Decoding


def decoding_from(beams: int, fallback: bool, seed: int) -> "Decoding":
    """Return the settings of decoding that the options --beams, --fallback and --seed stand for."""
    from ssvd.recognisers.decoding import Decoding, Fallback

    return Decoding(beams, fallback=Fallback(seed=seed) if fallback else None)

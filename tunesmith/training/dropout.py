"""LoRA dropout as a counter function: a mask depends on (seed, step, layer, the tokens up to this position, feature).

So the same example gets the same mask however it is batched, in whatever process, before or after a resume. Nothing is
drawn from a random generator.

Each position has a 64-bit hash of the tokens up to it. Step and layer are mixed in (splitmix64's finalizer, Steele et
al., 2014) to a 32-bit row number; row x column modulo 2^32, column a fixed odd number a feature, is multiply-shift
hashing (Dietzfelbinger et al., 1997): uniform, and pairwise independent over features. Integer arithmetic wraps alike on
every device.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.training.kernels import Drop

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def prefix_hashes(ids_T: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return for each position a 64-bit hash of the tokens up to and with it.

    The sum over i <= t of mix(token_i) * multiplier^i modulo 2^64: one pass, and equal prefixes have equal hashes.
    """
    with np.errstate(over="ignore"):
        powers_T = np.cumprod(np.full(len(ids_T), _MULTIPLIER, dtype=np.uint64))
        return _mix(np.cumsum(_mix(ids_T.astype(np.uint64) + np.uint64(1)) * powers_T)).view(np.int64)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix_tensor(x: Tensor) -> Tensor:
    """The same on int64 tensors; torch shifts arithmetically, so the sign bits are cleared."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & (2**33 - 1))


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


class Masks:
    """The masks of one run. `begin` names the step and positions before each forward pass; `off` turns dropout off."""

    def __init__(self, probability: float, seed: int) -> None:
        self.probability = probability
        self.seed = seed
        self.gain = 1 / (1 - probability)
        self._hash_T: Tensor | None = None
        self._key = 0
        self._columns: dict[tuple[int, torch.device], Tensor] = {}

    def begin(self, step: int, hash_T: Tensor) -> None:
        """Use the masks of optimizer step `step` for tokens whose prefixes hash to `hash_T` (int64)."""
        self._key = int(_mix(np.array([self.seed * 2**32 + step], dtype=np.uint64))[0])
        self._hash_T = hash_T

    def off(self) -> None:
        """Drop nothing until the next `begin`."""
        self._hash_T = None

    def drop(self, layer: int, num_features: int) -> Drop | None:
        """Return which features of a layer's input stay, or None when all do; what stays is to be multiplied by `gain`."""
        if self._hash_T is None or self.probability == 0:
            return None
        key = _signed((self._key + (layer + 1) * int(_MULTIPLIER)) % 2**64)
        row_T = (_mix_tensor(self._hash_T ^ key) >> 32).to(torch.int32)
        return Drop(row_T, self._column(num_features, row_T.device), round(self.probability * 2**32) - 2**31)

    def _column(self, num_features: int, device: torch.device) -> Tensor:
        """Return the fixed odd number of each feature, int32."""
        if (num_features, device) not in self._columns:
            odd = np.random.default_rng(0).integers(-(2**31), 2**31, num_features, dtype=np.int64) | 1
            self._columns[num_features, device] = torch.from_numpy(odd.astype(np.int32)).to(device)
        return self._columns[num_features, device]

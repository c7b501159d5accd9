"""Random numbers that depend on what is decoded, not on where it stands in a batch.

A counter-based generator: every number is a hash of (request key, step, position, use).
So a request's answer does not depend on the batch's composition, its order, the number
of processes or the device; torch's sequential generators cannot give that without a
loop over the rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def request_key(seed: int, *sequences: Iterable[int]) -> int:
    """A 63-bit key from the seed and token sequences: the name of a request's random stream."""
    text = repr((seed, [[int(token) for token in sequence] for sequence in sequences])).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def uniform(key: Tensor, *counters: Tensor | int) -> Tensor:
    """Independent U(0, 1), float64, never 0 or 1.

    One for each combination of key and counters, int64 tensors that broadcast.
    """
    state = _mix(key)
    # An int stays on the CPU, as a scalar that every device takes along: a copy to the
    # device would be waited for.
    for counter in counters:
        state = _mix(state ^ _mix(torch.as_tensor(counter, dtype=torch.int64) + _GOLDEN))
    # 52 bits: with 53 the largest would round to 1
    return (_shift(state, 12).double() + 0.5) * 2.0**-52


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's >> on int64 keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """The output of SplitMix64 (Steele et al. 2014) after one step of its counter.

    int64 arithmetic wraps around, as the algorithm needs.
    """
    z = z + _GOLDEN
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)

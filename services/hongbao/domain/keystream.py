"""Owns the secret, repeatable randomness that money is split and shuffled with.

One AES-256-CTR stream for each (seed, purpose, numbers): spans and chunks draw independently of
one another, so they are minted in any order, on any core, and come out the same (R40). Refuses
to own any seed and to read entropy: both come in as arguments.
"""

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

SEED_BYTES = 32
PURPOSE_BYTES_MAX = 16  # what BLAKE2b takes as its personalisation


def keystream_words(
    seed: bytes, purpose: bytes, numbers: Sequence[int], count: int
) -> NDArray[np.uint64]:
    """Return the first `count` 64-bit words of the stream that (seed, purpose, numbers) name.

    Each number must fit 64 bits. The words are the same on every machine.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a keystream seed has {SEED_BYTES} bytes, not {len(seed)}")
    named = struct.pack(f">{len(numbers)}Q", *numbers)
    key = hashlib.blake2b(named, digest_size=32, key=seed, person=purpose).digest()
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    # update_into wants a block of slack behind the output.
    words = np.empty(count + 2, dtype="<u8")
    stream.update_into(np.zeros(count, dtype="<u8").data.cast("B"), words.data.cast("B"))
    return words[:count].astype(np.uint64, copy=False)

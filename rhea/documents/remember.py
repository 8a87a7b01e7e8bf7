"""A codec that remembers the codes of the pictures it met last: a picture shown once a pass is encoded once."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from rhea.documents.document import Codec


class RememberingCodec:
    """Gives the codes that ``codec`` gives; films, whose pieces seldom return, are encoded each time."""

    def __init__(self, codec: Codec, pictures: int) -> None:
        """Keep the codes of that many pictures, those asked for last."""
        self.codec, self.pictures = codec, pictures
        self._codes: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def encode_pictures(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Encode those that are not remembered, together."""
        keys = [_key(picture) for picture in pictures]
        known = {key: self._codes[key] for key in keys if key in self._codes}
        unknown = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in known}
        if unknown:
            known |= zip(unknown, self.codec.encode_pictures(list(unknown.values())), strict=True)
        for key in keys:
            self._codes[key] = known[key].astype(np.int32)
            self._codes.move_to_end(key)
        while len(self._codes) > self.pictures:
            self._codes.popitem(last=False)
        return [known[key].astype(np.int64) for key in keys]

    def encode_film(self, frames: np.ndarray) -> np.ndarray:
        """Encode a film."""
        return self.codec.encode_film(frames)


def _key(picture: np.ndarray) -> bytes:
    return repr(picture.shape).encode() + hashlib.blake2b(picture.tobytes(), digest_size=16).digest()

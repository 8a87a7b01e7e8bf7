"""A picture met before is not encoded again, and its codes are its own."""

from collections.abc import Sequence

import numpy as np

from rhea.documents.remember import RememberingCodec


class CountingCodec:
    """The first channel as codes; notes which pictures it was given."""

    def __init__(self) -> None:
        self.encoded: list[int] = []

    def encode_pictures(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.encoded += [int(picture[0, 0, 0]) for picture in pictures]
        return [picture[:, :, 0].astype(np.int64) for picture in pictures]

    def encode_film(self, frames: np.ndarray) -> np.ndarray:
        return frames[::4, :, :, 0].astype(np.int64)


def picture(value: int, height: int = 2, width: int = 2) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_pictures_are_encoded_once_and_the_longest_unseen_is_forgotten():
    codec = CountingCodec()
    remembering = RememberingCodec(codec, 2)
    assert [int(codes[0, 0]) for codes in remembering.encode_pictures([picture(1), picture(2), picture(1)])] == [
        1,
        2,
        1,
    ]
    assert codec.encoded == [1, 2]
    remembering.encode_pictures([picture(1)])
    remembering.encode_pictures([picture(3)])  # forgets 2
    remembering.encode_pictures([picture(1), picture(3), picture(2)])
    assert codec.encoded == [1, 2, 3, 2]


def test_more_pictures_than_are_remembered_come_back_in_order():
    remembering = RememberingCodec(CountingCodec(), 1)
    found = remembering.encode_pictures([picture(value) for value in (5, 6, 7, 5)])
    assert [int(codes[0, 0]) for codes in found] == [5, 6, 7, 5]


def test_pictures_of_the_same_bytes_and_other_shapes_are_others():
    remembering = RememberingCodec(CountingCodec(), 9)
    shapes = [codes.shape for codes in remembering.encode_pictures([picture(0, 2, 3), picture(0, 3, 2)])]
    assert shapes == [(2, 3), (3, 2)]


def test_changing_what_was_given_changes_nothing_remembered():
    remembering = RememberingCodec(CountingCodec(), 9)
    remembering.encode_pictures([picture(4)])[0][:] = 0
    assert remembering.encode_pictures([picture(4)])[0].min() == 4

"""Pairs are read as they were written, and given out once a pass, the chosen one before the rejected one."""

import json
from pathlib import Path

import numpy as np
import pytest

from rhea.documents.pairs import Pair, PairLoader, read_pairs, write_pairs
from rhea.errors import InputError

PAD = 99


def pairs(number: int) -> list[Pair]:
    return [Pair((1, 2 + each), tuple(range(10, 13 + each % 3)), (20, 21)) for each in range(number)]


def loader(given: list[Pair], seed: int = 0) -> PairLoader:
    return PairLoader(given, rows=2, seq_len=24, pad=PAD, seed=seed)


def test_written_pairs_are_read(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", pairs(5))
    assert read_pairs(tmp_path / "pairs.jsonl", 30) == pairs(5)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not JSON"),
        ("[]", "needs prompt_ids"),
        ('{"prompt_ids": [1], "chosen_ids": [2]}', "needs prompt_ids, chosen_ids, rejected_ids"),
        ('{"prompt_ids": [1], "chosen_ids": [], "rejected_ids": [2]}', "a list of ids"),
        ('{"prompt_ids": [1], "chosen_ids": [true], "rejected_ids": [2]}', "a list of ids"),
        ('{"prompt_ids": [1], "chosen_ids": [30], "rejected_ids": [2]}', "ids from 0 to 29"),
        ('{"prompt_ids": [-1], "chosen_ids": [3], "rejected_ids": [2]}', "ids from 0 to 29"),
        ('{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [2]}', "prefers nothing"),
    ],
)
def test_what_is_no_pair_is_told_with_its_line(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, pairs(1))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=f"line 2: .*{told}"):
        read_pairs(path, 30)


def test_a_pass_gives_each_pair_once_the_chosen_document_first() -> None:
    given, found = pairs(7), []
    endless = loader(given)
    while len(found) < 14:
        batch = endless.next_batch()
        assert batch.token_ids.shape == (2, 24)
        for row in range(2):
            documents = batch.document_ids[row]
            own_weights = np.pad(batch.loss_weights[row], (1, 0))[:-1]
            for first in range(0, documents.max() + 1, 2):
                each = [batch.token_ids[row][documents == first + which].tolist() for which in (0, 1)]
                weights = [own_weights[documents == first + which].tolist() for which in (0, 1)]
                number = next(n for n, pair in enumerate(given) if [*pair.prompt_ids] == each[0][:2])
                pair = given[number]
                assert each == [[*pair.prompt_ids, *pair.chosen_ids], [*pair.prompt_ids, *pair.rejected_ids]]
                assert weights == [[0, 0] + [1] * (len(ids) - 2) for ids in each]
                assert batch.origins[row][first : first + 2] == (f"pair {number}, chosen", f"pair {number}, rejected")
                found.append(number)
    assert sorted(found[:7]) == sorted(found[7:14]) == list(range(7))
    assert found[:7] != found[7:14]


def test_resumed_equals_uninterrupted() -> None:
    one = loader(pairs(7))
    for _ in range(3):
        one.next_batch()
    state = json.loads(json.dumps(one.state_dict()))
    other = loader(pairs(7))
    other.load_state_dict(state)
    for _ in range(3):
        assert one.next_batch().origins == other.next_batch().origins
    for stranger in (loader(pairs(6)), loader(pairs(7), seed=1)):
        with pytest.raises(InputError, match="other pairs"):
            stranger.load_state_dict(state)


def test_what_cannot_be_given_out_is_refused() -> None:
    with pytest.raises(InputError, match="no pairs"):
        loader([])
    with pytest.raises(InputError, match="a pair has 30 tokens, a row only 24"):
        loader([Pair((1,), tuple(range(14)), tuple(range(14)))])

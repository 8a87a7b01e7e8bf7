"""Text tokenizers: Qwen's ids bit for bit, lossless round trips, and no text that turns into anything but text."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from rhea.errors import InputError
from rhea.tokenizers.text import ByteLevelTokenizer, TextTokenizer, load_text_tokenizer, train_text_tokenizer

NEGATIVE_PROMPT = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, "
    "low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)
SPECIAL_LOOKING = [
    "<|image start|>",
    "<|image token|>",
    "<|visual token 000001|>",
    "<|extra_204|>",
    "<|endoftext|>",
    "a<|extra_203|>b",
    "<image>",
]
CORPUS = ["a small red circle is left of the big blue square", "一个红色的圆形", "How many circles? 12."] * 5

# Any Unicode text: every code point but the surrogates, with the awkward ones made frequent.
TEXTS = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("é\u0301\u0300한각ﬀΩK 12 \r\n\t\u200d😀\u00a0\x00"),
    )
)


@pytest.fixture(scope="module")
def trained() -> ByteLevelTokenizer:
    return train_text_tokenizer(CORPUS, 320)


@pytest.fixture(scope="session")
def qwen() -> TextTokenizer:
    default = Path(__file__).parents[2] / ".." / "shared" / "data" / "qwen.tiktoken"
    path = Path(os.environ.get("RHEA_QWEN_TIKTOKEN", default))
    if not path.is_file():
        pytest.skip("Qwen's ranks file is not here: set RHEA_QWEN_TIKTOKEN to a qwen.tiktoken or emu3.tiktoken")
    return load_text_tokenizer(path)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("90*90", [24, 15, 9, 24, 15]),
        ("68*120", [21, 23, 9, 16, 17, 15]),
        ("You are a helpful assistant. USER: ", [2610, 525, 264, 10950, 17847, 13, 13872, 25, 220]),
        (" masterpiece, film grained, best quality.", [58731, 11, 4531, 1081, 2627, 11, 1850, 4271, 13]),
    ],
)
def test_qwen_ids_are_those_of_the_released_tokenizer(qwen: TextTokenizer, text: str, ids: list[int]) -> None:
    assert qwen.vocab_size == 151643
    assert qwen.encode(text) == ids
    assert qwen.decode(ids) == text


def test_qwen_negative_prompt_has_44_tokens(qwen: TextTokenizer) -> None:
    assert len(qwen.encode(NEGATIVE_PROMPT)) == 44


def test_qwen_normalizes_to_nfc_first(qwen: TextTokenizer) -> None:
    assert qwen.encode("e\u0301") == qwen.encode("é")


@given(text=TEXTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_qwen_round_trip_is_lossless_up_to_nfc(qwen: TextTokenizer, text: str) -> None:
    ids = qwen.encode(text)
    assert qwen.decode(ids) == unicodedata.normalize("NFC", text)
    assert all(0 <= token_id < qwen.vocab_size for token_id in ids)


@given(text=TEXTS)
def test_byte_level_round_trip_is_lossless(trained: ByteLevelTokenizer, text: str) -> None:
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert all(0 <= token_id < trained.vocab_size for token_id in ids)


@pytest.mark.parametrize("name", ["qwen", "trained"])
def test_lone_surrogates_become_replacement_characters_and_pairs_are_joined(
    name: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(name)
    assert tokenizer.decode(tokenizer.encode("a\ud800b\udc00")) == "a\ufffdb\ufffd"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"


@pytest.mark.parametrize("name", ["qwen", "trained"])
@pytest.mark.parametrize("text", SPECIAL_LOOKING)
def test_text_that_spells_special_tokens_stays_text(name: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) > 2
    assert max(ids) < tokenizer.vocab_size


@pytest.mark.parametrize("name", ["qwen", "trained"])
def test_every_digit_is_one_token(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    digits = [tokenizer.encode(digit) for digit in "0123456789"]
    assert all(len(ids) == 1 for ids in digits)
    assert tokenizer.encode("4711") == [token_id for digit in "4711" for token_id in tokenizer.encode(digit)]


@given(st.lists(st.integers(0, 299)))
def test_any_ids_decode_without_an_error(trained: ByteLevelTokenizer, ids: list[int]) -> None:
    assert isinstance(trained.decode(ids), str)


def test_training_twice_gives_the_same_tokenizer(trained: ByteLevelTokenizer, tmp_path: Path) -> None:
    train_text_tokenizer(CORPUS, 320).save(tmp_path / "a")
    trained.save(tmp_path / "b")
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
    assert 256 < trained.vocab_size <= 320


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="255"):
        train_text_tokenizer(CORPUS, 255)


def test_saved_tokenizer_is_a_standard_file_and_loads_from_file_or_folder(
    trained: ByteLevelTokenizer, tmp_path: Path
) -> None:
    trained.save(tmp_path)
    text = "the red square, 12 <|extra_204|> é"
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_text_tokenizer(path)
        assert loaded.vocab_size == trained.vocab_size
        assert loaded.encode(text) == trained.encode(text)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids == trained.encode(text)


def test_ranks_file_is_saved_as_it_is(qwen: TextTokenizer, tmp_path: Path) -> None:
    qwen.save(tmp_path)
    assert load_text_tokenizer(tmp_path).encode("68*120") == qwen.encode("68*120")


@pytest.mark.parametrize("where", ["first ids", "last ids"])
def test_added_tokens_of_a_hugging_face_file_are_never_matched(where: str, tmp_path: Path) -> None:
    special = ["<|image start|>", "<|extra_204|>", "<|visual token 000001|>"]
    theirs = Tokenizer(models.BPE())
    theirs.normalizer = normalizers.NFC()
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special if where == "first ids" else [],
        show_progress=False,
    )
    theirs.train_from_iterator(CORPUS, trainer)
    theirs.add_special_tokens(special)
    name = "<|extra_204|>"
    theirs.post_processor = processors.TemplateProcessing(
        single=f"{name} $A", special_tokens=[(name, theirs.token_to_id(name))]
    )
    theirs.enable_truncation(5)
    theirs.save(str(tmp_path / "tokenizer.json"))

    ours = load_text_tokenizer(tmp_path)
    special_ids = {theirs.token_to_id(token) for token in special}
    for text in SPECIAL_LOOKING:
        ids = ours.encode(text)
        assert not special_ids & set(ids)
        assert max(ids) < ours.vocab_size
        assert ours.decode(ids) == text
    theirs.no_truncation()
    plain = "a red circle é"
    assert ours.encode(plain) == theirs.encode(plain, add_special_tokens=False).ids
    if where == "last ids":
        assert ours.vocab_size == min(special_ids)


def test_merges_that_make_an_added_token_are_taken_out(tmp_path: Path) -> None:
    alphabet = {character: number for number, character in enumerate("<s>ab")}
    specification = {
        "version": "1.0",
        "added_tokens": [],
        "model": {
            "type": "BPE",
            "vocab": alphabet | {"<s": 5, "<s>": 6, "ab": 7},
            "merges": ["< s", "<s >", "a b"],
        },
    }
    whole = ByteLevelTokenizer(specification)
    assert whole.encode("<s>ab") == [6, 7]
    added = {"id": 6, "content": "<s>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
    specification["added_tokens"] = [added | {"normalized": False}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(specification))
    assert load_text_tokenizer(tmp_path).encode("<s>ab") == [5, 2, 7]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b"[1, 2]"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}'),
        ("tokenizer.json", b'{"model": {"type": "Nonsense"}}'),
        ("text.tiktoken", b""),
        ("text.tiktoken", b"IQ== 0\nIg== 1\n"),
        ("text.tiktoken", b"not base64 at all\n"),
        ("text.tiktoken", b"\xff\xfe\x00"),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        load_text_tokenizer(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.tiktoken", tmp_path / "nothing.json"):
        with pytest.raises(InputError, match=str(path.name)):
            load_text_tokenizer(path)


def test_a_cut_off_ranks_file_is_refused(qwen: TextTokenizer, tmp_path: Path) -> None:
    qwen.save(tmp_path)
    lines = (tmp_path / "text.tiktoken").read_bytes().splitlines(keepends=True)
    (tmp_path / "text.tiktoken").write_bytes(b"".join(lines[100:]))
    with pytest.raises(InputError, match="damaged"):
        load_text_tokenizer(tmp_path)

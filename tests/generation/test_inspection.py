"""Looking inside: laws against the plain way of computing them, attention against a softmax written by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_model import tiny_checkpoint

from rhea import media
from rhea.documents.document import Image, ImageSize, Video
from rhea.errors import InputError
from rhea.generation import inspection
from rhea.generation.completion import Completer, Completion, Prompt
from rhea.generation.model import Rhea
from rhea.generation.sampling import SamplingConfig, final_probabilities
from rhea.models.transformer import Transformer

TEXT = "a small red circle, two"
NOISE = np.random.default_rng(0).integers(0, 255, (32, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tiny() -> Rhea:
    return Rhea(tiny_checkpoint())


@pytest.fixture(scope="module")
def prompt(tiny: Rhea) -> Prompt:
    return tiny.prompts.draw(TEXT, guidance_scale=2.5, temperature=0.8, top_k=12, seed=4)


@pytest.fixture(scope="module")
def drawn(tiny: Rhea, prompt: Prompt) -> Completion:
    return tiny.completer.complete([prompt])[0]


@pytest.fixture(scope="module")
def seen(tiny: Rhea, prompt: Prompt, drawn: Completion) -> inspection.Inspection:
    return inspection.inspect(tiny.completer, prompt, drawn.token_ids)


@torch.no_grad()
def attention_by_hand(model: Transformer, token_ids: np.ndarray) -> np.ndarray:
    """Return [layers, heads, T, T], with everything but the weights written anew."""
    config = model.config
    assert model.embed_tokens is not None
    x = model.embed_tokens(torch.from_numpy(token_ids)).double()
    length, half = len(token_ids), config.head_dim // 2
    angle = torch.arange(length)[:, None] * config.rope_theta ** (-torch.arange(half).double() / half)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]

    def norm(y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return y / (y.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * weight.double()

    def rotated(y: torch.Tensor) -> torch.Tensor:
        turned = torch.complex(y[..., :half], y[..., half:]) * turn
        return torch.cat([turned.real, turned.imag], -1)

    found = []
    for layer in model.layers:
        a, m = layer.attention, layer.mlp
        inner = norm(x, layer.attention_norm.weight)
        q, k, v = (
            (inner @ p.weight.double().T).view(length, -1, config.head_dim) for p in (a.q_proj, a.k_proj, a.v_proj)
        )
        if a.q_norm is not None:
            q, k = norm(q, a.q_norm.weight), norm(k, a.k_norm.weight)
        q, k = rotated(q), rotated(k)
        heads, outputs = [], []
        for head in range(config.num_heads):
            group = head // (config.num_heads // config.num_kv_heads)
            scores = q[:, head] @ k[:, group].T / config.head_dim**0.5
            weights = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf")).softmax(-1)
            heads.append(weights)
            outputs.append(weights @ v[:, group])
        found.append(torch.stack(heads))
        x = x + torch.cat(outputs, -1) @ a.o_proj.weight.double().T
        inner = norm(x, layer.mlp_norm.weight)
        gate, up = (inner @ p.weight.double().T for p in (m.gate_proj, m.up_proj))
        x = x + (torch.nn.functional.silu(gate) * up) @ m.down_proj.weight.double().T
    return torch.stack(found).numpy()


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_is_that_of_a_softmax_written_by_hand(qk_norm: bool) -> None:
    model = Transformer(replace(tiny_checkpoint().config.transformer, qk_norm=qk_norm))  # type: ignore[type-var]
    model.init_weights(seed=5)
    with torch.no_grad():
        for layer in model.layers:
            for norm in (layer.attention.q_norm, layer.attention.k_norm):
                if norm is not None:
                    norm.weight.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(1))
    token_ids = np.random.default_rng(2).integers(0, model.config.vocab_size, 23)
    whole = attention_by_hand(model, token_ids)
    queries, keys = [3, 22, 7], [0, 5, 6]
    rows = inspection.attention(model, token_ids, queries)
    np.testing.assert_allclose(rows, whole[:, :, queries], atol=2e-5)
    np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-5)
    some = inspection.attention(model, token_ids, queries, keys)
    np.testing.assert_array_equal(some, rows[..., keys])


def test_many_rows_are_computed_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch, tiny: Rhea) -> None:
    token_ids, transformer = np.arange(20), tiny.completer.transformer
    at_once = inspection.attention(transformer, token_ids, range(20))
    monkeypatch.setattr(inspection, "_ROWS_AT_ONCE", 7)
    np.testing.assert_allclose(inspection.attention(transformer, token_ids, range(20)), at_once, atol=1e-6)


def test_witnessing_changes_nothing(tiny: Rhea, prompt: Prompt, drawn: Completion) -> None:
    inspection.attention(tiny.completer.transformer, drawn.token_ids, [1])
    assert tiny.completer.complete([prompt])[0].token_ids == drawn.token_ids


def test_certainty_is_that_of_the_law_each_token_was_drawn_from(
    tiny: Rhea, prompt: Prompt, drawn: Completion, seen: inspection.Inspection
) -> None:
    """Token by token, with the whole vocabulary's logits and a mask, by formulas of its own."""
    request, transformer = tiny.completer.requests([prompt])[0], tiny.completer.transformer
    assert request.negative_prompt is not None
    at = request.constraint.copy()
    for index, token_id in enumerate(drawn.token_ids):
        before = drawn.token_ids[:index]
        with torch.no_grad():
            c, u = (
                transformer(torch.tensor([[*start, *before]]))[0, -1]
                for start in (request.prompt, request.negative_prompt)
            )
        legal = [id_ for ids in at.legal().ranges for id_ in ids]
        law = final_probabilities((u + 2.5 * (c - u))[legal][None], request.sampling)[0].double().numpy()
        at.advance(token_id)
        positive = law[law > 0]
        assert seen.entropy[index] == pytest.approx(-(positive * np.log2(positive)).sum(), abs=1e-4)
        assert seen.log_probability[index] == pytest.approx(np.log(law[legal.index(token_id)]), abs=1e-4)
    assert seen.entropy.max() > 1, "a law that is certain everywhere would test nothing"


def test_codes_are_found_where_they_are(tiny: Rhea, drawn: Completion, seen: inspection.Inspection) -> None:
    vocabulary = tiny.completer.grammar.vocabulary
    assert drawn.codes is not None
    np.testing.assert_array_equal(vocabulary.code(seen.token_ids[seen.places]), drawn.codes)
    forced = np.setdiff1d(np.arange(len(seen.entropy)), seen.places - seen.new)
    assert len(forced) == drawn.codes.shape[0] + 3, "ends of rows, of the frame, of the picture, of the document"
    assert not seen.entropy[forced].any()
    assert not seen.log_probability[forced].any()
    np.testing.assert_array_equal(seen.on_grid(seen.entropy).ravel(), np.delete(seen.entropy, forced))


def test_words_are_those_of_the_prompt(tiny: Rhea, seen: inspection.Inspection) -> None:
    assert [word.text for word in seen.words] == ["a", "small", "red", "circle", ",", "two"]
    tokenizer = tiny.completer.grammar.text_tokenizer
    for word in seen.words:
        assert tokenizer.decode(seen.token_ids[word.start : word.stop].tolist()).strip() == word.text


def test_characters_of_several_tokens_stay_whole(tiny: Rhea) -> None:
    grammar = tiny.completer.grammar
    ids = grammar.text_tokenizer.encode("一个 red 圆")
    assert len(ids) > 6, "the tiny tokenizer writes bytes"
    assert [word.text for word in inspection.words(grammar, ids)] == ["一", "个", "red", "圆"]


def test_attention_between_words_and_codes(tiny: Rhea, seen: inspection.Inspection) -> None:
    transformer = tiny.completer.transformer
    whole = attention_by_hand(transformer, seen.token_ids)
    word, places = seen.words[2], seen.places
    by_word = inspection.word_attention(transformer, seen, word)
    expected = whole[:, :, places - 1, word.start : word.stop].sum(-1)
    np.testing.assert_allclose(by_word, expected, atol=2e-5)
    at_words, at_codes = inspection.code_attention(transformer, seen, 7)
    row = whole[:, :, places.ravel()[7] - 1]
    np.testing.assert_allclose(at_words[..., 2], row[..., word.start : word.stop].sum(-1), atol=2e-5)
    np.testing.assert_allclose(at_codes, row[..., places], atol=2e-5)
    np.testing.assert_allclose(at_words[..., 2], by_word.reshape(*by_word.shape[:2], -1)[..., 7], atol=2e-5)
    assert not at_codes.reshape(*at_codes.shape[:2], -1)[..., 7:].any(), "nothing looks at what is not drawn yet"


def test_a_word_after_the_picture_looks_at_it(tiny: Rhea, seen: inspection.Inspection) -> None:
    """As in a question: the word's rows, not the codes' columns."""
    tokens = tiny.completer.grammar.text_tokenizer.encode(" two")
    longer = replace(seen, token_ids=np.array([*seen.token_ids, *tokens]))
    word = inspection.Word(text="two", start=len(seen.token_ids), stop=len(longer.token_ids))
    found = inspection.word_attention(tiny.completer.transformer, longer, word)
    rows = attention_by_hand(tiny.completer.transformer, longer.token_ids)[:, :, word.start :]
    np.testing.assert_allclose(found, rows[..., seen.places].mean(2), atol=2e-5)


@pytest.mark.parametrize("window", [1, 3])
def test_commits_count_what_each_forward_gave(tiny: Rhea, prompt: Prompt, drawn: Completion, window: int) -> None:
    found = inspection.commits(tiny.completer, prompt, window)
    assert list(found.token_ids) == drawn.token_ids
    assert drawn.codes is not None
    assert found.forward.shape == drawn.codes.shape
    assert found.codes.sum() == drawn.codes.size
    assert found.codes.max() <= window
    np.testing.assert_array_equal(np.bincount(found.forward.ravel()), found.codes)
    assert (np.diff(found.forward.ravel()) >= 0).all(), "codes come in order"
    if window == 1:
        assert (found.codes == 1).all()


def test_a_film_has_a_grid_of_frames(tiny: Rhea) -> None:
    prompt = tiny.prompts.draw(TEXT, video=True, seed=1)
    film = tiny.completer.complete([prompt])[0]
    seen = inspection.inspect(tiny.completer, prompt, film.token_ids)
    assert film.codes is not None
    assert seen.places.shape == film.codes.shape
    assert inspection.commits(tiny.completer, prompt).forward.shape == film.codes.shape


def test_greedy_draws_are_certain(tiny: Rhea, prompt: Prompt) -> None:
    greedy = replace(prompt, sampling=replace(prompt.sampling, temperature=0.0))
    tokens = tiny.completer.complete([greedy])[0].token_ids
    seen = inspection.inspect(tiny.completer, greedy, tokens)
    assert not seen.entropy.any()
    assert not seen.log_probability.any()
    other = [*tokens]
    other[4] = next(id_ for id_ in tiny.completer.grammar.vocabulary.vision if id_ != tokens[4])
    assert inspection.inspect(tiny.completer, greedy, other).log_probability[4] == -np.inf


@pytest.fixture(scope="module")
def asked(tiny: Rhea) -> Prompt:
    return tiny.prompts.answer(NOISE, [("How many objects are there?", None)])


@pytest.fixture(scope="module")
def answer(tiny: Rhea, asked: Prompt) -> Completion:
    return tiny.completer.complete([asked])[0]


@pytest.fixture(scope="module")
def reading(tiny: Rhea, asked: Prompt, answer: Completion) -> inspection.Inspection:
    return inspection.inspect(tiny.completer, asked, answer.token_ids)


def test_reading_is_certain_by_the_models_own_law(tiny: Rhea, reading: inspection.Inspection) -> None:
    """Codes among codes, words among words and the end: greedy draws of the answer make nothing certain."""
    vocabulary, ids = tiny.completer.grammar.vocabulary, reading.token_ids
    with torch.no_grad():
        logits_TV = tiny.completer.transformer(torch.from_numpy(ids)[None])[0].double()
    text = [*range(tiny.completer.grammar.text_tokenizer.vocab_size), vocabulary.eos]
    for index in range(reading.new, len(ids)):
        among = vocabulary.vision if ids[index] in vocabulary.vision else text if ids[index] in text else [ids[index]]
        law = logits_TV[index - 1, list(among)].softmax(-1).numpy()
        assert reading.entropy[index - reading.new] == pytest.approx(-(law * np.log2(law)).sum(), abs=1e-4)
        chance = law[list(among).index(ids[index])]
        assert reading.log_probability[index - reading.new] == pytest.approx(np.log(chance), abs=1e-4)
    assert reading.read
    np.testing.assert_array_equal(reading.codes, tiny.prompts.codec.encode_picture(NOISE))


def test_words_that_read_are_those_after_the_picture(
    tiny: Rhea, answer: Completion, reading: inspection.Inspection
) -> None:
    given = [word.text for word in reading.words if not word.written]
    assert given == ["How", "many", "objects", "are", "there", "?", ".", "ASSISTANT", ":"]
    written = [word for word in reading.words if word.written]
    assert "".join(word.text for word in written) == "".join(answer.text.split())
    for word in written:
        start = word.start - reading.new
        total = reading.log_probability[start : start + word.stop - word.start].sum()
        assert reading.in_word(reading.log_probability, word) == pytest.approx(total)


def test_attention_of_what_was_read(tiny: Rhea, reading: inspection.Inspection) -> None:
    """A word of the answer looks with the row that it was drawn from, one of the question with its own."""
    transformer, places = tiny.completer.transformer, reading.places
    whole = attention_by_hand(transformer, reading.token_ids)
    at_words, at_codes = inspection.code_attention(transformer, reading, 5)
    np.testing.assert_allclose(at_codes, whole[:, :, places.flat[5]][..., places], atol=2e-5)
    for number, before in ((0, 0), (-1, 1)):
        word = reading.words[number]
        expected = whole[:, :, np.arange(word.start, word.stop) - before].mean(2)
        found = inspection.word_attention(transformer, reading, word)
        np.testing.assert_allclose(found, expected[..., places], atol=2e-5)
        np.testing.assert_allclose(at_words[..., number], expected[..., places.flat[5]], atol=2e-5)


def test_any_picture_is_seen_as_if_it_had_been_drawn(tiny: Rhea, drawn: Completion, prompt: Prompt) -> None:
    """The law is that of the plain prompt, so what the model drew is seen as it was but for guidance and cuts."""
    plain = replace(prompt, negative=None, sampling=SamplingConfig())
    expected = inspection.inspect(tiny.completer, plain, drawn.token_ids)
    seen = inspection.inspect(tiny.completer, *inspection.as_drawn(tiny.completer, Image(codes=drawn.codes), TEXT))
    np.testing.assert_array_equal(seen.token_ids, expected.token_ids)
    np.testing.assert_array_equal(seen.entropy, expected.entropy)
    assert not seen.read
    unconditional, token_ids = inspection.as_drawn(tiny.completer, Image(pixels=NOISE))
    vocabulary = tiny.completer.grammar.vocabulary
    request = tiny.completer.requests([unconditional])[0]
    assert request.prompt[:2] == [vocabulary.bos, vocabulary.image_start], "no words at all"
    found = inspection.inspect(tiny.completer, unconditional, token_ids)
    np.testing.assert_array_equal(found.codes, tiny.prompts.codec.encode_picture(NOISE))
    film = Video(frames=np.stack([NOISE] * 5), fps=8.0)
    assert inspection.inspect(tiny.completer, *inspection.as_drawn(tiny.completer, film)).places.shape == (2, 4, 3)


def test_a_film_that_is_asked_about_has_frames_and_turns(tiny: Rhea) -> None:
    film = media.Film(frames=np.stack([NOISE] * 8), fps=8.0)
    asked = tiny.prompts.answer(film, [("How many?", "two"), ("make it blue", None)])
    answer = tiny.completer.complete([asked])[0]
    seen = inspection.inspect(tiny.completer, asked, answer.token_ids)
    assert seen.codes.shape == (2, 4, 3)
    np.testing.assert_array_equal(seen.codes, tiny.prompts.codec.encode_film(film.frames))


def test_what_cannot_be_looked_into(tiny: Rhea, prompt: Prompt, drawn: Completion) -> None:
    with pytest.raises(InputError, match="is not finished: 2 of its tokens"):
        inspection.inspect(tiny.completer, prompt, drawn.token_ids[:-4])
    with pytest.raises(InputError, match="token 3 is 5, which this prompt does not allow"):
        inspection.inspect(tiny.completer, prompt, [*drawn.token_ids[:3], 5])
    with pytest.raises(InputError, match="shows no picture"):
        inspection.inspect(tiny.completer, tiny.prompts.answer(None, [("two", None)]), [5])
    with pytest.raises(InputError, match="only what is drawn"):
        inspection.commits(tiny.completer, tiny.prompts.answer(NOISE, [("two", None)]))
    blind = Completer(tiny.completer.transformer, tiny.completer.grammar, None)
    with pytest.raises(InputError, match="no vision tokenizer"):
        inspection.as_drawn(blind, Image(pixels=NOISE))
    assert prompt.next == ImageSize(height=4, width=3)

"""Looking inside: laws against the plain way of computing them, attention against a softmax written by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_model import tiny_checkpoint

from rhea.documents.document import ImageSize
from rhea.errors import InputError
from rhea.generation import inspection
from rhea.generation.completion import Completion, Prompt
from rhea.generation.model import Rhea
from rhea.generation.sampling import final_probabilities
from rhea.models.transformer import Transformer

TEXT = "a small red circle, two"


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


def test_what_cannot_be_looked_into(tiny: Rhea, prompt: Prompt, drawn: Completion) -> None:
    with pytest.raises(InputError, match="is not finished: 2 of its tokens"):
        inspection.inspect(tiny.completer, prompt, drawn.token_ids[:-4])
    with pytest.raises(InputError, match="token 3 is 5, which this prompt does not allow"):
        inspection.inspect(tiny.completer, prompt, [*drawn.token_ids[:3], 5])
    with pytest.raises(InputError, match="asks for text"):
        inspection.inspect(tiny.completer, replace(prompt, next=None, negative=None), drawn.token_ids)
    assert prompt.next == ImageSize(height=4, width=3)

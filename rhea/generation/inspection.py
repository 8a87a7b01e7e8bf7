"""Looking inside a finished picture: how sure the model was of every code, what it looked at, what each forward gave.

All of it is computed again from the prompt and the tokens, by one teacher-forced forward with the one transformer. The
decision that is not obvious: attention is witnessed by a *cache* that keeps nothing. A cache is handed the queries and
keys as the model attends with them (normed, rotated, grouped), so what is shown is what happened, and no hook on the
model can meet the forwards of an engine that works in another thread.

A code is drawn from the state of the token before it, so "what a code looked at" is that token's row of attention.

Shapes: T tokens of the sequence, N new tokens, L layers, H heads, Q queries, S keys, K channels of one head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rhea.documents.document import ImageSize
from rhea.documents.grammar import Grammar
from rhea.errors import InputError
from rhea.generation.completion import Completer, Prompt
from rhea.generation.engine import Engine
from rhea.generation.request import Request, check_fits
from rhea.generation.sampling import SamplingConfig, final_probabilities, guided_logits
from rhea.models.attend import attend
from rhea.models.transformer import Transformer
from rhea.models.visibility import Visibility

_ROWS_AT_ONCE = 256
"""Rows of attention or of the head that are held at a time: an eighth of a gigabyte each for the largest Emu3."""
_WINDOW = 8
"""What the tuner of the engine most often ends at with the default model."""


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word of the prompt: the tokens [start, stop) of the sequence."""

    text: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspection:
    """A picture or film as the model sees it. ``grid`` below is [h, w], of a film [t, h, w]."""

    token_ids: np.ndarray
    """int64 [T]: prompt and new tokens."""
    words: tuple[Word, ...]
    """Of the prompt's texts, in order."""
    places: np.ndarray
    """int64 [grid]: where in ``token_ids`` each code is."""
    entropy: np.ndarray
    """float32 [N]: bits of the law that each new token was drawn from (guided, constrained, tempered, truncated); 0
    where the grammar leaves no choice."""
    log_probability: np.ndarray
    """float32 [N]: natural logarithm of that law's probability of the token; minus infinity if it had none."""

    @property
    def new(self) -> int:
        """The index of the first new token."""
        return len(self.token_ids) - len(self.entropy)

    def on_grid(self, values_N: np.ndarray) -> np.ndarray:
        """Return the values of the codes, [grid], out of those of all new tokens."""
        return values_N[self.places - self.new]


@dataclass(frozen=True, kw_only=True, eq=False)
class Commits:
    """What each forward of a drawing gave."""

    forward: np.ndarray
    """int64 [grid]: the number of the forward, from 0, that gave each code."""
    codes: np.ndarray
    """int64 [forwards]: how many codes each forward gave; those that only read the prompt are left out."""
    token_ids: tuple[int, ...]
    """What was drawn: the picture's own tokens, unless the engine draws by coupling or weights are rounded."""


@torch.inference_mode()
def inspect(completer: Completer, prompt: Prompt, token_ids: Sequence[int]) -> Inspection:
    """Compute how sure the model was of each new token of a picture or film that followed ``prompt``.

    InputError if the prompt asks for text, if the tokens are not what its grammar allows, or do not fit the context.
    """
    request, positions = _laid_out(completer, prompt, token_ids)
    check_fits(request, completer.transformer.config.max_seq_len)
    entropy, log_probability = _certainty(completer.transformer, request, token_ids)
    assert prompt.next is not None
    _, height, width = completer.grammar.grid(prompt.next)
    shape = (height, width) if isinstance(prompt.next, ImageSize) else (-1, height, width)
    return Inspection(
        token_ids=np.array([*request.prompt, *token_ids], dtype=np.int64),
        words=words(completer.grammar, request.prompt),
        places=np.array(positions, dtype=np.int64).reshape(shape) + len(request.prompt),
        entropy=entropy,
        log_probability=log_probability,
    )


@torch.inference_mode()
def attention(
    transformer: Transformer,
    token_ids: Sequence[int] | np.ndarray,
    queries: Sequence[int],
    keys: Sequence[int] | None = None,
) -> np.ndarray:
    """Return the attention of the tokens at ``queries`` to those at ``keys`` (None: to all), float32 [L, H, Q, S].

    Over all tokens each row sums to 1; tokens after a query have 0.
    """
    ids_1T = torch.as_tensor(np.asarray(token_ids), device=_device(transformer))[None]
    witness = _Witness(list(queries), None if keys is None else list(keys), ids_1T.device)
    transformer.hidden(ids_1T, cache=witness)
    return np.stack(witness.seen)


def word_attention(transformer: Transformer, seen: Inspection, word: Word) -> np.ndarray:
    """Return how much each code looked at a word when it was drawn, float32 [L, H, grid].

    For a word after the picture (of a question about it) it is the other way round: how much the word looked at each
    code, as the mean of its tokens.
    """
    places, tokens = seen.places.ravel(), list(range(word.start, word.stop))
    if word.start > places[-1]:
        weights = attention(transformer, seen.token_ids, tokens, places.tolist()).mean(2)
    else:
        weights = attention(transformer, seen.token_ids, (places - 1).tolist(), tokens).sum(3)
    return weights.reshape(*weights.shape[:2], *seen.places.shape)


def code_attention(transformer: Transformer, seen: Inspection, place: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what the code at ``place`` (in row-major order) looked at when it was drawn: words, and codes before it.

    float32 [L, H, words] and [L, H, grid]; what is missing to a sum of 1 went to marks and the size text.
    """
    row = attention(transformer, seen.token_ids, [int(seen.places.ravel()[place]) - 1])[:, :, 0]
    at_words = [row[..., word.start : word.stop].sum(-1) for word in seen.words]
    at_words_LHW = np.stack(at_words, -1) if at_words else np.zeros((*row.shape[:2], 0), np.float32)
    return at_words_LHW, row[..., seen.places]


def commits(completer: Completer, prompt: Prompt, window: int | None = None) -> Commits:
    """Draw the picture or film of ``prompt`` again and note which forward gave which codes.

    ``window``: how many codes may be drawn at a time; by default the engine's, or what its tuner ends at mostly.
    """
    request = completer.requests([prompt])[0]
    length = max(len(request.prompt), len(request.negative_prompt or ())) + request.max_new_tokens
    chosen = window or completer.engine.window or _WINDOW
    config = replace(completer.engine, slots=2 if request.guided else 1, max_len=length, window=chosen)
    ends = list[int]()
    check_fits(request, completer.transformer.config.max_seq_len)
    engine = Engine(completer.transformer, config)
    token_ids = engine.run([request], watch=lambda _, tokens: ends.append(len(tokens)))[0]
    _, positions = _laid_out(completer, prompt, token_ids)
    forward = np.searchsorted(np.array(ends), np.array(positions), side="right")
    assert prompt.next is not None
    _, height, width = completer.grammar.grid(prompt.next)
    shape = (height, width) if isinstance(prompt.next, ImageSize) else (-1, height, width)
    codes = np.bincount(forward, minlength=len(ends))
    return Commits(forward=forward.reshape(shape), codes=codes, token_ids=tuple(token_ids))


def words(grammar: Grammar, token_ids: Sequence[int]) -> tuple[Word, ...]:
    """Return the words of the texts in a prompt; what is between image marks is none."""
    vocabulary, tokenizer = grammar.vocabulary, grammar.text_tokenizer
    found, start, inside = list[Word](), 0, False
    for index, token_id in enumerate([*token_ids, vocabulary.eos]):
        is_text = not inside and token_id in vocabulary.text
        pending = tokenizer.decode(list(token_ids[start:index]))
        if start < index and (not is_text or _parts(pending, tokenizer.decode([token_id]))):
            if pending.strip():
                found.append(Word(text=pending.strip(), start=start, stop=index))
            start = index
        if not is_text:
            start = index + 1
            inside = token_id == vocabulary.image_start or (inside and token_id != vocabulary.image_end)
    return tuple(found)


def _parts(before: str, after: str) -> bool:
    """Tell whether a new word begins: at white space, and between signs that are no letters of an alphabet."""
    if before.endswith("\ufffd") or not before:  # half a character
        return False
    return after[:1].isspace() or not (_joins(before[-1]) and _joins(after[:1]))


def _joins(character: str) -> bool:
    return character.isalnum() and ord(character[0]) < 0x2E80  # from there on every character is a word


def _laid_out(completer: Completer, prompt: Prompt, token_ids: Sequence[int]) -> tuple[Request, list[int]]:
    """Return the request of a prompt, and which of the new tokens are codes."""
    if prompt.next is None:
        raise InputError("the prompt asks for text: only pictures and films can be looked into")
    request = completer.requests([prompt])[0]
    at, positions = request.constraint.copy(), list[int]()
    for index, token_id in enumerate(token_ids):
        if token_id not in at.legal():
            raise InputError(f"token {index} is {token_id}, which this prompt does not allow: is it the picture's own?")
        if at.in_grid and token_id in completer.grammar.vocabulary.vision:
            positions.append(index)
        at.advance(token_id)
    if at.in_grid:
        raise InputError(f"the picture is not finished: {at.remaining_grid_tokens} of its tokens are missing")
    return request, positions


def _certainty(transformer: Transformer, request: Request, token_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return entropy in bits and log-probability of each new token, float32 [N]."""
    branches = [request.prompt, request.negative_prompt] if request.guided else [request.prompt]
    device = _device(transformer)
    states = []
    for prompt in branches:
        assert prompt is not None
        ids_1T = torch.tensor([[*prompt, *token_ids]], device=device)
        states.append(transformer.hidden(ids_1T)[0, len(prompt) - 1 : -1])
    entropy_N, log_probability_N = (np.zeros(len(token_ids), np.float32) for _ in range(2))
    groups: dict[tuple[range, ...], list[int]] = {}
    at = request.constraint.copy()
    for index, token_id in enumerate(token_ids):
        legal = at.legal()
        if legal.forced is None:
            groups.setdefault(legal.ranges, []).append(index)
        at.advance(token_id)
    for ranges, members in groups.items():
        ids_V = torch.cat([torch.arange(r.start, r.stop, device=device) for r in ranges])
        for first in range(0, len(members), _ROWS_AT_ONCE):
            rows = members[first : first + _ROWS_AT_ONCE]
            logits = [torch.cat([transformer.logits(s[rows], r.start, r.stop) for r in ranges], -1) for s in states]
            if request.guided:
                logits[0] = guided_logits(logits[0], logits[1], request.sampling.guidance_scale)
            chances_NV = _law(logits[0], request.sampling).double()
            chosen_N1 = torch.searchsorted(ids_V, torch.tensor([[token_ids[row]] for row in rows], device=device))
            entropy_N[rows] = (torch.special.entr(chances_NV).sum(-1) / np.log(2)).cpu().numpy()
            log_probability_N[rows] = chances_NV.gather(-1, chosen_N1)[:, 0].log().cpu().numpy()
    return entropy_N, log_probability_N


def _law(logits_NV: Tensor, sampling: SamplingConfig) -> Tensor:
    """Return the probabilities that a token is drawn from, [N, V]; all on the best one if draws are greedy."""
    if sampling.temperature == 0:
        return torch.zeros_like(logits_NV).scatter_(-1, logits_NV.argmax(-1, keepdim=True), 1.0)
    return final_probabilities(logits_NV, sampling)


def _device(transformer: Transformer) -> torch.device:
    return next(transformer.parameters()).device


class _Witness:
    """Stands where a cache stands, and notes the attention of some tokens to some others, layer by layer."""

    def __init__(self, queries: list[int], keys: list[int] | None, device: torch.device) -> None:
        self.seen: list[np.ndarray] = []
        """float32 [H, Q, S] of each layer so far."""
        self._queries, self._keys, self._device = queries, keys, device

    def begin(self, num_tokens: int) -> tuple[Tensor, Visibility]:
        return torch.arange(num_tokens, device=self._device)[None], Visibility(causal=True)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, visibility: Visibility) -> Tensor:
        assert layer == len(self.seen), "the layers come in order"
        group = queries.shape[2] // keys.shape[2]
        keys_THK = keys[0].float().repeat_interleave(group, 1)
        order_T = torch.arange(len(keys_THK), device=self._device)
        parts = []
        for first in range(0, len(self._queries), _ROWS_AT_ONCE):
            rows = torch.tensor(self._queries[first : first + _ROWS_AT_ONCE], device=self._device)
            scores_HQT = torch.einsum("qhk,thk->hqt", queries[0, rows].float(), keys_THK) * keys.shape[-1] ** -0.5
            weights_HQT = scores_HQT.masked_fill(order_T > rows[:, None], float("-inf")).softmax(-1)
            parts.append((weights_HQT if self._keys is None else weights_HQT[..., self._keys]).cpu())
        self.seen.append(torch.cat(parts, 1).numpy())
        return attend(queries, keys, values, visibility)

    def finish(self) -> None:
        pass

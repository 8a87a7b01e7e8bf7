"""Looking inside a picture or film, drawn or read: how sure the model is of every code, what looked at what.

All of it is computed again from the prompt and the tokens, by one teacher-forced forward with the one transformer. The
decision that is not obvious: attention is witnessed by a *cache* that keeps nothing. A cache is handed the queries and
keys as the model attends with them (normed, rotated, grouped), so what is shown is what happened, and no hook on the
model can meet the forwards of an engine that works in another thread.

What is written, a code or a word of an answer, is drawn from the state of the token before it, so "what it looked at"
is that token's row of attention; what is given looked at things with its own row.

Shapes: T tokens of the sequence, N new tokens, L layers, H heads, Q queries, S keys, K channels of one head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rhea.documents import formats
from rhea.documents.constraint import Constraint, Legal
from rhea.documents.document import Image, ImageSize, Text, Video
from rhea.documents.grammar import Grammar
from rhea.errors import InputError
from rhea.generation.completion import Completer, Prompt
from rhea.generation.engine import Engine
from rhea.generation.request import check_fits
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
    """A word of the prompt or of the answer: the tokens [start, stop) of the sequence."""

    text: str
    start: int
    stop: int
    written: bool = False
    """Whether the model wrote it."""

    @property
    def rows(self) -> list[int]:
        """The tokens whose attention is the word's."""
        return [token - self.written for token in range(self.start, self.stop)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspection:
    """A picture or film as the model sees it. ``grid`` below is [h, w], of a film [t, h, w]."""

    token_ids: np.ndarray
    """int64 [T]: prompt and new tokens."""
    words: tuple[Word, ...]
    """Of the prompt's texts, in order; of a picture that was read those after it, the answer's at last."""
    places: np.ndarray
    """int64 [grid]: where in ``token_ids`` each code is."""
    codes: np.ndarray
    """int64 [grid]: the codes themselves."""
    read: bool
    """Whether the picture was given to be read; otherwise it was drawn."""
    entropy: np.ndarray
    """float32 [N]: bits of the law that each new token was drawn from (guided, constrained, tempered, truncated); 0
    where the grammar leaves no choice. Where a picture was read, all from its first code on is new, and the law is the
    model's own: temperature 1, nothing cut off."""
    log_probability: np.ndarray
    """float32 [N]: natural logarithm of that law's probability of the token; minus infinity if it had none."""

    @property
    def new(self) -> int:
        """The index of the first new token."""
        return len(self.token_ids) - len(self.entropy)

    def on_grid(self, values_N: np.ndarray) -> np.ndarray:
        """Return the values of the codes, [grid], out of those of all new tokens."""
        return values_N[self.places - self.new]

    def in_word(self, values_N: np.ndarray, word: Word) -> float | None:
        """Return the sum of the values of a word's tokens; None if it came before all new tokens."""
        return None if word.start < self.new else float(values_N[word.start - self.new : word.stop - self.new].sum())

    @property
    def rows(self) -> np.ndarray:
        """int64 [grid]: the tokens whose attention is the codes'."""
        return self.places - (not self.read)


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
    """Compute how sure the model was of each token of a picture or film.

    It is the one that followed ``prompt`` as ``token_ids``; if the prompt asks for text, the last one in the prompt, to
    which ``token_ids`` are the answer. InputError if there is none, if the tokens are not what the grammar allows
    there, or do not fit the context.
    """
    request = completer.requests([prompt])[0]
    check_fits(request, completer.transformer.config.max_seq_len)
    grammar, read = completer.grammar, prompt.next is None
    at, new = _reading(grammar, request.prompt) if read else (request.constraint.copy(), len(request.prompt))
    sequence, size = [*request.prompt, *token_ids], at.size
    assert size is not None
    laws = _laws(at, sequence[new:])
    places = np.array(_codes(grammar, laws), dtype=np.int64).reshape(_shape(prompt, size)) + new
    branches = [sequence[:new], request.negative_prompt] if request.guided else [sequence[:new]]
    sampling = SamplingConfig() if read else request.sampling
    entropy, log_probability = _certainty(completer.transformer, branches, sequence[new:], laws, sampling)
    ids = np.array(sequence, dtype=np.int64)
    return Inspection(
        token_ids=ids,
        words=_words_after(grammar, request.prompt, token_ids, new) if read else words(grammar, request.prompt),
        places=places,
        codes=grammar.vocabulary.code(ids[places]),
        read=read,
        entropy=entropy,
        log_probability=log_probability,
    )


def as_drawn(completer: Completer, visual: Image | Video, caption: str = "") -> tuple[Prompt, list[int]]:
    """Return prompt and tokens of any picture or film as if the model had drawn it: what ``inspect`` takes.

    Without guidance and at temperature 1, after a caption; an empty one gives the unconditional law. Pixels are
    encoded; InputError without a vision tokenizer.
    """
    if isinstance(visual, Image):
        asked, document = formats.text_to_image(caption), formats.text_to_image(caption, visual)
    else:
        asked, document = formats.text_to_video(caption), formats.text_to_video(caption, visual)
    if visual.codes is None:
        if completer.codec is None:
            raise InputError("this checkpoint has no vision tokenizer to read pictures with: load one beside it")
        document = document.encoded(completer.codec)
    segment = document.segments[-1]
    assert isinstance(segment, Image | Video)
    prompt = Prompt(document=asked, next=completer.grammar.size_of(segment))
    given = len(completer.grammar.render_prompt(prompt.document, prompt.next))
    return prompt, completer.grammar.render(document).token_ids[given:].tolist()


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
    """Return how much each code looked at a word, float32 [L, H, grid].

    For a word after the picture (of a question about it, or of the answer) it is the other way round: how much the word
    looked at each code, as the mean of its tokens.
    """
    if word.start > seen.places.flat[-1]:
        weights = attention(transformer, seen.token_ids, word.rows, seen.places.ravel().tolist()).mean(2)
    else:
        tokens = list(range(word.start, word.stop))
        weights = attention(transformer, seen.token_ids, seen.rows.ravel().tolist(), tokens).sum(3)
    return weights.reshape(*weights.shape[:2], *seen.places.shape)


def code_attention(transformer: Transformer, seen: Inspection, place: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what the code at ``place`` (in row-major order) looked at: words, and codes before it.

    float32 [L, H, words] and [L, H, grid]; what is missing to a sum of 1 went to marks and the size text. For words
    after the picture it is how much they looked at the code.
    """
    row, code = int(seen.rows.flat[place]), int(seen.places.flat[place])
    later = [word for word in seen.words if word.start > code]
    queries = [row, *(token for word in later for token in word.rows)]
    weights_LHQT = attention(transformer, seen.token_ids, queries)
    own_LHT, at_words, first = weights_LHQT[:, :, 0], list[np.ndarray](), 1
    for word in seen.words:
        if word in later:
            at_words.append(weights_LHQT[:, :, first : first + len(word.rows), code].mean(2))
            first += len(word.rows)
        else:
            at_words.append(own_LHT[..., word.start : word.stop].sum(-1))
    at_words_LHW = np.stack(at_words, -1) if at_words else np.zeros((*own_LHT.shape[:2], 0), np.float32)
    return at_words_LHW, own_LHT[..., seen.places]


def commits(completer: Completer, prompt: Prompt, window: int | None = None) -> Commits:
    """Draw the picture or film of ``prompt`` again and note which forward gave which codes.

    ``window``: how many codes may be drawn at a time; by default the engine's, or what its tuner ends at mostly.
    """
    if prompt.next is None:
        raise InputError("the prompt asks for text: only what is drawn has forwards that gave its codes")
    request = completer.requests([prompt])[0]
    length = max(len(request.prompt), len(request.negative_prompt or ())) + request.max_new_tokens
    chosen = window or completer.engine.window or _WINDOW
    config = replace(completer.engine, slots=2 if request.guided else 1, max_len=length, window=chosen)
    ends = list[int]()
    check_fits(request, completer.transformer.config.max_seq_len)
    engine = Engine(completer.transformer, config)
    token_ids = engine.run([request], watch=lambda _, tokens: ends.append(len(tokens)))[0]
    at = request.constraint.copy()
    size = at.size
    assert size is not None
    places = _codes(completer.grammar, _laws(at, token_ids))
    forward = np.searchsorted(np.array(ends), np.array(places), side="right")
    codes = np.bincount(forward, minlength=len(ends))
    return Commits(forward=forward.reshape(_shape(prompt, size)), codes=codes, token_ids=tuple(token_ids))


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


def _words_after(grammar: Grammar, asked: Sequence[int], answer: Sequence[int], place: int) -> tuple[Word, ...]:
    """Return the words of a prompt from a place on, and those of the answer to it."""
    given, start = [word for word in words(grammar, asked) if word.start > place], len(asked)
    written = [
        replace(word, start=start + word.start, stop=start + word.stop, written=True) for word in words(grammar, answer)
    ]
    return (*given, *written)


def _reading(grammar: Grammar, token_ids: Sequence[int]) -> tuple[Constraint, int]:
    """Return what may follow up to the first code of a prompt's last picture or film, and where that is."""
    opened = [index for index, token_id in enumerate(token_ids) if token_id == grammar.vocabulary.image_token]
    if not opened:
        raise InputError("the prompt asks for text and shows no picture or film: there is nothing to look into")
    first = opened[-1] + 1
    return Constraint(grammar, "free", sizes=()).start(token_ids[:first]), first


def _laws(at: Constraint, token_ids: Sequence[int]) -> list[Legal]:
    """Return what was legal at each token; ``at`` follows them."""
    laws = []
    for index, token_id in enumerate(token_ids):
        if token_id not in (legal := at.legal()):
            raise InputError(f"token {index} is {token_id}, which this prompt does not allow: is it the picture's own?")
        laws.append(legal)
        at.advance(token_id)
        if at.done and at.mode == "free":  # another turn of a chat may follow
            at.start(())
    if at.in_grid:
        raise InputError(f"the picture is not finished: {at.remaining_grid_tokens} of its tokens are missing")
    return laws


def _codes(grammar: Grammar, laws: Sequence[Legal]) -> list[int]:
    """Return which tokens are codes."""
    return [index for index, legal in enumerate(laws) if legal.ranges == (grammar.vocabulary.vision,)]


def _shape(prompt: Prompt, size: tuple[int, int, int]) -> tuple[int, ...]:
    """Return the shape of the grid that a prompt asks for or shows last: [h, w] or [t, h, w]."""
    last = [segment for segment in prompt.document.segments if not isinstance(segment, Text)][-1:]
    is_picture = isinstance(last[0], Image) if prompt.next is None else isinstance(prompt.next, ImageSize)
    return size[1:] if is_picture else (-1, *size[1:])


def _certainty(
    transformer: Transformer,
    branches: Sequence[Sequence[int] | None],
    token_ids: Sequence[int],
    laws: Sequence[Legal],
    sampling: SamplingConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Return entropy in bits and log-probability of each token after one prompt, or two for guidance, float32 [N]."""
    device = _device(transformer)
    states = []
    for prompt in branches:
        assert prompt is not None
        ids_1T = torch.tensor([[*prompt, *token_ids]], device=device)
        states.append(transformer.hidden(ids_1T)[0, len(prompt) - 1 : -1])
    entropy_N, log_probability_N = (np.zeros(len(token_ids), np.float32) for _ in range(2))
    groups: dict[tuple[range, ...], list[int]] = {}
    for index, legal in enumerate(laws):
        if legal.forced is None:
            groups.setdefault(legal.ranges, []).append(index)
    for ranges, members in groups.items():
        ids_V = torch.cat([torch.arange(r.start, r.stop, device=device) for r in ranges])
        for first in range(0, len(members), _ROWS_AT_ONCE):
            rows = members[first : first + _ROWS_AT_ONCE]
            logits = [torch.cat([transformer.logits(s[rows], r.start, r.stop) for r in ranges], -1) for s in states]
            if len(states) == 2:
                logits[0] = guided_logits(logits[0], logits[1], sampling.guidance_scale)
            chances_NV = _law(logits[0], sampling).double()
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

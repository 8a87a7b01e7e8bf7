"""The grid over a picture, the words, and the sentences that say the same: what ``Look`` holds, as HTML."""

from html import escape

import numpy as np

from rhea.studio import show
from rhea.studio.insight import Insight, Look
from rhea.studio.texts import say

_HEAT = "background: rgb(255 96 0 / {:.3f})"


def summary(look: Look, language: str) -> str:
    """Say in words what the picture shows in colours."""
    if (insight := look.insight) is None:
        return ""
    if look.view == "attention":
        return _attention_said(look, insight, language)
    seen = insight.seen
    entropy, log_probability = seen.on_grid(seen.entropy), seen.on_grid(seen.log_probability)
    told = say(
        language, "look_said", codes=entropy.size, bits=f"{entropy.mean():.2f}", log=f"{log_probability.sum():.1f}"
    )
    if insight.commits is not None:
        codes = insight.commits.codes
        told += say(language, "forwards_said", forwards=len(codes), per_forward=f"{codes.mean():.1f}")
    if seen.read:
        told += say(language, "answer_said", answer=insight.answer)
    return told


def render(look: Look, language: str) -> str:
    """Return the words, the picture with its grid, and what its colours mean."""
    if (insight := look.insight) is None:
        return ""
    values, texts, legend = _layer_of(look, insight, language)
    strength = values / values.max() if values.max() > 0 else np.zeros_like(values)
    latents, rows, columns = insight.grid
    first = look.latent * rows * columns
    cells = "".join(
        _cell(look, insight, place, float(strength.flat[place]), texts[place], language)
        for place in range(first, first + rows * columns)
    )
    picture = show.element(insight.pixels[look.latent], insight.title)
    grid = (
        f'<div class="rhea-grid" role="group" aria-label="{escape(say(language, "grid_alt"))}" '
        f'data-columns="{columns}" style="grid-template: repeat({rows}, 1fr) / repeat({columns}, 1fr)">{cells}</div>'
    )
    return (
        f"{_words(look, insight, language)}{_frames(look, insight, language) if latents > 1 else ''}"
        f'<div class="rhea-look"><div class="rhea-over">{picture}{grid}</div></div>'
        f'<p class="rhea-note">{escape(legend)}</p>'
        f"{_forwards(insight, language) if look.view == 'forwards' else ''}"
    )


def _attention_said(look: Look, insight: Insight, language: str) -> str:
    seen = insight.seen
    if look.word is not None:
        values = look.averaged("word")
        word, spot = seen.words[look.word], _spot(insight, int(values.argmax()), language)
        key = "word_looked" if seen.read else "word_said"
        return say(language, key, word=word.text, spot=spot, most=f"{100 * values.max():.1f}")
    if look.place is None:
        return say(language, "touch_first")
    at_words, at_codes = look.averaged("place"), look.averaged("place", 1)
    spot, codes = _spot(insight, look.place, language), f"{100 * at_codes.sum():.0f}"
    if not seen.read:
        rest = f"{100 * (1 - at_words.sum() - at_codes.sum()):.0f}"
        return say(language, "place_said", spot=spot, words=f"{100 * at_words.sum():.0f}", codes=codes, rest=rest)
    if not at_words.size:
        return say(language, "place_alone", spot=spot, codes=codes)
    asker, most = seen.words[int(at_words.argmax())].text, f"{100 * at_words.max():.1f}"
    return say(language, "place_looked_at", spot=spot, word=asker, most=most, codes=codes)


def _spot(insight: Insight, place: int, language: str) -> str:
    """Say where a place is, of a film in which frames."""
    latent, row, column = (int(x) for x in np.unravel_index(place, insight.grid))
    spot = say(language, "spot", row=row + 1, column=column + 1)
    return spot if insight.grid[0] == 1 else f"{_span(insight, latent, language)}, {spot}"


def _span(insight: Insight, latent: int, language: str) -> str:
    first = latent * insight.clip_frames
    return say(language, "span", first=first + 1, last=first + insight.clip_frames)


def _layer_of(look: Look, insight: Insight, language: str) -> tuple[np.ndarray, list[str], str]:
    """Return the values [t, h, w] that colour the grid, what is written in its cells, and the legend."""
    seen, commits = insight.seen, insight.commits
    if look.view in ("entropy", "surprise"):
        values = insight.in_frames(seen.on_grid(_bits(look, insight)))
        return (
            values,
            [f"{x:.1f}" for x in values.flat],
            say(language, f"{look.view}_legend", most=f"{values.max():.1f}"),
        )
    if look.view == "attention" and (look.word is not None or look.place is not None):
        values = insight.in_frames(look.averaged("word") if look.word is not None else look.averaged("place", 1))
        texts = [f"{100 * x:.0f}" for x in values.flat]
        return values, texts, say(language, "attention_legend", most=f"{100 * values.max():.1f}")
    blank = np.zeros(insight.grid)
    if look.view == "attention":
        return blank, [""] * blank.size, say(language, "touch_first")
    if look.view == "forwards":
        if commits is None:
            return blank, [""] * blank.size, say(language, "no_forwards")
        values = insight.in_frames(commits.codes[commits.forward].astype(float))
        numbers = [str(number + 1) for number in commits.forward.flat]
        return values, numbers, say(language, "forwards_legend", most=int(commits.codes.max()))
    return blank, [str(code) for code in seen.codes.flat], say(language, "tokens_legend")


def _bits(look: Look, insight: Insight) -> np.ndarray:
    """Return uncertainty or surprise of each new token."""
    if look.view == "entropy":
        return insight.seen.entropy
    return np.nan_to_num(-insight.seen.log_probability / np.log(2), posinf=0.0)


def _cell(look: Look, insight: Insight, place: int, strength: float, text: str, language: str) -> str:
    """Return one token's button: coloured, labelled with all that is known about it."""
    seen, commits = insight.seen, insight.commits
    label = say(
        language,
        "cell_alt",
        spot=_spot(insight, place, language),
        code=seen.codes.flat[place],
        bits=f"{seen.on_grid(seen.entropy).flat[place]:.1f}",
    )
    if commits is not None:
        label += say(language, "cell_forward", forward=commits.forward.flat[place] + 1)
    in_frame = insight.grid[1] * insight.grid[2]
    chosen, on_this_frame = place == look.place, look.place is not None and look.place // in_frame == look.latent
    reachable = chosen if on_this_frame else place % in_frame == 0
    return (
        f'<button type="button" data-place="{place}"{show.tab_stop(reachable)} title="{escape(label)}" '
        f'aria-label="{escape(label)}"{_pressed(chosen, look.touched == "place")} '
        f'style="{_HEAT.format(0.8 * strength)}">'
        f"<span>{escape(text)}</span></button>"
    )


def _words(look: Look, insight: Insight, language: str) -> str:
    """Return the words as buttons, with what the view says about each: attention, uncertainty or surprise."""
    seen, shown = insight.seen, list[tuple[float, str]]()
    if not seen.words:
        return ""
    if look.view == "attention" and look.place is not None:
        shown = [(float(x), f"{100 * x:.1f} %") for x in look.averaged("place")]
    elif look.view in ("entropy", "surprise"):
        bits = [seen.in_word(_bits(look, insight), word) for word in seen.words]
        shown = [(x or 0.0, "" if x is None else f"{x:.1f}") for x in bits]
    most = max([value for value, _ in shown], default=0.0) or 1.0
    buttons = []
    for number, word in enumerate(seen.words):
        value, told = shown[number] if shown else (0.0, "")
        buttons.append(
            f'<button type="button" data-word="{number}"{_pressed(number == look.word, look.touched == "word")}'
            f"{show.tab_stop(number == (look.word or 0))} "
            f'style="{_HEAT.format(0.8 * value / most)}">'
            f"<span{' class=written' if word.written else ''}>{escape(word.text)}</span>"
            f"{f' <small>{told}</small>' if told else ''}</button>"
        )
    note = f'<p class="rhea-note">{escape(say(language, "written_words"))}</p>' if seen.read else ""
    label = escape(say(language, "words"))
    return f'<div class="rhea-words" role="group" data-columns="1" aria-label="{label}">{"".join(buttons)}</div>{note}'


def _frames(look: Look, insight: Insight, language: str) -> str:
    """Return a film's latent frames as buttons."""
    buttons = []
    for latent, pixels in enumerate(insight.pixels):
        label = escape(_span(insight, latent, language))
        buttons.append(
            f'<button type="button" data-latent="{latent}" aria-label="{label}" title="{label}"'
            f"{_pressed(latent == look.latent, look.touched == 'latent')}{show.tab_stop(latent == look.latent)}>"
            f'<img class="rhea-pixels" src="{show.data_url(show.thumbnail(pixels), quick=True)}" alt=""></button>'
        )
    label = escape(say(language, "latents"))
    return f'<div class="rhea-shelf" role="group" data-columns="1" aria-label="{label}">{"".join(buttons)}</div>'


def _pressed(pressed: bool, keeps_focus: bool) -> str:
    return f' aria-pressed="{"true" if pressed else "false"}"{" data-focus" if pressed and keeps_focus else ""}'


def _forwards(insight: Insight, language: str) -> str:
    """Return bars: how many codes each forward gave."""
    if insight.commits is None:
        return ""
    codes = insight.commits.codes
    bars = "".join(f'<i style="height: {100 * count / codes.max():.0f}%" title="{count}"></i>' for count in codes)
    alt = escape(say(language, "bars_alt", counts=", ".join(map(str, codes))))
    return f'<div class="rhea-bars" role="img" aria-label="{alt}">{bars}</div>'

"""The world in words, English and Chinese: names of objects, captions of pictures and films, and captions read back.

A caption carries what it claims beside its text, so a generated picture or film is graded against the claims and never
against the text. Claims are unambiguous: an order or a relation is only stated where the centres are RELATION_MARGIN
pixels apart, a half of the picture where the centre is as far from the middle, and a size is only left out where colour
and shape already tell the objects apart.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import atan2, cos, hypot, pi, sin
from typing import Literal, NamedTuple, get_args

import numpy as np

from rhea.worlds.shapes.films import Film
from rhea.worlds.shapes.scene import CANVAS, COLOURS, SHAPES, SIZES, Kind, Scene, ShapeObject, bounding_radius

Language = Literal["en", "zh"]
Style = Literal["plain", "sizeless", "ordered", "related", "placed", "related_in_order"]
"""``related`` names objects in any order, ``related_in_order``, for training, in that in which they are drawn."""
STYLES: tuple[Style, ...] = get_args(Style)

LINE = 8
"""Height in pixels of what counts as one line when objects are named in reading order."""
RELATION_MARGIN = 4.0
"""Least difference in x or y, in pixels, of which left, right, above and below are said."""

CHINESE = {
    **dict(zip(COLOURS, ("红色", "绿色", "蓝色", "黄色", "紫色", "橙色", "青色", "黑色"), strict=True)),
    **dict(zip(SHAPES, ("圆形", "正方形", "三角形", "星形", "十字形", "圆环"), strict=True)),
    **dict(zip(SIZES, ("小", "大"), strict=True)),
    **{"left": "左边", "right": "右边", "above": "上面", "below": "下面"},
}
RELATIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}
PLACES = {
    ("top", "left"): ("at the top left", "左上方"),
    ("top", "right"): ("at the top right", "右上方"),
    ("bottom", "left"): ("at the bottom left", "左下方"),
    ("bottom", "right"): ("at the bottom right", "右下方"),
    ("top",): ("at the top", "上方"),
    ("bottom",): ("at the bottom", "下方"),
    ("left",): ("on the left", "左侧"),
    ("right",): ("on the right", "右侧"),
}
"""Which halves of the picture an object is in, in words."""
DIRECTIONS = {
    "right": ("to the right", "向右"),
    "down right": ("down and to the right", "向右下"),
    "down": ("down", "向下"),
    "down left": ("down and to the left", "向左下"),
    "left": ("to the left", "向左"),
    "up left": ("up and to the left", "向左上"),
    "up": ("up", "向上"),
    "up right": ("up and to the right", "向右上"),
}
"""Clockwise from the positive x axis, an eighth of a turn each."""


class Selector(NamedTuple):
    """Some of an object's attributes; None stands for any."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None

    def matches(self, kind: Kind) -> bool:
        """Tell whether the kind has all the attributes that are named."""
        return all(mine is None or mine == other for mine, other in zip(self, kind, strict=True))

    def count(self, kinds: Iterable[Kind]) -> int:
        """Return how many of the kinds match."""
        return sum(self.matches(kind) for kind in kinds)

    def name(self, language: Language) -> str:
        """Return the noun phrase without an article: "small red circle", "red object", "红色小圆形", "红色物体"."""
        if language == "zh":
            parts = (self.colour and CHINESE[self.colour], self.size and CHINESE[self.size])
            return "".join(part for part in parts if part) + (CHINESE[self.shape] if self.shape else "物体")
        return " ".join(part for part in (self.size, self.colour, self.shape or "object") if part)

    def indefinite(self, language: Language) -> str:
        """Return the phrase that introduces the object: "a small red circle", "一个红色小圆形"."""
        name = self.name(language)
        if language == "zh":
            return f"一个{name}"
        return f"an {name}" if name[0] in "aeiou" else f"a {name}"

    def definite(self, language: Language) -> str:
        """Return the phrase that points at the object: "the small red circle", "红色小圆形"."""
        return self.name(language) if language == "zh" else f"the {self.name(language)}"


class Relation(NamedTuple):
    """The claim that the first object is left of, right of, above or below the second."""

    first: Selector
    word: str
    second: Selector

    def follows(self, objects: Sequence[ShapeObject], canvas: int = CANVAS) -> bool:
        """Tell whether it is so because the two are in opposite halves of the picture."""
        sides = {"left": ("left", "right"), "above": ("top", "bottom")}
        here, there = sides.get(self.word) or sides[OPPOSITES[self.word]][::-1]
        return all(
            side in halves(thing, canvas)
            for who, side in ((self.first, here), (self.second, there))
            for thing in objects
            if who.matches(thing.kind)
        )

    def holds(self, objects: Sequence[ShapeObject], margin: float = 0.0) -> bool:
        """Tell whether it is true of objects that match, by more than ``margin`` pixels; false where one is missing."""
        firsts = [thing for thing in objects if self.first.matches(thing.kind)]
        seconds = [thing for thing in objects if self.second.matches(thing.kind)]
        return any(offset(a, b, self.word) > margin for a in firsts for b in seconds)


class Place(NamedTuple):
    """The claim that an object is in some halves of the picture, by the words of PLACES."""

    who: Selector
    words: tuple[str, ...]

    def holds(self, objects: Sequence[ShapeObject], canvas: int = CANVAS) -> bool:
        """Tell whether it is true of an object that matches."""
        return any(
            set(self.words) <= set(halves(thing, canvas, margin=0.0))
            for thing in objects
            if self.who.matches(thing.kind)
        )


class Motion(NamedTuple):
    """The claim that an object sets off in one of the eight DIRECTIONS."""

    who: Selector
    direction: str

    def holds(self, before: Sequence[ShapeObject], after: Sequence[ShapeObject], least: float = 1.0) -> bool:
        """Tell whether an object that matches has moved that way, to 45 degrees, by ``least`` pixels or more."""
        turn = list(DIRECTIONS).index(self.direction) * pi / 4
        steps = [
            (b.x - a.x, b.y - a.y)
            for a in before
            for b in after
            if self.who.matches(a.kind) and self.who.matches(b.kind)
        ]
        along = ((x * cos(turn) + y * sin(turn), hypot(x, y)) for x, y in steps)
        return any(length >= least and way >= length * cos(pi / 4) for way, length in along)


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A text and the claims that it makes."""

    text: str
    objects: tuple[Selector, ...]
    relations: tuple[Relation, ...] = ()
    places: tuple[Place, ...] = ()
    motions: tuple[Motion, ...] = ()

    def satisfied_by(self, objects: Sequence[ShapeObject], canvas: int = CANVAS) -> bool:
        """Tell whether a picture's objects are exactly those of the caption, in the places and relations it states."""
        return (
            _one_to_one(self.objects, [thing.kind for thing in objects])
            and all(relation.holds(objects) for relation in self.relations)
            and all(place.holds(objects, canvas) for place in self.places)
        )

    def related_first(self) -> tuple[Selector, ...]:
        """Return the objects: the left or upper one that is related, the other one, and those that are not related."""
        first, word, second = self.relations[0]
        pair = (first, second) if word in ("left", "above") else (second, first)
        return *pair, *(who for who in self.objects if who not in pair)


def offset(a: ShapeObject, b: ShapeObject, word: str) -> float:
    """Return by how many pixels ``a`` is left of, right of, above or below ``b``."""
    return {"left": b.x - a.x, "right": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}[word]


def _one_to_one(selectors: Sequence[Selector], kinds: Sequence[Kind]) -> bool:
    """Tell whether each selector can have a kind of its own with none left over."""
    if len(selectors) != len(kinds):
        return False
    if not selectors:
        return True
    first, rest = selectors[0], selectors[1:]
    return any(first.matches(kind) and _one_to_one(rest, [*kinds[:i], *kinds[i + 1 :]]) for i, kind in enumerate(kinds))


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """Draw one of a few phrasings, uniformly."""
    return options[int(rng.integers(len(options)))]


def join(parts: Sequence[str], language: Language) -> str:
    """Enumerate: "a, b and c" or "a、b和c"."""
    comma, last = ("、", "和") if language == "zh" else (", ", " and ")
    return comma.join(parts[:-1]) + last + parts[-1] if len(parts) > 1 else parts[0]


def finish(rng: np.random.Generator, text: str, language: Language) -> str:
    """Write a text as a sentence, with capital and full stop, or leave it bare, half of the time each."""
    if rng.random() < 0.5:
        return text
    return f"{text}。" if language == "zh" else f"{text[0].upper()}{text[1:]}."


def possible_styles(scene: Scene) -> list[Style]:
    """List the styles in which the scene has an unambiguous caption, without those that are only for training."""
    styles: list[Style] = ["plain"]
    if len({(kind.colour, kind.shape) for kind in scene.kinds}) == len(scene.kinds):
        styles.append("sizeless")
    if any(halves(thing, scene.canvas) for thing in scene.objects):
        styles.append("placed")
    if len(scene.objects) > 1:
        across = sorted(thing.x for thing in scene.objects)
        if all(b - a > RELATION_MARGIN for a, b in pairwise(across)):
            styles.append("ordered")
        if _relations(scene):
            styles.append("related")
    return styles


def caption(
    rng: np.random.Generator, scene: Scene, language: Language, style: Style | Sequence[Style] | None = None
) -> Caption:
    """Describe a scene; without ``style``, in any style that ``possible_styles`` allows, of several in one of these.

    Of several, each is as likely as often as it stands there; if the scene allows none of them, any other will do.

    Where the text says nothing of places, the objects are named in the order in which a reader's eye, or raster order,
    meets them: what a prompt names first is drawn first, which makes captions far easier to learn from (LOG.md).
    """
    if style is None or not isinstance(style, str):
        possible = possible_styles(scene)
        wanted = [each for each in style or () if each.removesuffix("_in_order") in possible]
        style = pick(rng, wanted or possible)  # type: ignore[assignment]
    order = rng.permutation(len(scene.objects))
    things = [scene.objects[i] for i in order]
    if style == "ordered":
        things.sort(key=lambda thing: thing.x)
    elif style != "related":
        things.sort(key=_reading_order)
    who = tuple(Selector(t.kind.colour, t.kind.shape, None if style == "sizeless" else t.kind.size) for t in things)
    relations: tuple[Relation, ...] = ()
    if style == "ordered":
        relations = tuple(Relation(a, "left", b) for a, b in pairwise(who))
        text = _ordered(rng, who, language)
    elif style == "related" or style == "related_in_order":
        choices = _relations(scene)
        relations = (choices[int(rng.integers(len(choices)))],)
        if style == "related_in_order" and relations[0].word in ("above", "below") and rng.random() < 0.5:
            who = _swapped(who, relations[0])
        text = _related(rng, who, relations[0], language)
    else:
        text = _plain(rng, who, language)
    places = tuple(Place(one, halves(thing, scene.canvas)) for one, thing in zip(who, things, strict=True))
    if style == "placed":
        text = _placed(places, language)
    claimed = tuple(place for place in places if place.words) if style == "placed" else ()
    return Caption(text=finish(rng, text, language), objects=who, relations=relations, places=claimed)


def _reading_order(thing: ShapeObject) -> tuple[int, float]:
    """Sort objects by the row of pixels, LINE high, in which they begin, then from left to right."""
    return int((thing.y - bounding_radius(thing.kind)) // LINE), thing.x


def halves(thing: ShapeObject, canvas: int, margin: float = RELATION_MARGIN) -> tuple[str, ...]:
    """Name the halves of the picture in which an object is by more than ``margin`` pixels."""
    right, down = thing.x - canvas / 2, thing.y - canvas / 2
    words = ("bottom" if down > 0 else "top", abs(down)), ("right" if right > 0 else "left", abs(right))
    return tuple(word for word, distance in words if distance > margin)


def _relations(scene: Scene) -> list[Relation]:
    """List every relation between two objects of the scene that is true by the margin."""
    pairs = [(a, b) for a in scene.objects for b in scene.objects if a is not b]
    return [
        Relation(Selector(*a.kind), word, Selector(*b.kind))
        for a, b in pairs
        for word in RELATIONS
        if offset(a, b, word) > RELATION_MARGIN
    ]


def _swapped(who: tuple[Selector, ...], relation: Relation) -> tuple[Selector, ...]:
    """Name the related two in each other's place, as a text may that asks for the second to be above the first."""
    other = {relation.first: relation.second, relation.second: relation.first}
    return tuple(other.get(one, one) for one in who)


def _plain(rng: np.random.Generator, who: Sequence[Selector], language: Language) -> str:
    things = join([one.indefinite(language) for one in who], language)
    if language == "zh":
        return pick(rng, ("", "图中有", "一张图片，上面有")) + things
    return pick(rng, ("", "a picture of ", "there is " if len(who) == 1 else "there are ")) + things


def _ordered(rng: np.random.Generator, who: Sequence[Selector], language: Language) -> str:
    things = join([one.indefinite(language) for one in who], language)
    if language == "zh":
        return pick(rng, ("从左到右：", "从左到右依次是")) + things
    return pick(rng, (f"from left to right: {things}", f"{things}, from left to right"))


def _placed(places: Sequence[Place], language: Language) -> str:
    parts = []
    for who, words in places:
        thing, where = who.indefinite(language), PLACES[words][language == "zh"] if words else ""
        if language == "zh":
            parts.append(f"{where}有{thing}" if where else f"有{thing}")
        else:
            parts.append(f"{thing} {where}".rstrip())
    return "，".join(parts) if language == "zh" else join(parts, language)


def _related(rng: np.random.Generator, who: Sequence[Selector], relation: Relation, language: Language) -> str:
    first, word, second = relation
    if language == "zh":
        if len(who) == 2:
            return f"{first.indefinite('zh')}在{second.indefinite('zh')}的{CHINESE[word]}"
        return f"{_plain(rng, who, 'zh')}，{first.definite('zh')}在{second.definite('zh')}的{CHINESE[word]}"
    if len(who) == 2:
        return f"{first.indefinite('en')} {RELATIONS[word]} {second.indefinite('en')}"
    return f"{_plain(rng, who, 'en')}, with {first.definite('en')} {RELATIONS[word]} {second.definite('en')}"


def film_caption(rng: np.random.Generator, film: Film, language: Language) -> Caption:
    """Describe a film by its objects and, half of the time, by the directions in which they set off."""
    order = [int(i) for i in rng.permutation(len(film.kinds))]
    who = tuple(Selector(*film.kinds[i]) for i in order)
    motions: tuple[Motion, ...] = ()
    if rng.random() < 0.5:
        motions = tuple(Motion(one, direction_of(film.velocities[0, i])) for one, i in zip(who, order, strict=True))
        parts = [_moving(motion, language) for motion in motions]
        text = ("，" if language == "zh" else ", ").join(parts)
    else:
        things = join([one.indefinite(language) for one in who], language)
        frames = ("{}在移动", "{}在画面中反弹") if language == "zh" else ("{} moving around", "{} bouncing around")
        text = pick(rng, frames).format(things)
    return Caption(text=finish(rng, text, language), objects=who, motions=motions)


def _moving(motion: Motion, language: Language) -> str:
    english, chinese = DIRECTIONS[motion.direction]
    thing = motion.who.indefinite(language)
    return f"{thing}{chinese}移动" if language == "zh" else f"{thing} moving {english}"


def direction_of(velocity: np.ndarray) -> str:
    """Name the nearest of the eight directions of a velocity (x to the right, y down)."""
    eighths = round(atan2(float(velocity[1]), float(velocity[0])) / (pi / 4))
    return list(DIRECTIONS)[eighths % 8]


_ENGLISH_OBJECT = re.compile(rf"\b({'|'.join(SIZES)})\s+({'|'.join(COLOURS)})\s+({'|'.join(SHAPES)})\b")
_CHINESE_OBJECT = re.compile(
    "({})({})({})".format(*("|".join(CHINESE[word] for word in words) for words in (COLOURS, SIZES, SHAPES)))
)


def read_caption(text: str) -> Counter[Kind]:
    """Read the objects that a text names with all three attributes, in either language, each as often as it is named.

    An object that the text names a second time counts again; ``describe`` never does that.
    """
    found = Counter(Kind(colour, shape, size) for size, colour, shape in _ENGLISH_OBJECT.findall(text.lower()))
    english = {chinese: word for word, chinese in CHINESE.items()}
    for colour, size, shape in _CHINESE_OBJECT.findall(text):
        found[Kind(english[colour], english[shape], english[size])] += 1
    return found


def describe(scene: Scene, language: Language) -> str:
    """Describe a scene in the one canonical way: every object with all attributes, from left to right."""
    return join([Selector(*thing.kind).indefinite(language) for thing in _from_left_to_right(scene)], language)


def layout(scene: Scene, language: Language) -> str:
    """Describe a scene so, and say of each object in which halves of the picture it is."""
    things = _from_left_to_right(scene)
    return _placed([Place(Selector(*thing.kind), halves(thing, scene.canvas)) for thing in things], language)


def _from_left_to_right(scene: Scene) -> list[ShapeObject]:
    return sorted(scene.objects, key=lambda thing: (thing.x, thing.y))

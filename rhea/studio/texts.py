"""Every word of the page in English and Chinese, and who wears which.

The decision that is not obvious: the language is a value on the page, not the browser's setting alone, because what
Python says (status, errors, descriptions for screen readers) must be in the same language as the labels. The browser
only proposes it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import gradio as gr

Language = Literal["en", "zh"]
LANGUAGES: tuple[tuple[str, Language], ...] = (("English", "en"), ("中文", "zh"))

TEXTS: dict[str, tuple[str, str]] = {
    # The page
    "title": ("Rhea studio", "Rhea 工作室"),
    "about": (
        "Text, pictures and films are tokens of one vocabulary; **{name}** predicts the next one. "
        "It was trained on {trained_on}.",
        "文字、图片和视频都是同一词表中的词元，**{name}** 预测下一个词元。训练数据：{trained_on}。",
    ),
    "language": ("Language", "语言"),
    # The shelf
    "shelf": ("Shelf", "素材架"),
    "shelf_help": (
        "What you make or upload lies here. The marked piece is the one that the tabs work on.",
        "制作或上传的作品都在这里。各页面使用选中的那一件。",
    ),
    "shelf_empty": ("Nothing yet: create a picture, or upload one.", "还没有作品：请生成或上传一张图片。"),
    "upload": ("Upload a picture or film", "上传图片或视频"),
    "uploaded": ("Uploaded: {name}", "已上传：{name}"),
    "refused": ("{name} was not taken: {reason}", "无法使用 {name}：{reason}"),
    "empty_media": ("the file is empty", "文件是空的"),
    "media_too_large": ("the file is too large", "文件太大"),
    "unsupported_format": (
        "it must be a PNG, JPEG, WebP or GIF picture, or an MP4, WebM or GIF film",
        "只支持 PNG、JPEG、WebP、GIF 图片，以及 MP4、WebM、GIF 视频",
    ),
    "media_size": ("its sides are too small or too large: resize it", "尺寸太小或太大，请调整后再上传"),
    "film_too_long": ("the film is too long or too large: cut or shrink it", "视频太长或太大，请剪短或缩小"),
    "unsupported_codec": ("its codec is not taken: use H.264, VP9 or AV1", "不支持该编码，请使用 H.264、VP9 或 AV1"),
    "unreadable_media": ("it is damaged or cut off", "文件已损坏或不完整"),
    "media_timeout": ("it took too long to decode: use a smaller one", "解码时间过长，请换一个较小的文件"),
    "take": ("Take {title}", "选用 {title}"),
    # Create
    "create": ("Create", "生成"),
    "prompt": ("What is to be seen", "想看到什么"),
    "prompt_example": ("a small red circle", "一个红色小圆形"),
    "negative": ("What is not to be seen", "不想看到什么"),
    "kind": ("Kind", "类型"),
    "picture": ("Picture", "图片"),
    "film": ("Film", "视频"),
    "size": ("Size (width x height, or a ratio)", "尺寸（宽x高，或比例）"),
    "guidance": ("Guidance: how much more to follow the text", "引导强度：多大程度遵循文字"),
    "seed": ("Seed", "随机种子"),
    "number": ("How many", "数量"),
    "more": ("More settings", "更多设置"),
    "draw": ("Draw", "开始绘制"),
    "stop": ("Stop", "停止"),
    "drawing": ("Drawing: {done} of {rows} rows", "正在绘制：{rows} 行中的第 {done} 行"),
    "waiting": ("Waiting for the model", "正在等待模型"),
    "drawn": ("Done: {tokens} tokens", "完成：{tokens} 个词元"),
    "partial_alt": ("{title}, unfinished: {done} of {rows} rows", "{title}，未完成：{rows} 行中的 {done} 行"),
    "frame_alt": ("Frame {number}", "第 {number} 帧"),
    "needs_prompt": ("Say what is to be seen, then draw.", "请先写下想看到什么。"),
    # Ask
    "ask": ("Ask", "提问"),
    "chat": ("Chat about the piece", "关于作品的对话"),
    "question": ("Question", "问题"),
    "question_example": ("How many objects are there?", "图中有几个物体？"),
    "send": ("Ask", "提问"),
    "forget": ("New chat", "新对话"),
    "answering": ("The model answers", "模型正在回答"),
    "answered": ("Answered in {tokens} tokens", "已回答，共 {tokens} 个词元"),
    "cut": ("Cut off after {tokens} tokens", "在 {tokens} 个词元后截断"),
    "needs_question": ("Write a question first.", "请先写下问题。"),
    # Edit
    "edit": ("Edit", "编辑"),
    "instruction": ("What to change", "要改变什么"),
    "instruction_example": ("make the circle blue", "把圆形变成蓝色"),
    "change": ("Change the picture", "修改图片"),
    "before": ("Before", "修改前"),
    "needs_picture": (
        "Take a picture from the shelf first: create or upload one.",
        "请先从素材架选用一张图片：可以生成或上传。",
    ),
    "needs_instruction": ("Say what is to be changed.", "请写下要改变什么。"),
    # Continue
    "continue": ("Continue", "续写视频"),
    "caption": ("What the film shows (may stay empty)", "视频内容（可不填）"),
    "frames": ("Frames to add", "增加的帧数"),
    "go_on": ("Go on with the film", "继续这段视频"),
    "needs_film": (
        "Take a film from the shelf first: create or upload one.",
        "请先从素材架选用一段视频：可以生成或上传。",
    ),
    "longer": ("{title}, continued", "{title}（续）"),
    "given_frame": ("Frame {number}, given", "第 {number} 帧，原有"),
    "model_frame": ("Frame {number}, by the model", "第 {number} 帧，模型预测"),
    "given": ("given", "原有"),
    "model": ("model", "模型"),
    "nothing_taken": ("Nothing is taken from the shelf yet.", "还没有从素材架选用作品。"),
    "working_on": ("Taken from the shelf: {title}", "当前选用：{title}"),
    # What can go wrong
    "busy": ("The model has too much to do: try again in a moment.", "模型繁忙，请稍后再试。"),
    "died": ("The engine broke down and starts again: try once more.", "引擎出错并正在重启，请再试一次。"),
    "wrong": ("That did not work: {reason}", "没有成功：{reason}"),
}


def say(language: str, key: str, **values: Any) -> str:
    """Return a text in a language, with values filled in."""
    return TEXTS[key][language == "zh"].format(**values)


def preferred(accept_language: str) -> Language:
    """Return the language of the page that a browser's Accept-Language header asks for first."""
    for part in accept_language.lower().split(","):
        tag = part.split(";")[0].strip()
        if tag[:2] in ("zh", "en"):
            return "zh" if tag.startswith("zh") else "en"
    return "en"


@dataclass
class Wardrobe:
    """Which component wears which texts, so that a change of language is one list of updates."""

    language: Language = "en"
    """What components are built with."""
    _worn: list[tuple[Any, dict[str, Callable[[str], Any]]]] = field(default_factory=list)

    def wear(self, component: Any, **texts: "str | Callable[[str], Any]") -> Any:
        """Dress a component: each property has a key of ``TEXTS``, or a function from the language to its value."""
        made = {name: text if callable(text) else _keyed(text) for name, text in texts.items()}
        for name, text in made.items():
            setattr(component, name, text(self.language))
        self._worn.append((component, made))
        return component

    @property
    def components(self) -> list[Any]:
        """All that wear a text."""
        return [component for component, _ in self._worn]

    def updates(self, language: str) -> list[Any]:
        """Return the update of each component to a language."""
        return [gr.update(**{name: text(language) for name, text in texts.items()}) for _, texts in self._worn]


def _keyed(key: str) -> Callable[[str], str]:
    return lambda language: say(language, key)

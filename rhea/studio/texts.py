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
    "decoder_unavailable": ("uploads cannot be read for the moment: try again", "暂时无法读取上传的文件，请重试"),
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
    "best_of": ("Best of: draw each so many times, keep the one that fits best", "择优：每张画几次，留下最符合的一张"),
    "seed": ("Seed", "随机种子"),
    "number": ("How many", "数量"),
    "more": ("More settings", "更多设置"),
    "draw": ("Draw", "开始绘制"),
    "stop": ("Stop", "停止"),
    "drawing": ("Drawing: {done} of {rows} rows", "正在绘制：{rows} 行中的第 {done} 行"),
    "waiting": ("Waiting for the model", "正在等待模型"),
    "drawn": ("Done: {tokens} tokens", "完成：{tokens} 个词元"),
    "revised": (", drawn from “{prompt}”", "，按“{prompt}”绘制"),
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
    # Correct by hand
    "correct": ("Correct by hand", "人工修正"),
    "correct_help": (
        "What should have been said? Corrections are kept with your name; *Compare* exports them for fine-tuning.",
        "应该怎么说？修正会连同姓名一起保存，可在“比较”页导出，用于微调。",
    ),
    "correct_what": ("What to correct", "修正什么"),
    "its_caption": ("what the piece shows", "作品的内容说明"),
    "right": ("As it should be", "正确的说法"),
    "keep_correction": ("Keep the correction", "保存修正"),
    "corrected": (
        "Kept. So far: {captions} captions and {answers} answers corrected.",
        "已保存。目前修正了 {captions} 条说明和 {answers} 个回答。",
    ),
    "nothing_to_correct": ("take a piece, or ask something, first", "请先选用一件作品或提一个问题"),
    "needs_right": ("write how it should be", "请写下正确的说法"),
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
    # Look inside
    "look": ("Look inside", "查看内部"),
    "look_help": (
        "Take a picture or film from the shelf, drawn or uploaded. Touch a word to see which patches looked at it when "
        "they were drawn, or, in an answer, which patches it looked at itself; touch a patch for the words.",
        "请从素材架选用一件作品，生成的或上传的均可。点一个词，看哪些图块在绘制时关注它，或回答中的词关注哪些图块；"
        "点一个图块，看相关的词。",
    ),
    "way": ("How to look", "查看方式"),
    "as_drawn": ("As it is drawn, after a text", "按文字绘制"),
    "as_read": ("As it is read, before a question", "阅读并回答问题"),
    "look_words": ("The text, or the question (may stay empty)", "文字或问题（可不填）"),
    "look_words_example": (
        "Empty: its own text, or none; read, the model says what it sees",
        "不填：作品自己的文字或无文字；阅读时由模型描述所见",
    ),
    "look_now": ("Look inside", "查看内部"),
    "needs_piece": (
        "Take a piece from the shelf first: create or upload one.",
        "请先从素材架选用一件作品：可以生成或上传。",
    ),
    "latents": ("Frames of the film", "视频的帧"),
    "span": ("frames {first} to {last}", "第 {first} 至 {last} 帧"),
    "spot": ("row {row}, column {column}", "第 {row} 行第 {column} 列"),
    "view": ("What the grid shows", "网格显示"),
    "tokens": ("Tokens", "词元"),
    "entropy": ("Uncertainty", "不确定性"),
    "surprise": ("Surprise", "意外程度"),
    "forwards": ("Forwards", "前向次数"),
    "attention": ("Attention", "注意力"),
    "layer": ("Layer", "层"),
    "head": ("Head", "注意力头"),
    "mean": ("all, their mean", "全部（平均）"),
    "words": ("Words", "词"),
    "written_words": ("Underlined: written by the model.", "带下划线的词由模型写出。"),
    "grid_alt": ("The picture's tokens; arrow keys walk over them", "图片的词元；可用方向键移动"),
    "cell_alt": ("{spot}: code {code}, {bits} bits", "{spot}：编码 {code}，{bits} 比特"),
    "cell_forward": (", forward {forward}", "，第 {forward} 次前向"),
    "look_said": (
        "{codes} codes, {bits} bits each on average, log-probability {log}",
        "{codes} 个编码，平均 {bits} 比特，对数概率 {log}",
    ),
    "forwards_said": (
        "; {forwards} forwards drew them, {per_forward} each",
        "；共 {forwards} 次前向，每次 {per_forward} 个",
    ),
    "answer_said": ("; the model answers “{answer}”", "；模型回答：“{answer}”"),
    "touch_first": ("Touch a word or a patch.", "请点一个词或图块。"),
    "word_said": (
        "“{word}” was looked at most by the patch in {spot}: {most} % of its attention",
        "“{word}” 最受{spot}图块关注：占其注意力的 {most}%",
    ),
    "word_looked": (
        "“{word}” looked most at the patch in {spot}: {most} % of its attention",
        "“{word}” 最关注{spot}图块：占其注意力的 {most}%",
    ),
    "place_said": (
        "The patch in {spot} gave {words} % of its attention to words, {codes} % to patches drawn before, {rest} % to "
        "marks",
        "{spot}图块的注意力：词 {words}%，先前图块 {codes}%，标记 {rest}%",
    ),
    "place_looked_at": (
        "The patch in {spot} was looked at most by “{word}”: {most} % of its attention; it gave {codes} % of its own "
        "to patches up to it",
        "{spot}图块最受“{word}”关注：占其注意力的 {most}%；图块自身给此前图块 {codes}%",
    ),
    "place_alone": (
        "The patch in {spot} gave {codes} % of its attention to patches",
        "{spot}图块给图块 {codes}% 的注意力",
    ),
    "no_forwards": (
        "No forward drew this: only what the model drew, by its own text, has forwards.",
        "这不是由前向绘制的：只有模型按其原文字绘制的作品才有。",
    ),
    "tokens_legend": ("The number of each code in the codebook.", "每个编码在码本中的序号。"),
    "entropy_legend": (
        "Bits of uncertainty before each code was drawn; the darkest is {most}.",
        "绘制每个编码前的不确定性（比特），最深为 {most}。",
    ),
    "surprise_legend": (
        "How improbable each code was, in bits; the darkest is {most}.",
        "每个编码的意外程度（比特），最深为 {most}。",
    ),
    "forwards_legend": (
        "The number of the forward that gave each code; the darker, the more codes it gave, at most {most}.",
        "给出每个编码的前向序号；颜色越深，该次给出的编码越多，最多 {most} 个。",
    ),
    "attention_legend": ("Attention in percent; the darkest is {most}.", "注意力百分比，最深为 {most}。"),
    "bars_alt": ("Codes that each forward gave: {counts}", "每次前向给出的编码数：{counts}"),
    # Compare
    "compare": ("Compare", "比较"),
    "compare_help": (
        "Judge samples of one prompt without knowing how they were made. How they were is told afterwards.",
        "在不知道制作方式的情况下评判同一提示的样本；评判后才会说明。",
    ),
    "annotator": ("Your name, as annotator", "评判者姓名"),
    "new_comparison": ("New comparison", "新的比较"),
    "other_guidance": ("Guidance of every second sample", "每隔一个样本的引导强度"),
    "draw_samples": ("Draw samples to compare", "生成待比较的样本"),
    "next_comparison": ("Next one that I have not judged", "下一个我尚未评判的比较"),
    "judge_now": ("Which is better?", "哪个更好？"),
    "best": ("The better one", "更好的一个"),
    "tie": ("tie", "平局"),
    "sample": ("Sample {letter}", "样本 {letter}"),
    "text_match": ("{letter}: fits the text (1 to 5)", "{letter}：符合文字（1 到 5）"),
    "look_rating": ("{letter}: looks good (1 to 5)", "{letter}：画面质量（1 到 5）"),
    "true_caption": ("{letter}: what it really shows", "{letter}：实际内容"),
    "judge": ("Keep my judgement", "保存评判"),
    "judged": ("Kept. This is how each was made.", "已保存。以下是各样本的制作方式。"),
    "needs_annotator": ("Write your name first.", "请先填写姓名。"),
    "nothing_to_judge": ("draw samples, or take the next comparison, first", "请先生成样本或取下一个比较"),
    "needs_best": ("say which is the better one, or tie", "请选择更好的一个或平局"),
    "none_left": ("You have judged every comparison that there is.", "所有比较您都已评判。"),
    "counts": (
        "{comparisons} comparisons, {judgements} judgements, {captions} captions and {answers} answers corrected.",
        "{comparisons} 个比较，{judgements} 次评判，修正了 {captions} 条说明和 {answers} 个回答。",
    ),
    "agreement": (
        "{annotators} annotators on {comparisons} shared comparisons: {percent} % of pairs alike, "
        "{kind}'s kappa {kappa}.",
        "{annotators} 位评判者共同评判了 {comparisons} 个比较：{percent}% 的两两一致，{kind} kappa 为 {kappa}。",
    ),
    "no_kappa": ("undefined (all alike)", "无定义（全部相同）"),
    "export": ("Export judgements", "导出评判"),
    "export_file": ("Preferences, judgements, captions, answers and samples", "偏好、评判、说明、回答和样本"),
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

"""What the model refuses, in Chinese.

Its refusals are English sentences, made where no page is in sight. Rather than give each a code and its values through
all rooms, the page knows them by their form: the few that a visitor can meet. A test provokes every one of them, so a
sentence that changes is noticed; one that is not known stays as it is.
"""

import re

_PATTERNS = (
    (r"the prompt is empty: .*", "提示为空，请写下想看到什么"),
    (r"the question is empty", "问题为空，请写下问题"),
    (r"the instruction is empty: .*", "指令为空，请写下要改变什么"),
    (r"size (.+) is not understood: .*", "看不懂尺寸 {}，请写“宽x高”（像素，如 640x480）或比例（如 16:9）"),
    (
        r"size (\S+) \(width x height\): both sides must be positive multiples of (\d+); near are (.+)",
        "尺寸 {}（宽x高）不可用：两边都须为 {} 的正倍数，相近的有 {}",
    ),
    (r"aspect ratio (\S+) must have two positive sides", "比例 {} 不可用：两边都须大于零"),
    (r"size (\S+): its aspect ratio is over (\S+)", "尺寸 {} 不可用：长边与短边之比超过 {}"),
    (
        r"picture of (\d+) x (\d+) pixels: sides must be at least (\d+)",
        "画面高 {}、宽 {} 像素，太小：边长至少为 {}",
    ),
    (
        r"picture of (\d+) x (\d+) pixels: aspect ratio is over (\S+)",
        "画面高 {}、宽 {} 像素，太狭长：长边与短边之比不能超过 {}",
    ),
    (
        r"a prompt of (\d+) tokens and (\d+) to come do not fit the context of (\d+) tokens: .*",
        "提示有 {} 个词元，待写 {} 个，超出了 {} 个词元的上下文：请缩短提示、缩小尺寸或减少帧数",
    ),
    (
        r"a prompt of (\d+) tokens does not fit the context of (\d+) tokens",
        "提示有 {} 个词元，超出了 {} 个词元的上下文：请缩短提示或对话",
    ),
    (
        r"a film of (\d+) frames is too short to extend: (\d+) are needed",
        "视频只有 {} 帧，太短，无法续写：至少需要 {} 帧",
    ),
    (r"this checkpoint has no vision tokenizer.*", "该模型没有视觉词元化器，无法处理图片和视频"),
    (r"the model computes values that are not finite: .*", "模型算出了无效的数值，权重可能已损坏"),
    (r".+ cannot be used for judgements: .*", "评判文件无法使用"),
)


def in_chinese(refusal: str) -> str:
    """Return a refusal of the model's in Chinese; one that is not known, as it is."""
    for pattern, text in _PATTERNS:
        if found := re.fullmatch(pattern, refusal, re.DOTALL):
            return text.format(*found.groups())
    return refusal

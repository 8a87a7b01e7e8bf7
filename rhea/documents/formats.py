"""One function per task builds its document. Leave the target out and it is the prompt for generating it.

Templates are those of Emu3's released code (arXiv 2409.18869): no wrapper around captions, and for questions the chat
template with its full stop after every question. What the release leaves open is ours: an answer starts with a space
(so that its first word is the usual word token), every answer ends with end-of-sequence, a further question starts with
"USER: " directly after it, and an edit is written as the instruction, the source images, the result: so a place in the
last source is always equally far from the same place in the result, and copying what stays is the simplest attention.
"""

from collections.abc import Sequence
from dataclasses import replace

from rhea.documents.document import Document, Image, Segment, Text, Video

SYSTEM_PROMPT = "You are a helpful assistant. "
KEPT = "OK"
"""What a prompt is answered with that is fine as it is."""


def text_to_image(caption: str, image: Image | None = None) -> Document:
    """Build caption -> image; without ``image`` the prompt for one."""
    return _document("text_to_image", [Text(caption, target=False)], _targets(image))


def text_to_video(caption: str, video: Video | None = None) -> Document:
    """Build caption -> video; without ``video`` the prompt for one."""
    return _document("text_to_video", [Text(caption, target=False)], _targets(video))


def captioning(visual: Image | Video, caption: str | None = None) -> Document:
    """Build image or video -> caption; without ``caption`` the prompt for one."""
    return _document("captioning", [replace(visual, target=False)], [] if caption is None else [Text(caption)])


def question_answering(
    visual: Image | Video | None, question: str | Sequence[tuple[str, str | None]], answer: str | None = None
) -> Document:
    """Build Emu3's chat about an image, a video or nothing, from one question and answer or from several turns.

    ``question`` may be a sequence of (question, answer) turns. A last answer of None leaves the prompt for it.
    """
    turns = [(question, answer)] if isinstance(question, str) else list(question)
    segments: list[Segment] = []
    for number, (asked, answered) in enumerate(turns):
        last = number == len(turns) - 1
        opening = (SYSTEM_PROMPT if number == 0 else "") + "USER: "
        if number == 0 and visual is not None:
            segments += [Text(opening, target=False), replace(visual, target=False)]
            opening = ""
        segments.append(Text(f"{opening}{asked}. ASSISTANT:", target=False))
        if answered is not None:
            segments.append(Text(f" {answered}", ends_turn=not last))
    return Document(tuple(segments), task="question_answering")


def prompt_revision(prompt: str, revised: str | None = None) -> Document:
    """Build a chat in which a prompt for a picture is put in words that are easier to draw, or kept: ``KEPT``."""
    return question_answering(None, f"Revise the prompt: {prompt.removesuffix('.')}", revised)


def editing(images: Sequence[Image], instruction: str, image: Image | None = None) -> Document:
    """Build instruction + source images -> image; without ``image`` the prompt for one."""
    prompt: list[Segment] = [replace(source, target=False) for source in images]
    return _document("editing", [Text(instruction, target=False), *prompt], _targets(image))


def video_prediction(video: Video, given_latents: int, caption: str = "") -> Document:
    """Build first latent frames -> the following ones; for a prompt, ``video`` may hold the given frames only."""
    return _document(
        "video_prediction",
        [Text(caption, target=False)] if caption else [],
        [replace(video, target=True, prompt_latents=given_latents)],
    )


def interleaved(*parts: str | Image | Video) -> Document:
    """Build text, images and videos in any order, all of it target."""
    return _document("interleaved", [], [Text(part) if isinstance(part, str) else part for part in parts])


def language(text: str) -> Document:
    """Build plain text, all of it target."""
    return _document("language", [], [Text(text)])


def _targets(visual: Image | Video | None) -> list[Segment]:
    return [] if visual is None else [replace(visual, target=True)]


def _document(task: str, prompt: Sequence[Segment], target: Sequence[Segment]) -> Document:
    return Document((*prompt, *target), task=task)

"""Ask: a chat about the piece that was taken from the shelf, or about nothing; each piece keeps its own."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import gradio as gr

from rhea.serving.backend import Answer, Done, TextDelta
from rhea.studio import correct, show
from rhea.studio.desk import Desk
from rhea.studio.shelf import Shelf
from rhea.studio.texts import say
from rhea.studio.work import MENDABLE, told

Message = dict[str, str]


def build(desk: Desk) -> None:
    """Add the tab."""
    wear = desk.wardrobe.wear
    with wear(gr.Tab(id="ask", elem_id="tab-ask"), label="ask"):
        piece = gr.HTML(elem_id="ask-piece")
        chat = wear(gr.Chatbot(elem_id="chat", height=320, buttons=[], feedback_options=None), label="chat")
        question = wear(gr.Textbox(elem_id="question"), label="question", placeholder="question_example")
        with gr.Row():
            send = wear(gr.Button(variant="primary", elem_id="send"), value="send")
            forget = wear(gr.Button(elem_id="forget"), value="forget")
        said = gr.HTML(elem_id="ask-status")
        form = gr.Column()

    async def ask(asked: str, shelf: Shelf, language: str) -> AsyncGenerator[tuple[list[Message], Any, str], None]:
        """Answer word by word; what went wrong leaves the question where it was."""
        asked, about = asked.strip(), shelf.chosen
        turns = shelf.chats.setdefault(about, [])
        if not asked:
            yield messages(turns), asked, show.error(say(language, "needs_question"))
            return
        yield messages([*turns, (asked, "…")]), "", show.status(say(language, "answering"))
        task = Answer(turns=(*turns, (asked, None)), visual=None if shelf.piece is None else shelf.piece.visual)
        heard = ""
        try:
            async with contextlib.aclosing(desk.backend.run(task)) as events:
                async for event in events:
                    if isinstance(event, TextDelta):
                        heard += event.text
                        yield messages([*turns, (asked, heard)]), "", show.status(say(language, "answering"))
                    elif isinstance(event, Done):
                        turns.append((asked, event.text))
                        ended = say(language, _ENDS[event.finish_reason], tokens=event.new_tokens)
                        yield messages(turns), "", show.status(ended)
        except MENDABLE as error:
            yield messages(turns), asked, show.error(told(error, language))

    def start_anew(shelf: Shelf) -> list[Message]:
        shelf.chats[shelf.chosen] = []
        return []

    going = gr.on(
        [send.click, question.submit],
        ask,
        [question, desk.shelf, desk.language],
        [chat, question, said],
        show_progress="hidden",
        concurrency_limit=None,
    )
    forgotten = forget.click(start_anew, [desk.shelf], [chat], cancels=[going], show_progress="hidden")
    with form:
        correct.build(desk, going, forgotten)
    desk.follow(
        lambda shelf, language: [shelf.shown(language), messages(shelf.chats.get(shelf.chosen, []))], [piece, chat]
    )


def messages(turns: list[tuple[str, str]]) -> list[Message]:
    """Return questions and answers as the chat shows them."""
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


_ENDS = {"stop": "answered", "length": "cut"}

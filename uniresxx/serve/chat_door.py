"""`/v1/chat/completions` as OpenAI's clients call it; the masks of an answer are in `message.uniresxx`.

The model sees the last picture of the conversation, the last message, and those earlier turns about this picture
that the message points back to. Special tokens in a user's text are text. `[SEG]` and `[REJ]` in an assistant message
are read as that turn's answer, which it was; they make no mask.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from uniresxx.conversation.history import relevant_turns
from uniresxx.imaging.inputs import MAX_ANSWER_CHARACTERS
from uniresxx.serve.refused import Refused
from uniresxx.serve.replies import chat_reply
from uniresxx.serve.schemas import (
    REFUSALS,
    ChatAnswer,
    ChatMessage,
    ChatRequest,
    Choice,
    ImagePart,
    TextPart,
)
from uniresxx.serve.service import Service
from uniresxx.types import Question

# what `stream` gives: the data of an event is a piece of JSON, or [DONE]
EVENT = {"type": "object", "properties": {"data": {"type": "string"}}}
EVENTS = {"text/event-stream": {"schema": EVENT}}


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a request asks: a picture, the turns about it, and the question."""

    image: str
    turns: tuple[tuple[str, str], ...]
    text: str


def doors(service: Service) -> APIRouter:
    """The route of a service."""
    router = APIRouter(responses=REFUSALS)

    @router.post("/v1/chat/completions", response_model=ChatAnswer, responses={200: {"content": EVENTS}})
    async def chat(request: ChatRequest) -> ChatAnswer | StreamingResponse:
        """The next turn of a conversation about a picture. With `stream`, the answer comes as one event."""
        if len(request.messages) > service.settings.max_turns:
            raise Refused(400, f"messages: {len(request.messages)}, at most {service.settings.max_turns}")
        asked = conversation_of(request.messages)
        data = await service.bytes_of(asked.image, "the image")
        question = Question(asked.text, relevant_turns(asked.turns, asked.text))
        answered = await service.answer(data, "the image", [question], service.chat_decoding)
        prediction = answered.predictions[0]
        reply = await asyncio.to_thread(chat_reply, asked.text, prediction, request.mask_format)
        answer = ChatAnswer(
            id=f"chatcmpl-{secrets.token_hex(12)}",
            created=int(time.time()),
            model=service.settings.model_name,
            choices=[Choice(message=reply, finish_reason="length" if prediction.truncated else "stop")],
        )
        if request.stream:
            return StreamingResponse(events_of(answer), media_type="text/event-stream")
        return answer

    return router


def conversation_of(messages: Sequence[ChatMessage]) -> Conversation:
    """The last picture with its turns. Refused: no picture, no question at the end, several pictures at once."""
    image, turns, waiting = "", list[tuple[str, str]](), ""
    for place, message in enumerate(messages):
        text, pictures = _content(message)
        if message.role == "assistant":
            if len(text) > MAX_ANSWER_CHARACTERS or pictures:
                raise Refused(400, f"messages[{place}]: an answer is text of at most {MAX_ANSWER_CHARACTERS}")
            if waiting:
                turns.append((waiting, text))
            waiting = ""
        elif message.role == "user":
            if len(pictures) > 1:
                raise Refused(400, f"messages[{place}]: one picture at a time, not {len(pictures)}")
            if pictures:  # earlier turns are about an earlier picture
                image, turns, waiting = pictures[0], [], ""
            waiting = text or waiting
    if messages[-1].role != "user" or not waiting:
        raise Refused(400, "messages: the last one must be a question of the user, with text")
    if not image:
        raise Refused(400, "messages: no picture; add a part of type image_url to a user's message")
    return Conversation(image, tuple(turns), waiting)


def _content(message: ChatMessage) -> tuple[str, list[str]]:
    """The text and the pictures of a message."""
    if isinstance(message.content, str):
        return message.content.strip(), []
    text = " ".join(part.text for part in message.content if isinstance(part, TextPart))
    pictures = [part.image_url.url for part in message.content if isinstance(part, ImagePart)]
    return text.strip(), pictures


def events_of(answer: ChatAnswer) -> Iterator[str]:
    """The answer as server-sent events: one piece with everything, the end, and the closing mark."""
    choice = answer.choices[0]
    pieces: tuple[dict[str, Any], ...] = (
        {"delta": choice.message.model_dump(), "finish_reason": None},
        {"delta": {}, "finish_reason": choice.finish_reason},
    )
    for piece in pieces:
        chunk = {
            "id": answer.id,
            "object": "chat.completion.chunk",
            "created": answer.created,
            "model": answer.model,
            "choices": [{"index": 0, **piece}],
        }
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"

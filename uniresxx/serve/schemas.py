"""What requests and answers hold, as the OpenAPI page shows it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

MaskFormat = Literal["png", "rle"]
Text = Annotated[str, Field(min_length=1, max_length=500, examples=["the left wheel of the red car"])]
RLE_EXAMPLE: JsonDict = {"size": [4, 4], "counts": "52203"}


class RLEMask(BaseModel):
    """A mask in COCO's compressed run-length code."""

    model_config = ConfigDict(json_schema_extra={"examples": [RLE_EXAMPLE]})
    size: list[int] = Field(description="height, width")
    counts: str


Mask = Annotated[str | RLEMask, Field(description="base64 of a grey PNG (255 inside), or COCO RLE")]
Box = Annotated[list[float], Field(description="x0, y0, x1, y1 in pixels, right and bottom edges exclusive")]
Score = Annotated[float | None, Field(description="predicted IoU, 0 to 1; null where the model gives none")]


class Found(BaseModel):
    """One mask."""

    mask: Mask
    box: Box
    score: Score


class Segmentations(BaseModel):
    """The masks of a prompt; empty where it is not in the picture."""

    data: list[Found]


class ImageAsk(BaseModel):
    """A photo and what to find in it."""

    model_config = ConfigDict(extra="forbid")
    image: str = Field(
        description="JPEG, PNG or WEBP in base64, with or without data:image/png;base64, before it",
        examples=["data:image/png;base64,iVBORw0KGgo…"],
    )
    prompts: list[Text] = Field(min_length=1, examples=[["the red house", "the door of the red house"]])


class SegmentRequest(BaseModel):
    """Several photos, several prompts each."""

    model_config = ConfigDict(extra="forbid")
    images: list[ImageAsk] = Field(min_length=1)
    mask_format: MaskFormat = "rle"


class PhraseFound(BaseModel):
    """One phrase of an answer; without a mask where it is not in the picture."""

    phrase: str
    mask: Mask | None
    box: Box | None
    score: Score


class Answer(BaseModel):
    """The answer to one prompt."""

    prompt: str
    rejected: bool = Field(description="the thing is not in the picture")
    mask: Mask | None
    box: Box | None
    score: Score
    p_absent: float | None = Field(description="probability that the thing is not there")
    text: str | None = Field(description="the answer as the model generated it")
    phrases: list[PhraseFound] = Field(description="where several phrases were asked together")
    instances: list[Found] = Field(description="each thing alone, where the model tells them apart")


class ImageAnswers(BaseModel):
    """The answers about one photo."""

    width: int
    height: int
    answers: list[Answer]


class SegmentAnswer(BaseModel):
    """One entry per photo, in order."""

    model: str
    data: list[ImageAnswers]


class ImageURL(BaseModel):
    """A picture in a chat message."""

    url: str = Field(examples=["data:image/png;base64,iVBORw0KGgo…"])


class TextPart(BaseModel):
    """Text of a chat message."""

    type: Literal["text"]
    text: str


class ImagePart(BaseModel):
    """A picture of a chat message."""

    type: Literal["image_url"]
    image_url: ImageURL


class ChatMessage(BaseModel):
    """A message as OpenAI's clients send it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart | ImagePart]


class ChatRequest(BaseModel):
    """A conversation about one picture. Other fields (temperature, …) are ignored: answers are greedy."""

    messages: list[ChatMessage] = Field(
        min_length=1,
        examples=[
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo…"}},
                        {"type": "text", "text": "Segment the red house."},
                    ],
                }
            ]
        ],
    )
    model: str | None = None
    stream: bool = False
    n: Literal[1] = 1
    mask_format: MaskFormat = Field("rle", description="ours: of the masks in the answer")


class ChatMasks(BaseModel):
    """What OpenAI's format has no place for."""

    words: str = Field(description="the answer in sentences, a line per phrase")
    phrases: list[PhraseFound] = Field(description="the mask of each [SEG] and [REJ], in order")


class ReplyMessage(BaseModel):
    """The answer; its masks are in `uniresxx`."""

    role: Literal["assistant"] = "assistant"
    content: str = Field(
        description="as generated: [SEG] stands for a mask, [REJ] for a thing that is not there"
    )
    uniresxx: ChatMasks


class Choice(BaseModel):
    """The one answer."""

    index: int = 0
    message: ReplyMessage
    finish_reason: Literal["stop", "length"]


class ChatAnswer(BaseModel):
    """As OpenAI's clients read it."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]


class ModelEntry(BaseModel):
    """The served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "uniresxx"


class Models(BaseModel):
    """All served models: one."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


class Health(BaseModel):
    """Whether the server takes requests."""

    status: Literal["ok", "stopping"]
    model: str
    waiting: int = Field(description="questions that are not answered yet")


class ErrorDetail(BaseModel):
    """What is wrong and what to do."""

    message: str
    type: str
    param: str | None
    code: int


class Error(BaseModel):
    """Why a request was not answered."""

    error: ErrorDetail


REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Error, "description": "The request is wrong, too large, or one of too many at a time"},
    "5XX": {"model": Error, "description": "503: full or stopping, try again; 500: a fault of the server"},
}

"""Conversations on this machine's disk: a folder for each, named by a token that cannot be guessed.

The token is the link. A folder holds the pictures as they were handed in, and `conversation.json`. Names from
visitors never become file names.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from chat_demo.session import ChatTurn, Session
from chat_demo.web.models import Photo, photo_of
from chat_demo.web.talk import Note, PictureTalk, Talk
from chat_demo.web.views import thumb_url
from uniresxx.errors import InputError
from uniresxx.files import write_atomic, write_json
from uniresxx.imaging import masks
from uniresxx.prediction import Segment

FORMAT = 1
FILE = "conversation.json"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{22}")
_PICTURE = re.compile(r"picture_\d{2}")


class Kept:
    """The conversations below one folder, which is made with the first of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add_photo(self, talk: Talk, photo: Photo) -> tuple[Talk, PictureTalk]:
        """Write a picture's file; gives the conversation with a token, and the picture, not yet part of it."""
        token = talk.token or secrets.token_urlsafe(16)
        place = self._place(token)
        place.mkdir(parents=True, exist_ok=True)
        file = f"picture_{len(talk.pictures) + 1:02d}"
        write_atomic(place / file, photo.data)
        height, width = photo.pixels.shape[:2]
        picture = PictureTalk(file, photo.name, height, width, thumb_url(photo.pixels), Session(photo.name))
        return replace(talk, token=token), picture

    def photo(self, talk: Talk, number: int) -> Photo:
        """A picture of a conversation. InputError: it is gone from the disk."""
        picture = talk.pictures[number]
        try:
            return photo_of((self._place(talk.token) / picture.file).read_bytes(), picture.name)
        except OSError:
            raise InputError(f"{picture.name} is no longer on this machine: open it again") from None

    def save(self, talk: Talk) -> None:
        """Write what was said."""
        if talk.token:
            write_json(self._place(talk.token) / FILE, to_json(talk))

    def load(self, token: str) -> Talk:
        """The conversation of a link. InputError: there is none on this machine, or its file is damaged."""
        missing = InputError(
            "this link opens no conversation on this machine: it was made elsewhere, or deleted"
        )
        if not _TOKEN.fullmatch(token):
            raise missing
        try:
            value = json.loads((self._place(token) / FILE).read_bytes())
        except (OSError, ValueError, RecursionError):
            raise missing from None
        try:
            talk = _from_json(token, value)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError("the file of this conversation is damaged: begin a new one") from None
        pixels = (self.photo(talk, number).pixels for number in range(len(talk.pictures)))
        pictures = (
            replace(one, thumb=thumb_url(yx3)) for one, yx3 in zip(talk.pictures, pixels, strict=True)
        )
        return replace(talk, pictures=tuple(pictures))

    def _place(self, token: str) -> Path:
        assert _TOKEN.fullmatch(token), "no token"
        return self.folder / token


def to_json(talk: Talk) -> dict[str, Any]:
    """A conversation as JSON, masks as COCO RLE; also what a visitor downloads."""
    pictures = [
        {
            "file": picture.file,
            "name": picture.name,
            "height": picture.height,
            "width": picture.width,
            "turns": [
                {
                    "question": turn.question,
                    "answer": turn.answer,
                    "generated": turn.generated,
                    "phrases": [
                        {"phrase": part.phrase, "mask": part.rle, "score": part.score, "span": part.span}
                        for part in turn.segments
                    ],
                    "about": asdict(note),
                }
                for turn, note in zip(picture.session.turns, picture.notes, strict=True)
            ],
        }
        for picture in talk.pictures
    ]
    return {"format": FORMAT, "current": talk.current, "shown": talk.shown, "pictures": pictures}


def _from_json(token: str, value: dict[str, Any]) -> Talk:
    pictures = tuple(_picture(item) for item in value["pictures"])
    return Talk(token, pictures, int(value["current"]), int(value["shown"]))


def _picture(item: dict[str, Any]) -> PictureTalk:
    if not _PICTURE.fullmatch(item["file"]):
        raise ValueError("a picture's file has another name than this program gives")
    size = (int(item["height"]), int(item["width"]))
    turns = tuple(
        ChatTurn(
            turn["question"],
            turn["answer"],
            turn["generated"],
            tuple(
                Segment(
                    part["phrase"],
                    None if part["mask"] is None else masks.validate(part["mask"], size),
                    part["score"],
                    None if part["span"] is None else (part["span"][0], part["span"][1]),
                )
                for part in turn["phrases"]
            ),
        )
        for turn in item["turns"]
    )
    notes = tuple(Note(**turn["about"]) for turn in item["turns"])
    session = Session(item["name"], None, turns)
    return PictureTalk(item["file"], item["name"], *size, "", session, notes)

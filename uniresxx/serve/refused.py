"""Why a request is not answered: an HTTP status and one line for the client."""

from __future__ import annotations

from fastapi import HTTPException


class Refused(HTTPException):
    """A request that is not answered; the message says what is wrong and what to do."""

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        headers = None if retry_after is None else {"Retry-After": str(retry_after)}
        super().__init__(status, message, headers)

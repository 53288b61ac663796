"""Everything that `uniresxx serve` can be told, except the model and the address."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Limits and names of a server; the defaults are our choice."""

    model_name: str = "uniresxx"  # what /v1/models and answers call the model
    max_batch: int = 32  # questions that the model answers together
    window_ms: float = 4.0  # how long a first question waits for others, where others are on their way
    max_queue: int = 256  # questions that wait for the model; more get 503
    max_requests: int = 256  # requests being received or answered; more get 503
    per_client: int = 64  # the same, of one address; more get 429
    max_body_bytes: int = 64 * 2**20  # of a request; more gets 413
    held_body_bytes: int = 512 * 2**20  # of all requests that are not answered; more get 503
    body_seconds: float = 60.0  # to send a request; longer gets 408
    max_photo_bytes: int = 20 * 2**20  # of a photo's file
    max_pixels: int = 25_000_000  # of a photo
    held_pixels: int = 200_000_000  # of decoded photos that wait for the model; others wait undecoded
    max_photos: int = 8  # of a request
    max_prompts: int = 32  # of a photo in one request
    max_turns: int = 64  # messages of a chat request
    cache_bytes: int = 512 * 2**20  # for encoded photos, on the model's device
    image_urls: bool = False  # fetch photos from https addresses
    url_seconds: float = 10.0  # to fetch one

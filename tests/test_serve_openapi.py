"""Whatever fits the OpenAPI description, or almost fits it, gets an answer of the described form, never a 500."""

from __future__ import annotations

import base64
import io

import pytest

pytest.importorskip("schemathesis")  # in `dev`; some systems have no wheel of what it needs

import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from uniresxx.serve.app import create_server
from uniresxx.testing import ColourSegmenter

MODEL = ColourSegmenter()
SERVER = create_server(MODEL)
schema = schemathesis.openapi.from_dict(SERVER.app.openapi())


async def served(scope, receive, send):
    """The server without its end: every call of schemathesis would stop it."""
    if scope["type"] != "lifespan":
        await SERVER.gate(scope, receive, send)
        return
    for kind in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{kind}.complete"})


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def picture():
    stream = io.BytesIO()
    Image.new("RGB", (12, 8), "red").save(stream, "PNG")
    return stream.getvalue()


PNG = picture()
URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


WORDS = [{"type": "text", "text": "the red house"}, {"type": "image_url", "image_url": {"url": URL}}]
RIGHT = {  # requests with a picture that must reach the model
    "/v1/images/segmentations": {"files": {"image": PNG}, "data": {"prompt": "the red house"}},
    "/v1/segment": {"json": {"images": [{"image": URL, "prompts": ["the red house", "the door"]}]}},
    "/v1/chat/completions": {"json": {"messages": [{"role": "user", "content": WORDS}]}},
}


def with_pictures(value, picture):
    """The same body with a real picture wherever a picture belongs."""
    if isinstance(value, list):
        return [with_pictures(item, picture) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: picture if key in ("image", "url") else with_pictures(item, picture)
        for key, item in value.items()
    }


@pytest.mark.parametrize("path", sorted(schema.raw_schema["paths"]))
def test_every_request_gets_an_answer_of_the_described_form(path):
    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def check(data, cases):
        case = data.draw(cases)
        case.validate_response(case.call(app=served), checks=CHECKS)
        body = with_pictures(case.body, PNG if case.path.endswith("segmentations") else URL)
        if body != case.body:
            case.body = body
            case.validate_response(case.call(app=served), checks=CHECKS)

    methods = schema.raw_schema["paths"][path]
    takes_pictures = "post" in methods
    modes = list(GenerationMode) if takes_pictures else [GenerationMode.POSITIVE]
    for mode in modes:  # requests that fit the description, and requests that almost do
        check(cases=st.one_of(schema[path][method].as_strategy(generation_mode=mode) for method in methods))


@pytest.mark.parametrize(
    "path", sorted(path for path, methods in schema.raw_schema["paths"].items() if "post" in methods)
)
def test_a_right_request_reaches_the_model_and_its_answer_has_the_described_form(path):
    asked = len(MODEL.asked)
    reply = TestClient(SERVER.app).post(path, **RIGHT[path])
    assert reply.status_code == 200 and len(MODEL.asked) > asked
    schema[path]["POST"].validate_response(reply)

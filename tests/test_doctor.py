"""`uniresxx doctor`: what is missing for which command."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

from uniresxx.cli import doctor, main
from uniresxx.cli.doctor import Finding

REQUIRES = [
    "numpy>=1.0",
    "jinja2>=3; extra == 'train'",
    "not-there-at-all>=1; extra == 'serve'",
    "numpy>=999; extra == 'quant'",
    'never-here; (python_version < "3.0") and extra == "onnx"',
]


@pytest.fixture
def requirements(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIRES)


def test_what_is_missing_is_said_by_command(requirements):
    found = {finding.topic: finding for finding in doctor.check_extras()}
    assert found["serve"] == Finding(
        "serve", "note", "needs not-there-at-all: run `pip install 'uniresxx[serve]'`"
    )
    assert found["--quantization"].state == "note" and "numpy" in found["--quantization"].detail
    assert found["train and eval"].state == "ok" and found["export to ONNX"].state == "ok"


def test_every_extra_that_a_command_needs_is_one_of_ours():
    lines = metadata.requires("uniresxx") or []
    assert all(
        any(f"'{extra}'" in line.replace('"', "'") for line in lines) for extra in ("train", "quant", "onnx")
    )


def test_photos_that_need_a_plug_in_are_named(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    (heic, _) = doctor.check_photos()
    assert heic == Finding("HEIC photos", "note", "not read: run `pip install pillow-heif`")
    monkeypatch.setattr(doctor, "find_spec", lambda name: name)
    assert doctor.check_photos()[0].state == "ok"


def test_a_missing_requirement_is_a_problem_and_a_missing_extra_is_not(monkeypatch, capsys, requirements):
    for name in ("check_devices", "check_torchvision"):
        monkeypatch.setattr(doctor, name, lambda: [])
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"topic", "state", "detail"} == set(found[0]) and any(one["state"] == "note" for one in found)
    monkeypatch.setattr(metadata, "requires", lambda name: ["not-there-at-all>=1"])
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "problem  not-there-at-all " in shown and "run `make setup`" in shown

"""Rows about the numbers beside the scores: what is absent, wrong parts, instances, a second truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

HEADER = ("more numbers", "N", "%", "beside")


def more_rows(entry: Mapping[str, Any]) -> list[list[str]]:
    """Name, how many expressions stand behind it, its value, and what belongs beside it; what is null has no row."""
    return [*_absent_rows(entry), *_part_rows(entry), *_instance_rows(entry), *_truth_rows(entry)]


def _absent_rows(entry: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, scores in (entry.get("by_absent") or {}).items():
        if size := entry["counts"]["by_absent"][name]["n"]:
            yield [f"N-acc, {name} absent", str(size), _number(scores["N-acc"]), ""]


def _part_rows(entry: Mapping[str, Any]) -> Iterator[list[str]]:
    if found := entry.get("xIoU"):
        shares = ", ".join(f"{key} {_number(found[key])}" for key in ("sibling", "object", "outside"))
        yield [
            f"xIoU, wrong parts of {found['n_parts']}",
            str(found["n_wrong"]),
            _number(found["xIoU"]),
            shares,
        ]


def _instance_rows(entry: Mapping[str, Any]) -> Iterator[list[str]]:
    if found := entry.get("instances"):
        n = str(found["n"])
        beside = ", ".join(f"{key} {_number(found[key])}" for key in ("pmF1", "IL_MCC"))
        yield ["cgF1", n, _number(found["cgF1"]), beside]
        if found["n_listed"]:
            beside = ", ".join(f"{key} {_number(found[key])}" for key in ("AP50", "AP75"))
            yield ["mask AP", n, _number(found["AP"]), beside]


def _truth_rows(entry: Mapping[str, Any]) -> Iterator[list[str]]:
    if found := entry.get("second_truth"):
        for key in ("mIoU", "cIoU"):
            change = found["difference"][key]
            beside = "–" if change is None else f"{change:+.1f} to {_number(found['own'][key])}"
            yield [f"{key}, masks of {found['of']}", str(found["n"]), _number(found["other"][key]), beside]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"

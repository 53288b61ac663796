"""Published numbers, each with its source, protocol, decoding and what kind of system gave it.

Three kinds are never put in one column: models trained for the task that answer in one pass, agents that call
tools over several rounds, and models scored with (part of) the true answer in their prompt. A blank is "not
found". "secondary" = read in a survey or audit, not in the original paper. Left out: rows that contradict
themselves, rows of a protocol of their own, and rows of which nothing says what kind of system they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What kind of system a number comes from."""

    TRAINED = "trained, single pass"
    AGENT = "agent with tools"
    TEACHER_FORCED = "true answer in the prompt"


class Made(StrEnum):
    """How the scored answer came about."""

    GENERATED = "generated"
    TEACHER_FORCED = "teacher-forced"
    NO_TEXT = "no text answer"
    UNKNOWN = "not checked"


@dataclass(frozen=True, slots=True)
class Published:
    """One method's published numbers of one metric on one benchmark, percent by split."""

    benchmark: str
    setting: str
    method: str
    metric: str
    values: Mapping[str, float]
    kind: Kind
    protocol: str
    decoding: Made
    source: str
    secondary: bool = False


_MRES = "Rubics-Xuan/MRES, Table 4 (figure)"
_MRES_RES = "Rubics-Xuan/MRES, classic RES table (figure)"
_M2SA = "jdg900/MMR, README"
_SURVEY = "arXiv 2508.00265, Table 8"
_MLLMSEG = "jcwang0602/MLLMSeg, result table (figure)"
_DERIS = "Dmmm1997/DeRIS, README"
_XSAM = "wanghao9610/X-SAM, result table (figure)"
_LISA_REPO = "dvlab-research/LISA"
_AUDIT = "grounding-benchmark audit of 2026-09-06"
_LEADERBOARD = "public leaderboard (wizwand)"
_SUITE = "arXiv 2503.10596, Table 4"
_UNICOM = "deepglint/unicom, README"
_UFO = "UFO paper, Table 3"

_PER_SENTENCE = "mean IoU per expression"
_LISA = "LISA: IoU + 1e-5, empty truth and answer = 1"
_RELA = "ReLA: no target and none said = 1; a rejected target = 0"
_GSVA = "GSVA: a rejected target keeps its IoU"
_UNKNOWN = "as its paper; not checked"

_T, _A, _F = Kind.TRAINED, Kind.AGENT, Kind.TEACHER_FORCED

# These answer with a mask and no text, so nothing could be put into their mouth.
_NO_TEXT = (
    *("SeqTR", "CRIS", "LAVT", "X-Decoder", "SEEM", "UniRES", "UniRES ft", "UniRES zero-shot"),
    *("ReLA", "DeRIS-L"),
)
_GENERATED = ("Text4Seg-InternVL2 (+SAM)", "Sa2VA-8B")


def _made(method: str, kind: Kind) -> Made:
    """What is known of how a method's answers were made; most papers do not say."""
    if kind is Kind.TEACHER_FORCED:
        return Made.TEACHER_FORCED
    if method in _NO_TEXT:
        return Made.NO_TEXT
    return Made.GENERATED if method in _GENERATED else Made.UNKNOWN


def _splits(*values: float | None) -> dict[str, float]:
    """Values of val, testA, testB; None is left out."""
    return {k: v for k, v in zip(("val", "testA", "testB"), values, strict=False) if v is not None}


def _refcocom() -> list[Published]:
    rows: list[tuple[str, tuple[float, ...], tuple[float, ...], Kind, str, str]] = [
        ("SeqTR", (13.9, 12.1, 18.1), (28.2, 22.8, 34.7), _T, _PER_SENTENCE, _MRES),
        ("CRIS", (10.6, 10.1, 12.9), (25.4, 21.2, 30.0), _T, _PER_SENTENCE, _MRES),
        ("LAVT", (15.3, 13.2, 18.7), (29.9, 24.4, 35.5), _T, _PER_SENTENCE, _MRES),
        ("X-Decoder", (16.2, 13.6, 20.3), (29.5, 23.6, 33.8), _T, _PER_SENTENCE, _MRES),
        ("SEEM", (16.1, 13.6, 20.4), (29.4, 23.4, 33.9), _T, _PER_SENTENCE, _MRES),
        ("UniRES", (19.6, 16.4, 25.2), (34.3, 27.8, 41.7), _T, _PER_SENTENCE, _MRES),
        ("LISA-7B", (21.3, 18.5, 25.7), (34.3, 28.6, 40.1), _F, _LISA, _M2SA),
        ("M2SA-7B", (22.4, 19.9, 27.1), (35.5, 30.1, 41.4), _F, _LISA, _M2SA),
        ("LISA-Llama2-13B", (22.1, 19.4, 27.2), (35.2, 29.7, 41.6), _F, _LISA, _M2SA),
        ("M2SA-Llama2-13B", (24.5, 21.9, 28.5), (37.3, 31.9, 42.7), _F, _LISA, _M2SA),
    ]
    found = [
        Published(
            "refcocom", setting, method, "mIoU", _splits(*values), kind, protocol, _made(method, kind), source
        )
        for method, part, both, kind, protocol, source in rows
        for setting, values in (("part", part), ("object and part", both))
    ]
    vasa = Published(
        "refcocom", "part", "VASA (agent, SAM3)", "mIoU", _splits(45.0, 43.2), _A, _UNKNOWN, Made.UNKNOWN,
        _LEADERBOARD, True,
    )  # fmt: skip
    # The split and setting of this number are our reading: it is given without them.
    ours = Published(
        "refcocom", "part", "UniRES++ (split inferred)", "mIoU", _splits(27.7), _T, _UNKNOWN, Made.UNKNOWN,
        _AUDIT, True,
    )  # fmt: skip
    # So is the split and setting of these; on RefCOCOm, where nothing is absent, gIoU is mIoU.
    suite = [
        Published(
            "refcocom", "object and part", f"{method} (split, setting inferred)", "mIoU", _splits(value),
            kind, _UNKNOWN, _made(method, kind), _SUITE,
        )
        for method, value, kind in (
            ("LISA-7B re-run", 34.2, _F),
            ("LISA-7B + GSTrain-10M", 39.3, _F),
            ("EVF-SAM", 51.3, _T),
            ("EVF-SAM + GSTrain-10M", 55.3, _T),
        )
    ]  # fmt: skip
    return [*found, ours, vasa, *suite]


def _grefcoco() -> list[Published]:
    rows: list[tuple[str, tuple[float | None, ...], tuple[float | None, ...], Kind, str, str, bool]] = [
        ("ReLA", (62.42, 69.26, 59.88), (63.60, 70.03, 61.02), _T, _RELA, _SURVEY, True),
        ("LISA-7B ft", (61.8, 68.5, 60.6), (61.6, 66.3, 58.8), _F, _GSVA, _MLLMSEG, False),
        ("GSVA-7B ft", (63.3, 69.9, 60.5), (66.5, 71.1, 62.2), _F, _GSVA, _MLLMSEG, False),
        ("GSVA-13B", (66.38, 72.79, 63.20), (70.04, 73.29, 65.45), _F, _GSVA, _SURVEY, True),
        ("SAM4MLLM-8B", (67.8, 72.2, 63.4), (71.9, 74.2, 65.3), _T, _UNKNOWN, _MLLMSEG, False),
        ("InstAlign (Swin-B)", (68.94, 73.22, 63.88), (74.34, 74.51, 65.74), _T, _UNKNOWN, _SURVEY, True),
        ("Text4Seg-InternVL2 (+SAM)", (69.1, 73.8, 66.6), (74.4, 75.1, 67.3), _T, _UNKNOWN, _MLLMSEG, False),
        ("UniRES++", (69.90, 74.50, 66.60), (74.40, 76.00, 69.80), _T, _UNKNOWN, _SURVEY, True),
        ("RAS", (70.48, 76.99, 67.90), (74.64, 77.45, 69.42), _T, _UNKNOWN, _SURVEY, True),
        ("MLLMSeg-InternVL2.5-8B", (71.6, 76.9, 68.5), (75.1, 77.0, 69.7), _T, _GSVA, _MLLMSEG, False),
        ("DeRIS-L", (72.00, 73.73, 67.38), (77.67, 75.30, 67.99), _T, _RELA, _DERIS, False),
        ("STAMP-7B", (73.6, None, None), (77.6, None, None), _T, _UNKNOWN, _AUDIT, True),
    ]
    rejections = [
        ("GSVA-7B ft", (62.4, 65.3, 60.6), _F, _GSVA, _MLLMSEG),
        ("LISA-7B ft", (54.7, 50.0, 51.9), _F, _GSVA, _MLLMSEG),
        ("MLLMSeg-InternVL2.5-8B", (73.2, 72.4, 65.5), _T, _GSVA, _MLLMSEG),
        ("DeRIS-L", (82.22, 78.30, 66.81), _T, _RELA, _DERIS),
    ]
    found = [
        Published(
            "grefcoco", "all", method, metric, _splits(*values), kind, protocol, _made(method, kind), source,
            secondary,
        )
        for method, ciou, giou, kind, protocol, source, secondary in rows
        for metric, values in (("cIoU", ciou), ("gIoU", giou))
    ]  # fmt: skip
    return found + [
        Published(
            "grefcoco", "all", method, "N-acc", _splits(*values), kind, protocol, _made(method, kind), source
        )
        for method, values, kind, protocol, source in rejections
    ]


def _classic() -> list[Published]:
    """RefCOCO, RefCOCO+ (val, testA, testB) and RefCOCOg of the UMD split (val, test); cIoU but where named
    mIoU."""
    found = []
    for method, metric, plain, plus, umd, kind, source, secondary in _CLASSIC:
        splits = (
            ("refcoco", _splits(*plain)),
            ("refcoco+", _splits(*plus)),
            ("refcocog_umd", dict(zip(("val", "test"), umd, strict=False))),
        )
        for benchmark, values in splits:
            if values:
                how = _made(method, kind)
                found.append(
                    Published(
                        benchmark, "all", method, metric, values, kind, _UNKNOWN, how, source, secondary
                    )
                )
    return found


_Values = tuple[float, ...]
_CLASSIC: tuple[tuple[str, str, _Values, _Values, _Values, Kind, str, bool], ...] = (
    ("UniRES ft", "cIoU", (77.4, 80.9, 74.7), (69.4, 76.1, 61.4), (68.9, 71.0), _T, _MRES_RES, False),
    ("UniRES ft", "mIoU", (79.2, 81.6, 76.6), (73.0, 78.1, 65.8), (71.8, 72.9), _T, _MRES_RES, False),
    ("UniRES zero-shot", "mIoU", (71.2, 74.8, 66.0), (59.9, 66.7, 51.4), (62.3, 63.2), _T, _MRES_RES, False),
    ("LISA-7B ft", "cIoU", (74.9, 79.1, 72.3), (65.1, 70.8, 58.1), (67.9, 70.6), _F, _LISA_REPO, False),
    ("GSVA-7B ft", "cIoU", (77.2, 78.9, 73.5), (65.9, 69.6, 59.8), (72.7, 73.3), _F, _MLLMSEG, False),
    ("M2SA-7B", "cIoU", (74.0, 76.8, 69.7), (63.1, 67.2, 56.1), (67.0, 68.3), _F, _MLLMSEG, False),
    ("GLaMM-7B", "cIoU", (79.5, 83.2, 76.9), (72.6, 78.7, 64.6), (74.2, 74.9), _T, _XSAM, False),
    ("OMG-LLaVA", "cIoU", (77.2, 79.8, 74.1), (68.7, 73.0, 61.6), (71.7, 71.9), _T, _XSAM, False),
    ("PSALM", "cIoU", (83.6, 84.7, 81.6), (72.9, 75.5, 70.1), (73.8, 74.4), _T, _XSAM, False),
    ("SAM4MLLM-8B", "cIoU", (79.8, 82.7, 74.7), (74.6, 80.0, 67.2), (75.5, 76.4), _T, _UFO, True),
    ("HiMTok-8B", "cIoU", (81.1, 81.2, 79.2), (77.1, 78.8, 71.5), (75.8, 76.7), _T, _UFO, True),
    ("UFO-LLaVA-1.5-7B ft", "cIoU", (77.9, 81.1, 77.0), (72.5, 78.5, 71.4), (75.6, 74.1), _T, _UFO, True),
    ("Text4Seg-InternVL2 (+SAM)", "cIoU", (79.2, 81.7, 75.6), (72.8, 77.9, 66.5), (74.0, 75.3), _T, _MLLMSEG,
     False),
    ("Sa2VA-8B", "cIoU", (81.6,), (76.2,), (78.7,), _T, _XSAM, False),
    ("EVF-SAM", "cIoU", (82.4, 84.2, 80.2), (76.5, 80.0, 71.9), (78.2, 78.3), _T, _UNICOM, False),
    ("MLCD-seg-7B", "cIoU", (83.6, 85.3, 81.5), (79.4, 82.9, 75.6), (79.9, 80.5), _T, _UNICOM, False),
    ("MLLMSeg-InternVL2.5", "cIoU", (81.0, 82.4, 78.7), (76.4, 79.1, 72.5), (79.9, 80.8), _T, _MLLMSEG,
     False),
    ("X-SAM (Phi-3-3.8B)", "cIoU", (85.1, 87.1, 83.4), (78.0, 81.0, 74.4), (83.8, 83.9), _T, _XSAM, False),
    ("DeRIS-L", "cIoU", (85.41, 86.49, 82.87), (79.01, 82.34, 74.41), (77.65, 80.12), _T, _DERIS, False),
    ("DeRIS-L", "mIoU", (85.72, 86.64, 84.52), (81.28, 83.74, 78.59), (80.01, 81.32), _T, _DERIS, False),
)  # fmt: skip


def published_for(benchmark: str) -> list[Published]:
    """Published rows of a benchmark (name without split); none for scenes, mini_real and prepared stores."""
    return [row for row in (*_refcocom(), *_grefcoco(), *_classic()) if row.benchmark == benchmark]


def split_and_setting(split: str) -> tuple[str, str | None]:
    """Published split and setting of one of our split names: `val_part_only` is ("val", "part")."""
    for suffix, setting in (("_part_only", "part"), ("_object_part", "object and part")):
        if split.endswith(suffix):
            return split.removesuffix(suffix), setting
    return split, None

"""`python -m eval run`: a checkpoint answers benchmarks; predictions first, then scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.progress import progress_of
from eval.score import load_records, origin, print_entry, with_truth
from uniresxx.checkpoints.resolve import Source, find
from uniresxx.data.beside import beside_of
from uniresxx.data.catalog import benchmark_name, find_store
from uniresxx.errors import InputError, MissingPhotoError
from uniresxx.evaluation.chats import evaluate_chats
from uniresxx.evaluation.dialogues import evaluate_dialogues
from uniresxx.evaluation.files import differences, precision_of, read_about
from uniresxx.evaluation.metrics_file import read_metrics, score_file, write_metrics
from uniresxx.evaluation.ranks import Ranks, join
from uniresxx.evaluation.run import evaluate
from uniresxx.evaluation.shares import names_in
from uniresxx.scoring.protocols import protocol_of
from uniresxx.segmenters.base import Segmenter
from uniresxx.types import DecisionRule, Decoding, DecodingMode, ImageRecord

CHATS = 60  # pictures of a benchmark with conversations that are asked a chat of many turns


def run(
    checkpoint: str | Path,
    benchmarks: Sequence[str],
    out: Path,
    *,
    data: Path | None = None,
    images: Path | None = None,
    rule: DecisionRule | None = None,
    decoding_mode: DecodingMode = "generate",
    protocol: str = "strict",
    limit: int | None = None,
    chats: int | None = None,
    batch_images: int = 8,
    fresh: bool = False,
    strict: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    attention: str | None = None,
    device_map: str | None = None,
    quantization: str | None = None,
) -> list[dict[str, Any]]:
    """Answer and score every benchmark into OUT/NAME/SPLIT/predictions.jsonl and OUT/metrics.json.

    The same command continues where it stopped. Under `torchrun` and `deepspeed` the processes share the batches.

    Args:
        checkpoint: run folder, `from_pretrained` folder, hub:OWNER/NAME, or FAMILY:DIR_OR_HUB_ID of a public model.
        benchmarks: each NAME/SPLIT, or the path of a prepared store.
        data: root of the native layouts.
        images: where the photographs of a prepared store lie now.
        rule: how the model decides that nothing is there; its own rule where None.
        decoding_mode: "generate", or "forced": the answer [SEG] is given, so that nothing is rejected.
        limit: only the first images of each benchmark.
        chats: pictures of each benchmark that are asked a chat of many turns; None: CHATS where a benchmark has
            conversations of its own, else none.
        batch_images: images that are answered together.
        fresh: remove earlier evaluations of these benchmarks first.
        strict: stop at the first photo that cannot be read; else its expressions stay unanswered.
        device: where the model computes, as in `load_segmenter`, like the next four.
        dtype: of its weights.
        attention: of its language model.
        device_map: "auto" for a model larger than one GPU.
        quantization: of its language model.

    Returns:
        The entries of metrics.json.

    Raises:
        InputError: wrong names or folders; OUT holds the evaluation of another checkpoint, decoding or precision, or
            files of another origin; another process evaluates the same benchmark into OUT.
    """
    ranks = join()
    request = _Request(checkpoint, tuple(dict.fromkeys(benchmarks)), out, data, images, protocol, limit)
    placement: dict[str, Any] = dict(
        device=device, dtype=dtype, attention=attention, device_map=device_map, quantization=quantization
    )
    console = Console(stderr=True)
    names, source, identity = ranks.on_rank0(lambda: _checked(request, placement, console))
    loaded = ranks.first_on_rank0(lambda: _records_of(request))
    from uniresxx.model.placement import computed_on, placement_of  # imports torch
    from uniresxx.segmenters.load import load_source

    segmenter = ranks.first_on_rank0(lambda: load_source(source, placement_of(**placement)))
    decoding = Decoding(rule=rule, mode=decoding_mode, template=segmenter.question_template)
    computed = computed_on(segmenter)
    work = _Work(segmenter, decoding, identity, computed, batch_images, fresh, strict, ranks, console)
    entries = []
    for place, (benchmark, records) in enumerate(loaded.items()):
        name = names[benchmark]
        replaced = [*names.values()][place:] if fresh else []
        ranks.on_rank0(partial(_refuse_mixing, out, work, replaced))
        path = _answer(work, records, name, out / name, benchmark, data)
        entry = ranks.on_rank0(partial(_score, records, name, path, protocol, data))
        entry |= _talk(work, records, name, path, chats)
        entry |= origin(path, out, data, limit, benchmark)
        entry["training_data"] = trained_on(source.folders[0])
        ranks.on_rank0(partial(write_metrics, out / "metrics.json", [entry]))
        entries.append(entry)
    if ranks.is_main:
        for entry in entries:
            print_entry(entry)
        metrics = out / "metrics.json"
        Console().print(f"metrics: {metrics}", highlight=False, markup=False, soft_wrap=True)
    ranks.leave()
    return entries


@dataclass(frozen=True, slots=True)
class _Request:
    """What is asked for, as `run` got it."""

    checkpoint: str | Path
    benchmarks: Sequence[str]
    out: Path
    data: Path | None
    images: Path | None
    protocol: str
    limit: int | None


@dataclass(frozen=True, slots=True)
class _Work:
    """What is the same for every benchmark."""

    segmenter: Segmenter
    decoding: Decoding
    checkpoint: str
    computed_on: Mapping[str, Any] | None
    batch_images: int
    fresh: bool
    strict: bool
    ranks: Ranks
    console: Console

    def say(self, line: str) -> None:
        """Print a line among those of the progress bar."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _checked(
    request: _Request, placement: Mapping[str, Any], console: Console
) -> tuple[dict[str, str], Source, str]:
    """Refuse what is wrong before the work: (benchmark names, the model's files, their identity).

    The weights are verified here, once for all processes.
    """
    names = {benchmark: benchmark_name(benchmark, request.data) for benchmark in request.benchmarks}
    for name in names.values():
        protocol_of(request.protocol).check(name)
    if len(set(names.values())) < len(names):
        raise InputError(f"{', '.join(names)}: two of them are the same benchmark; name it once")
    metrics = request.out / "metrics.json"
    if metrics.exists():
        read_metrics(metrics)  # refuse another file of this name before the work, not after it
    from uniresxx.model.placement import placement_of  # imports torch

    placement_of(**placement)
    # Resolved once: a run that still trains may save a newer checkpoint and remove this one.
    source = find(request.checkpoint, lambda line: console.print(line, markup=False, highlight=False))
    return names, source, source.identity()


def _records_of(request: _Request) -> dict[str, Sequence[ImageRecord]]:
    found = {}
    for benchmark in request.benchmarks:
        records = load_records(benchmark, request.data, request.limit, request.images)
        found[benchmark] = with_truth(records, request.protocol, request.data)
    return found


def _answer(
    work: _Work,
    records: Sequence[ImageRecord],
    name: str,
    folder: Path,
    benchmark: str,
    data: Path | None,
) -> Path:
    """The answers of one benchmark, behind a progress bar."""
    notes = {"computed_on": work.computed_on}
    try:
        with progress_of(name, work.console) as show:
            return evaluate(
                work.segmenter, records, name, work.decoding, folder, checkpoint=work.checkpoint,
                batch_images=work.batch_images, fresh=work.fresh, strict=work.strict, progress=show, say=work.say,
                notes=notes, precision=precision_of(work.computed_on), ranks=work.ranks,
            )  # fmt: skip
    except MissingPhotoError as error:
        remedy = f"photographs of {benchmark} must lie below --data {data}"
        if find_store(benchmark, data) is not None:
            remedy = f"name the folder of the photographs of {benchmark} with --images DIR"
        raise InputError(f"{error} ({remedy})") from None


def _score(
    records: Sequence[ImageRecord], name: str, path: Path, protocol: str, data: Path | None
) -> dict[str, Any]:
    """The entry of metrics.json of one benchmark, without conversations."""
    return score_file(path, records, name, protocol, beside=beside_of(records, name, data))


def _talk(
    work: _Work, records: Sequence[ImageRecord], name: str, path: Path, chats: int | None
) -> dict[str, Any]:
    """The scores of the conversations and chats of one benchmark, those that there are."""
    if work.decoding.mode != "generate":  # a conversation is what a model says
        return {}
    answered = names_in(path, "expression_id")
    readable = [r for r in records if all(answered[e.expression_id] for e in r.expressions)]
    asked = (work.segmenter, readable, work.decoding, path.parent)
    options: dict[str, Any] = {"batch_images": work.batch_images, "ranks": work.ranks}
    with progress_of(f"{name} conversations", work.console) as show:
        dialogues = evaluate_dialogues(*asked, progress=show, **options)
    if chats is None:
        chats = 0 if dialogues is None else CHATS
    with progress_of(f"{name} chats", work.console) as show:
        talk = evaluate_chats(*asked, pictures=chats, progress=show, **options)
    found = {"dialogues": dialogues, "chats": talk}
    return {key: scores for key, scores in found.items() if scores is not None}


def trained_on(folder: Path) -> list[dict[str, Any]] | None:
    """The data sets a checkpoint was trained on, with the leak guard's mode; None where it does not say."""
    from uniresxx.checkpoints.folders import RECIPE
    from uniresxx.checkpoints.tensors import read_json

    about = read_json(folder / RECIPE) if (folder / RECIPE).is_file() else {}
    return about.get("training_data")


def _refuse_mixing(out: Path, work: _Work, replaced: Sequence[str]) -> None:
    """InputError where OUT holds answers that were made otherwise, so that metrics.json never mixes them.

    Compared are the checkpoint, the decoding and the precision; `replaced` are the benchmarks that --fresh evaluates
    again.
    """
    decoding = work.decoding.describe(work.decoding.rule or work.segmenter.decision_rule)
    now = {"decoding": decoding, "precision": precision_of(work.computed_on)}
    for path in sorted(out.glob("*/*/evaluation.json")):
        if path.parent.relative_to(out).as_posix() in replaced:
            continue
        about = read_about(path.parent) or {}
        if about.get("checkpoint") != work.checkpoint:
            raise InputError(
                f"{path.parent} was answered by checkpoint {about.get('checkpoint')}, not {work.checkpoint}: "
                "use --fresh with every benchmark of this folder, or another --out"
            )
        before = about.get("decoding", {}).get("rule")
        if before != decoding["rule"]:
            raise InputError(
                f"{path.parent} was answered with --rule {before}, not {decoding['rule']}: use --rule {before} or "
                "another --out"
            )
        compared = {
            key: value for key, value in now.items() if value is not None and about.get(key) is not None
        }
        if changes := differences(about, compared):
            raise InputError(
                f"{path.parent} was answered otherwise ({'; '.join(changes)}): use the same options, or another --out"
            )

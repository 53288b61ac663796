"""Several processes evaluate one benchmark: each expression once, the same bytes; bad photos are listed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uniresxx.data.scenes import scene_record
from uniresxx.errors import InputError, MissingPhotoError
from uniresxx.evaluation.chats import evaluate_chats
from uniresxx.evaluation.dialogues import evaluate_dialogues
from uniresxx.evaluation.metrics_file import score_file
from uniresxx.evaluation.ranks import ALONE, LostRankError, Ranks, ranks_of
from uniresxx.evaluation.run import evaluate
from uniresxx.evaluation.shares import open_batches, part_of, put_together
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.types import EVALUATION_TEMPLATE, Decoding, Expression, Granularity, ImageRecord

ROOT = Path(__file__).resolve().parents[1]
H, W = 6, 8
BOX = np.zeros((H, W), bool)
BOX[1:4, 2:6] = True
G = Granularity


def record(k):
    """Picture k has k mod 4 + 1 expressions; its pixels name it."""
    expressions = tuple(
        Expression(
            f"m/val/{k:02}_{i}", f"{k} {i}", G.OBJECT if i else G.NONE, masks.encode(BOX) if i else None
        )
        for i in range(k % 4 + 1)
    )
    return ImageRecord(f"im{k:02}", H, W, expressions, pixels=np.full((H, W, 3), k, np.uint8))


RECORDS = [record(k) for k in range(23)]
NAMES = [[e.expression_id for e in r.expressions] for r in RECORDS]
IDS = [name for names in NAMES for name in names]


class Together:
    """A model whose answers depend on what is answered with them, as rounding makes real ones do."""

    decision_rule = "token"
    question_template = EVALUATION_TEMPLATE
    rle = masks.encode(BOX)

    def __init__(self, stop_after=None):
        self.stop_after, self.calls = stop_after, 0

    def encode_images(self, photos):
        return [int(photo[0, 0, 0]) for photo in photos]

    def answer(self, encoded, texts, decoding, on_text=None):
        self.calls += 1
        if self.stop_after is not None and self.calls > self.stop_after:
            raise KeyboardInterrupt
        score = (sum(encoded) % 97) / 97
        return [Prediction(False, self.rle, "[SEG].", score) for row in texts for _ in row]


class Thread:
    """What `Ranks` is among processes, among threads."""

    def __init__(self, rank, world_size, shared):
        self.rank, self.world_size, self.shared = rank, world_size, shared
        self.is_main = rank == 0

    def on_rank0(self, function):
        try:
            self.shared["barrier"].wait()
            if self.is_main:
                try:
                    self.shared["found"] = function()
                except BaseException:
                    self.shared["barrier"].abort()
                    raise
            self.shared["barrier"].wait()
            return self.shared["found"]
        except threading.BrokenBarrierError:
            raise LostRankError("another process is gone") from None

    def on_all_ranks(self, function):
        return function()


def in_threads(work, world_size):
    """Call `work` with each rank, each in a thread of its own."""
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def run_threads(out, world_size, stops=(), **options):
    """Evaluate with so many ranks; rank r stops before its call number stops[r]. Returns what each rank raised."""
    shared = {"barrier": threading.Barrier(world_size)}
    raised = [None] * world_size

    def work(rank):
        model = Together(dict(enumerate(stops)).get(rank))
        options_of = {"batch_images": 3, "strict": False} | options
        try:
            evaluate(
                model, RECORDS, "m/val", Decoding(), out, ranks=Thread(rank, world_size, shared), **options_of
            )
        except BaseException as error:
            raised[rank] = error
            shared["barrier"].abort()

    in_threads(work, world_size)
    return raised


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The predictions of one process that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    path = evaluate(Together(), RECORDS, "m/val", Decoding(), out, batch_images=3)
    assert [json.loads(line)["expression_id"] for line in path.open()] == IDS
    return path.read_bytes()


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 9])
def test_any_number_of_ranks_writes_the_same_file(tmp_path, whole, world_size):
    assert run_threads(tmp_path, world_size) == [None] * world_size
    assert (tmp_path / "predictions.jsonl").read_bytes() == whole
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"predictions.jsonl", "images.jsonl", "evaluation.json", ".lock"}
    assert len((tmp_path / "images.jsonl").read_text().splitlines()) == 23


@pytest.mark.parametrize("seed", range(12))
def test_interrupted_at_random_and_continued_with_other_numbers(tmp_path, whole, seed):
    rng = random.Random(seed)
    for _ in range(3):
        world_size = rng.randint(1, 3)
        stops = [rng.choice([0, 1, 2, None]) for _ in range(world_size)]
        run_threads(tmp_path, world_size, stops)
        for path in tmp_path.glob("predictions*.jsonl"):  # and the machine stopped in the middle of a write
            if rng.random() < 0.5:
                path.write_bytes(path.read_bytes()[: -rng.randint(0, 200) or None])
    world_size = rng.randint(1, 3)
    assert run_threads(tmp_path, world_size) == [None] * world_size
    assert (tmp_path / "predictions.jsonl").read_bytes() == whole


def test_nothing_that_was_answered_is_lost_or_asked_again(tmp_path):
    """Eight batches over two ranks; rank 1 is stopped before its third."""
    raised = run_threads(tmp_path, 2, [None, 2])
    assert isinstance(raised[1], KeyboardInterrupt) and isinstance(raised[0], LostRankError)
    seen = []
    model = Together()
    evaluate(
        model, RECORDS, "m/val", Decoding(), tmp_path, batch_images=3, progress=lambda *c: seen.append(c)
    )
    assert model.calls == 2 and seen[-1] == (len(IDS), len(IDS)) and 0 < seen[0][0] < len(IDS)


def test_progress_of_rank_0_counts_the_answers_of_all(tmp_path):
    seen = []
    run_threads(tmp_path, 3, progress=lambda *c: seen.append(c))
    done = [d for d, total in seen if total == len(IDS)]
    assert len(done) == len(seen) and done == sorted(done) and done[-1] == len(IDS)


def test_another_batch_size_continues_image_by_image(tmp_path):
    run_threads(tmp_path, 1, [2])
    model = Together()
    evaluate(model, RECORDS, "m/val", Decoding(), tmp_path, batch_images=4)
    assert [json.loads(line)["expression_id"] for line in (tmp_path / "predictions.jsonl").open()] == IDS
    assert model.calls == 5, "images 6 to 22 by fours: 6 7, 8 to 11, …"


def test_a_folder_that_another_process_holds_stops_every_rank(tmp_path):
    class Slow(Together):
        def answer(self, encoded, texts, decoding, on_text=None):
            if not self.calls:
                raised.extend(run_threads(tmp_path, 2))
            return super().answer(encoded, texts, decoding)

    raised = []
    evaluate(Slow(), RECORDS, "m/val", Decoding(), tmp_path, batch_images=3)
    assert "works there" in str(raised[0]) and isinstance(raised[1], LostRankError)


def test_open_batches():
    done = dict.fromkeys((e.expression_id for r in RECORDS[:4] for e in r.expressions), True)
    assert open_batches(NAMES[:6], done, 2, True) == [[], [], [4, 5]]
    done.pop(RECORDS[3].expressions[-1].expression_id)
    assert open_batches(NAMES[:6], done, 2, True) == [[], [2, 3], [4, 5]], "a cut batch is asked as a whole"
    assert open_batches(NAMES[:6], done, 2, False) == [[], [3], [4, 5]]
    done[RECORDS[0].expressions[0].expression_id] = False
    assert open_batches(NAMES[:6], done, 2, True)[0] == [0], "a photo that could not be read is tried again"


def test_put_together_leaves_a_right_file_alone_and_a_failed_one_whole(tmp_path, monkeypatch):
    path = tmp_path / "predictions.jsonl"
    lines = [json.dumps({"expression_id": name}) + "\n" for name in "abc"]
    path.write_text("".join(lines))
    inode = path.stat().st_ino
    put_together(path, "expression_id", "abc")
    assert path.stat().st_ino == inode
    part_of(path, 1).write_text(lines[2].replace("}", ', "new": 1}'))
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError):
        put_together(path, "expression_id", "cba")
    monkeypatch.undo()
    assert path.read_text() == "".join(lines) and part_of(path, 1).exists()
    put_together(path, "expression_id", "cb")
    assert [json.loads(line) for line in path.open()] == [
        {"expression_id": "c", "new": 1},
        {"expression_id": "b"},
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_one_process_needs_no_launcher():
    assert ranks_of({}) == (0, 1) and ranks_of({"RANK": "1", "WORLD_SIZE": "2"}) == (1, 2)
    assert Ranks() == ALONE and ALONE.on_rank0(lambda: 3) == ALONE.first_on_rank0(lambda: 3) == 3
    with pytest.raises(InputError, match="not those of a launcher"):
        ranks_of({"RANK": "2", "WORLD_SIZE": "2"})


# ---------------------------------------------------------------------------------------- unreadable photos


def photographed(folder, damaged=(), missing=()):
    records = []
    for k, one in enumerate(RECORDS):
        path = folder / f"{k}.png"
        Image.fromarray(one.pixels).save(path)
        if k in damaged:
            path.write_bytes(path.read_bytes()[:40])
        if k in missing:
            path.unlink()
        records.append(replace(one, pixels=None, path=str(path)))
    return records


def test_unreadable_photos_are_listed_and_the_rest_is_answered(tmp_path):
    records, said = photographed(tmp_path, (3,), (4,)), []
    options = dict(batch_images=3, strict=False, say=said.append)
    path = evaluate(Together(), records, "m/val", Decoding(), tmp_path / "o", **options)
    lines = [json.loads(line) for line in path.open()]
    assert [line["expression_id"] for line in lines] == IDS
    without = [line["expression_id"] for line in lines if "unanswered" in line]
    assert without == [e.expression_id for r in records[3:5] for e in r.expressions]
    assert len(said) == 2 and "3.png" in said[0] and "4 expressions are not answered" in said[0]
    entry = score_file(path, records, "m/val")
    assert entry["n_expressions"] == len(IDS) - 5 and entry["partial"]["scored"] == len(IDS) - 5
    assert entry["unanswered"]["expressions"] == 5 and entry["unanswered"]["photos"] == 2
    assert entry["overall"]["mIoU"] == 100 and "problems" not in entry


def test_a_photo_that_is_readable_again_is_answered_by_the_same_call(tmp_path):
    records = photographed(tmp_path, missing=(3,))
    options = dict(batch_images=3, strict=False)
    path = evaluate(Together(), records, "m/val", Decoding(), tmp_path / "o", **options)
    Image.fromarray(RECORDS[3].pixels).save(records[3].path)
    model = Together()
    evaluate(model, records, "m/val", Decoding(), tmp_path / "o", **options)
    assert model.calls == 1 and "partial" in (entry := score_file(path, records, "m/val"))
    assert entry["partial"] is None and "unanswered" not in entry
    assert [json.loads(line)["expression_id"] for line in path.open()] == IDS


def test_strict_and_a_missing_folder_stop(tmp_path):
    records = photographed(tmp_path, damaged=(4,))
    with pytest.raises(InputError, match=r"4\.png"):
        evaluate(Together(), records, "m/val", Decoding(), tmp_path / "a", batch_images=3, strict=True)
    assert len((tmp_path / "a/predictions.jsonl").read_text().splitlines()) == 6, "the first batch is kept"
    gone = [replace(r, path=str(tmp_path / "nowhere" / "x.png")) for r in records]
    with pytest.raises(MissingPhotoError):
        evaluate(Together(), gone, "m/val", Decoding(), tmp_path / "b", strict=False)


# ---------------------------------------------------------------------------------------- real processes


PROGRAM = """
import os, random, signal, sys
sys.path.insert(0, {tests!r})
import importlib.util
spec = importlib.util.spec_from_file_location("cases", {file!r})
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
from uniresxx.evaluation.ranks import join
from uniresxx.evaluation.run import evaluate
from uniresxx.types import Decoding
from pathlib import Path

ranks = join()
rng = random.Random(int(sys.argv[2]) * 10 + ranks.rank)
doomed = sys.argv[3] == "kill" and ranks.rank == int(sys.argv[2]) % ranks.world_size

class Mortal(cases.Together):
    def answer(self, *given):
        if doomed and rng.random() < 0.5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(*given)

evaluate(Mortal(), cases.RECORDS, "m/val", Decoding(), Path(sys.argv[1]), batch_images=3, ranks=ranks)
ranks.leave()
"""


@pytest.mark.system
def test_killed_processes_of_a_launcher_continue_with_other_numbers(tmp_path, whole):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(tests=str(ROOT), file=str(Path(__file__).resolve())))
    out = tmp_path / "out"

    def launch(world_size, seed, fate):
        command = [
            *(
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc_per_node={world_size}",
            ),
            *(str(program), str(out), str(seed), fate),
        ]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)

    for world_size, seed in ((2, 0), (3, 1), (1, 2)):
        launch(world_size, seed, "kill")
    done = launch(2, 3, "live")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / "predictions.jsonl").read_bytes() == whole
    assert not list(out.glob("*part*"))


# ---------------------------------------------------------------------------------------- conversations


def talk(out, world_size, stops=()):
    """Dialogues and chats of drawn scenes over so many ranks; what each rank returned or raised."""
    shared = {"barrier": threading.Barrier(world_size)}
    found = [None] * world_size
    records = [scene_record("scenes_easy", "test", k) for k in range(7)]

    def work(rank):
        options = {"batch_images": 2, "ranks": Thread(rank, world_size, shared)}
        model = Together(dict(enumerate(stops)).get(rank))
        model.rle = masks.encode(np.pad(BOX, ((0, 58), (0, 56))))  # at the size of a scene
        model.encode_images = lambda photos: [int(photo.sum()) for photo in photos]
        try:
            dialogues = evaluate_dialogues(model, records, Decoding(), out, **options)
            found[rank] = dialogues, evaluate_chats(model, records, Decoding(), out, pictures=5, **options)
        except BaseException as error:
            found[rank] = error
            shared["barrier"].abort()

    in_threads(work, world_size)
    return found


def lines_of(out):
    return [(out / name).read_bytes() for name in ("dialogues.jsonl", "chats.jsonl")]


def test_ranks_share_conversations_and_chats_and_write_the_same_files(tmp_path):
    [alone] = talk(tmp_path / "one", 1)
    assert isinstance(alone, tuple) and alone[0]["n_dialogues"] and alone[1]["n_pictures"] == 5
    for world_size in (2, 3):
        out = tmp_path / str(world_size)
        assert talk(out, world_size) == [alone] * world_size
        assert lines_of(out) == lines_of(tmp_path / "one") and not list(out.glob("*part*"))


def test_conversations_that_were_stopped_continue_with_another_number_of_ranks(tmp_path):
    [alone] = talk(tmp_path / "one", 1)
    raised = talk(tmp_path / "cut", 3, [None, 3, None])
    assert isinstance(raised[1], KeyboardInterrupt)
    (tmp_path / "cut/evaluation.json").write_text(
        json.dumps({"benchmark_sha256": "", "notes": {"batch_images": 2}})
    )
    assert talk(tmp_path / "cut", 2) == [alone] * 2
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "one")

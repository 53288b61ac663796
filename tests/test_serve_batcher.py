"""What the server's model thread does: which questions go together, what is encoded again, what is kept."""

from __future__ import annotations

import threading
from concurrent.futures import wait

import numpy as np
import pytest
import torch

from uniresxx.model.photo_batches import join_tensors, split_tensors
from uniresxx.serve.batcher import Ask, Batcher
from uniresxx.serve.features import EncodedPhoto, FeatureCache, byte_count
from uniresxx.serve.metrics import Metrics
from uniresxx.testing import ColourSegmenter
from uniresxx.types import Decoding

TYPED = Decoding(template="{expression}")


def photo(colour, size=8):
    pixels = np.full((size, size, 3), 90, dtype=np.uint8)
    pixels[:4, :4] = colour
    return pixels


RED, BLUE = photo((255, 0, 0)), photo((0, 0, 255))


class Watched(ColourSegmenter):
    """Notes the texts of each call; the first call waits until it is told to go on."""

    def __init__(self, faulty=None):
        super().__init__()
        self.calls, self.faulty = [], faulty
        self.began, self.go = threading.Event(), threading.Event()

    def answer(self, encoded, texts, decoding, on_text=None):
        self.calls.append([list(row) for row in texts])
        self.began.set()
        assert self.go.wait(60)
        if any(self.faulty == text for row in texts for text in row):
            raise RuntimeError("cannot")
        return super().answer(encoded, texts, decoding)


def batcher_of(model, max_batch=4, cache_bytes=10**6, window=0.0):
    cache = FeatureCache(cache_bytes)
    return Batcher(model, cache, Metrics(), max_batch=max_batch, window=window), cache


def ask(pixels, *texts, decoding=TYPED):
    return Ask(pixels.tobytes(), pixels, texts, decoding)


def answered(batcher, model, *asks):
    """The first ask keeps the model busy while the others queue up."""
    batcher.submit(asks[0])
    assert model.began.wait(60)
    for one in asks[1:]:
        batcher.submit(one)
    model.go.set()
    wait([one.answer for one in asks], timeout=60)
    batcher.close()
    return [one.answer for one in asks]


def test_questions_that_wait_are_answered_together_photo_by_photo():
    model = Watched()
    batcher, _ = batcher_of(model)
    asks = [ask(RED, "red"), ask(RED, "red"), ask(BLUE, "blue"), ask(RED, "blue"), ask(BLUE, "red")]
    found = [one.result().predictions[0].rejected for one in answered(batcher, model, *asks)]
    assert found == [False, False, False, True, True]
    assert model.calls == [[["red"]], [["red", "blue"], ["blue", "red"]]]
    assert model.encoded == 2  # each photo once; both calls of encode_images had one photo


def test_a_batch_has_a_limit_and_an_ask_stays_whole():
    model = Watched()
    batcher, _ = batcher_of(model, max_batch=3)
    asks = [ask(RED, "red"), ask(RED, "a red", "b red"), ask(RED, "c red", "d red"), ask(RED, *["red"] * 5)]
    answers = answered(batcher, model, *asks)
    assert [sum(map(len, call)) for call in model.calls] == [1, 2, 2, 5]
    assert [len(one.result().predictions) for one in answers] == [1, 2, 2, 5]


def test_questions_asked_in_another_way_are_answered_apart():
    model = Watched()
    batcher, _ = batcher_of(model)
    answered(batcher, model, ask(RED, "red"), ask(RED, "red"), ask(RED, "red", decoding=Decoding()))
    assert model.asked[-1][2] == Decoding().template and len(model.calls) == 3


def test_one_bad_question_does_not_spoil_the_others():
    model = Watched(faulty="bad")
    batcher, _ = batcher_of(model)
    good, bad, last = answered(batcher, model, ask(RED, "red"), ask(RED, "bad"), ask(BLUE, "blue"))
    assert not good.result().predictions[0].rejected and not last.result().predictions[0].rejected
    with pytest.raises(RuntimeError, match="cannot"):
        bad.result()


def test_closing_answers_what_waits():
    model = Watched()
    batcher, _ = batcher_of(model, max_batch=1)
    asks = [ask(RED, "red") for _ in range(5)]
    assert all(one.done() for one in answered(batcher, model, *asks))


def test_a_first_question_waits_only_while_others_are_on_their_way():
    model = Watched()
    model.go.set()
    batcher, _ = batcher_of(model, window=60.0)
    alone = ask(RED, "red")
    batcher.submit(alone)
    assert alone.answer.result(timeout=30).predictions  # no wait of 60 seconds
    first, second = ask(RED, "red"), ask(BLUE, "blue")
    with batcher.coming():
        batcher.submit(first)
        batcher.submit(second)
    wait([first.answer, second.answer], timeout=30)
    batcher.close()
    assert model.calls == [[["red"]], [["red"], ["blue"]]]


def test_a_cancelled_question_is_not_answered():
    model = Watched()
    batcher, _ = batcher_of(model)
    first, second = ask(RED, "red"), ask(RED, "never")
    batcher.submit(first)
    assert model.began.wait(60)
    batcher.submit(second)
    assert second.answer.cancel()
    model.go.set()
    batcher.close()
    assert [text for text, _, _ in model.asked] == ["red"]


def test_the_cache_keeps_what_was_used_last_within_its_bytes():
    cache = FeatureCache(100)
    kept = {name: EncodedPhoto([np.zeros(40, np.uint8)], 1, 1) for name in (b"a", b"b", b"c")}
    cache.put(b"a", kept[b"a"])
    cache.put(b"b", kept[b"b"])
    assert cache.get(b"a") is kept[b"a"]
    cache.put(b"c", kept[b"c"])
    assert cache.get(b"b") is None and cache.get(b"a") and cache.get(b"c")
    assert (len(cache), cache.used_bytes) == (2, 80)
    cache.put(b"c", kept[b"c"])
    cache.put(b"large", EncodedPhoto(np.zeros(101, np.uint8), 1, 1))
    assert (len(cache), cache.used_bytes) == (2, 80) and cache.get(b"large") is None


def test_an_evicted_photo_is_encoded_again():
    model = Watched()
    batcher, cache = batcher_of(model, cache_bytes=0)
    answered(batcher, model, ask(RED, "red"), ask(RED, "red"))
    assert model.encoded == 2 and len(cache) == 0


def test_bytes_of_a_tree_are_counted():
    tree = ([torch.zeros(2, 3), np.zeros(5, np.uint8)], (torch.zeros(1, dtype=torch.uint8), "x", None, 3))
    assert byte_count(tree) == 24 + 5 + 1
    assert byte_count(EncodedPhoto(tree, 1, 1)) == 30


def test_trees_of_photos_are_joined_and_split():
    tree = [torch.arange(6.0).view(3, 2), (torch.arange(3), torch.ones(3, 1, 1))]
    parts = split_tensors(tree, 3)
    assert [part[0].tolist() for part in parts] == [[[0, 1]], [[2, 3]], [[4, 5]]]
    assert parts[1][0].untyped_storage().nbytes() == 8  # a part does not keep the whole alive
    joined = join_tensors([parts[2], parts[0]])
    assert joined[0].tolist() == [[4, 5], [0, 1]] and joined[1][0].tolist() == [2, 0]

"""Count what is asked of each record, and collect texts, without parsing whole records.

Asked are a record's expressions; of a record without any, its conversations: captions and other plain answers.
A prepared store is read column by column; other records are looped over.
Shapes: N records, 5 columns: 4 granularities, and conversations of records without expressions; R rows of a record
batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uniresxx.data.mixture.data_log import ASKED, TEXTS
from uniresxx.data.store.read import StoreRecords
from uniresxx.types import Granularity, ImageRecord


def count_asked(records: Sequence[ImageRecord]) -> np.ndarray:
    """What each record is asked, int32 (N, 5) in the order of ASKED.

    Raises:
        InputError: the store is damaged; every record batch that is read is checked.
    """
    counts_N5 = np.zeros((len(records), len(ASKED)), dtype=np.int32)
    if isinstance(records, StoreRecords):
        for places, rows, batch in _batches(records):
            counts_N5[places] = _count_batch(batch)[rows]
        return counts_N5
    for number, record in enumerate(records):
        for expression in record.expressions:
            counts_N5[number, ASKED.index(expression.granularity)] += 1
        if not record.expressions:
            counts_N5[number, ASKED.index(TEXTS)] = len(record.dialogues)
    return counts_N5


def texts_of_record(record: ImageRecord) -> list[str]:
    """The texts of its expressions; of a record without any, the questions and answers of its conversations."""
    if record.expressions:
        return [expression.text for expression in record.expressions]
    turns = [turn for dialogue in record.dialogues for turn in dialogue.turns]
    return [text for turn in turns for text in (turn.question, turn.answer) if text]


def box_kinds(records: Sequence[ImageRecord]) -> set[str]:
    """Kinds ("object", "part") of the boxes that records bring with them; kinds without a box do not count."""
    if not isinstance(records, StoreRecords):
        return {kind for record in records for kind, boxes in record.boxes.items() if len(boxes)}
    kinds: set[str] = set()
    for _, _, batch in _batches(records):
        boxes = batch.column("boxes").flatten()
        filled = pc.greater(pc.list_value_length(boxes.field("xyxy")), 0)
        kinds |= set(boxes.field("kind").filter(filled).unique().to_pylist())
    return kinds


def texts_of(records: Sequence[ImageRecord], at_most: int) -> list[str]:
    """Texts of what is asked. Of a store with over `at_most`, only about so many, evenly spaced."""
    if not isinstance(records, StoreRecords):
        return [text for record in records for text in texts_of_record(record)]
    texts: list[str] = []
    step = max(1, -(-int(count_asked(records).sum()) // at_most))
    for number, (_, rows, batch) in enumerate(_batches(records)):
        if number % step == 0:
            column = batch.column("expressions")
            ends, values = column.offsets.to_numpy(), column.values.field("text").to_pylist()
            texts += [text for row in rows for text in values[ends[row] : ends[row + 1]]]
            without = [row for row in rows if ends[row] == ends[row + 1]]
            for dialogues in batch.column("dialogues").take(pa.array(without, type=pa.int64())).to_pylist():
                turns = [turn for dialogue in dialogues for turn in dialogue["turns"]]
                texts += [text for turn in turns for text in (turn["question"], turn["say"]) if text]
    return texts


def _batches(records: StoreRecords) -> Iterator[tuple[np.ndarray, np.ndarray, pa.RecordBatch]]:
    """(places in `records`, their rows in the batch, batch) for each record batch that holds some of them."""
    rows, store = np.asarray(records.rows), records.store
    for number, span in store.batches():
        places = np.flatnonzero((rows >= span.start) & (rows < span.stop))
        if places.size:
            yield places, rows[places] - span.start, store.batch(number)


def _count_batch(batch: pa.RecordBatch) -> np.ndarray:
    column = batch.column("expressions")
    ends, values = column.offsets.to_numpy(), column.values.field("granularity")
    counts_R5 = np.zeros((batch.num_rows, len(ASKED)), dtype=np.int32)
    for granularity in Granularity:
        matches = pc.equal(values, str(granularity)).to_numpy(zero_copy_only=False)
        total = np.concatenate(([0], np.cumsum(matches)))
        counts_R5[:, ASKED.index(granularity)] = total[ends[1:]] - total[ends[:-1]]
    dialogues_R = np.diff(batch.column("dialogues").offsets.to_numpy())
    counts_R5[:, ASKED.index(TEXTS)] = np.where(np.diff(ends) == 0, dialogues_R, 0)
    return counts_R5

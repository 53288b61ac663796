"""Count expressions by granularity, and collect texts, without parsing whole records.

A prepared store is read column by column; other records are looped over.
Shapes: N records, 4 granularities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uniresxx.data.store.read import StoreRecords
from uniresxx.types import Granularity, ImageRecord

GRANULARITIES = tuple(Granularity)


def count_granularities(records: Sequence[ImageRecord]) -> np.ndarray:
    """Expressions of each record by granularity, int32 (N, 4) in the order of GRANULARITIES.

    Raises:
        InputError: the store is damaged; every record batch that is read is checked.
    """
    counts_N4 = np.zeros((len(records), len(GRANULARITIES)), dtype=np.int32)
    if isinstance(records, StoreRecords):
        for places, rows, batch in _batches(records):
            counts_N4[places] = _count_batch(batch)[rows]
        return counts_N4
    for number, record in enumerate(records):
        for expression in record.expressions:
            counts_N4[number, GRANULARITIES.index(expression.granularity)] += 1
    return counts_N4


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
    """Texts of the expressions. Of a store with over `at_most`, only about so many, evenly spaced."""
    if not isinstance(records, StoreRecords):
        return [expression.text for record in records for expression in record.expressions]
    texts: list[str] = []
    step = max(1, -(-int(count_granularities(records).sum()) // at_most))
    for number, (_, rows, batch) in enumerate(_batches(records)):
        if number % step == 0:
            column = batch.column("expressions")
            ends, values = column.offsets.to_numpy(), column.values.field("text").to_pylist()
            texts += [text for row in rows for text in values[ends[row] : ends[row + 1]]]
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
    counts = np.zeros((batch.num_rows, len(GRANULARITIES)), dtype=np.int32)
    for place, granularity in enumerate(GRANULARITIES):
        matches = pc.equal(values, str(granularity)).to_numpy(zero_copy_only=False)
        total = np.concatenate(([0], np.cumsum(matches)))
        counts[:, place] = total[ends[1:]] - total[ends[:-1]]
    return counts

"""What records hold, counted without parsing them one by one: expressions by granularity, texts; boxes of one.

A prepared store is read column by column; other records are looped over. N records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from uniresxx.types import Granularity, ImageRecord

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = tuple(Granularity)


def kinds_of(records: Sequence[ImageRecord]) -> np.ndarray:
    """Expressions of each record by granularity, int32 (N, 4) in the order of KINDS.

    InputError where a store is damaged: every record batch it reads is checked.
    """
    from uniresxx.data.store.read import StoreRecords

    counts_N4 = np.zeros((len(records), len(KINDS)), dtype=np.int32)
    if isinstance(records, StoreRecords):
        for places, wanted, batch in _batches(records):
            counts_N4[places] = _kinds_of_batch(batch)[wanted]
        return counts_N4
    for row, record in enumerate(records):
        for item in record.expressions:
            counts_N4[row, KINDS.index(item.granularity)] += 1
    return counts_N4


def texts_of(records: Sequence[ImageRecord], most: int) -> list[str]:
    """Texts of all expressions; of evenly spaced stretches of the records where there are over `most`."""
    from uniresxx.data.store.read import StoreRecords

    if not isinstance(records, StoreRecords):
        return [item.text for record in records for item in record.expressions]
    texts: list[str] = []
    step = max(1, -(-int(kinds_of(records).sum()) // most))
    for turn, (_, wanted, batch) in enumerate(_batches(records)):
        if turn % step == 0:
            column = batch.column("expressions")
            ends, values = column.offsets.to_numpy(), column.values.field("text").to_pylist()
            texts += [text for row in wanted for text in values[ends[row] : ends[row + 1]]]
    return texts


def _batches(records: Sequence[ImageRecord]) -> Iterator[tuple[np.ndarray, np.ndarray, pa.RecordBatch]]:
    """(places among the records, rows of the batch, batch) for each record batch that has some of them."""
    rows, store = np.asarray(records.rows), records.store  # type: ignore[attr-defined]
    for number, span in store.batches():
        places = np.flatnonzero((rows >= span.start) & (rows < span.stop))
        if places.size:
            yield places, rows[places] - span.start, store.batch(number)


def _kinds_of_batch(batch: pa.RecordBatch) -> np.ndarray:
    import pyarrow.compute as pc

    column = batch.column("expressions")
    ends, kinds = column.offsets.to_numpy(), column.values.field("granularity")
    counts = np.zeros((batch.num_rows, len(KINDS)), dtype=np.int32)
    for place, kind in enumerate(KINDS):
        here = pc.equal(kinds, str(kind)).to_numpy(zero_copy_only=False)
        total = np.concatenate(([0], np.cumsum(here)))
        counts[:, place] = total[ends[1:]] - total[ends[:-1]]
    return counts

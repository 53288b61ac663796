"""xIoU: whether a wrong answer to a part is another part of the object, or the whole object.

Our definition (we know of no other). An answer to a part is wrong if it is not rejected, has pixels, and its IoU with
the part is at most 0.5. Its xIoU is the largest of its IoUs with the whole object and with each other part of it. A
model that answers with the object whatever part is asked has 100; one that points elsewhere has 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.beside import PartOf
from uniresxx.scoring.metrics import IOU_UNITS, percent
from uniresxx.scoring.protocols.base import areas
from uniresxx.types import RLE

WRONG = 0.5  # IoU with the part at or below which an answer is wrong


def count_part(part: RLE, of: PartOf, given: Prediction) -> Counter[str]:
    """What one answer to a part adds to the sums; shares are in units of 1 / IOU_UNITS.

    Args:
        part: the true mask.
        of: what the part belongs to.
        given: the answer.
    """
    counts = Counter(parts=1)
    answer = None if given.rejected else given.rle
    if answer is None or masks.area(answer) == 0 or areas(part, answer).iou > WRONG:
        return counts
    whole = areas(of.whole, answer)
    sibling = max((areas(other, answer).iou for other in of.siblings), default=0.0)
    counts.update(
        wrong=1,
        cross=_units(max(whole.iou, sibling)),
        whole=_units(whole.iou),
        outside=_units(1 - whole.common / whole.predicted),
    )
    if of.siblings:
        counts.update(wrong_with_siblings=1, sibling=_units(sibling))
    return counts


def _units(share: float) -> int:
    return round(share * IOU_UNITS)


def part_scores(sums: Mapping[str, int]) -> dict[str, Any] | None:
    """Means over wrong answers in percent, None where there is none; None alone where no part's object is known.

    `xIoU`; of it `sibling` and `object`, the mean IoUs with the nearest other part (where the object has any that is
    known) and with the whole object; `outside`, the mean share of an answer's pixels that lie outside the object.
    """
    if not sums["parts"]:
        return None
    wrong = sums["wrong"]
    return {
        "xIoU": percent(sums["cross"], wrong * IOU_UNITS),
        "sibling": percent(sums["sibling"], sums["wrong_with_siblings"] * IOU_UNITS),
        "object": percent(sums["whole"], wrong * IOU_UNITS),
        "outside": percent(sums["outside"], wrong * IOU_UNITS),
        "n_wrong": wrong,
        "n_parts": sums["parts"],
    }

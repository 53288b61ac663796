"""Segmentation from words as a data set of VLMEvalKit. `python -m eval.suites.vlmevalkit` adds it to the toolkit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from vlmeval.dataset.image_base import ImageBaseDataset
from vlmeval.smp import load

from eval.suites.tasks import BENCHMARKS, benchmark_of, documents, photo, records_of, score_predictions
from uniresxx.files import png_bytes, write_atomic, write_json


class MaskDataset(ImageBaseDataset):
    """One question per expression: a photo and the expression; the answer is JSON with masks."""

    TYPE = "VQA"

    @classmethod
    def supported_datasets(cls) -> list[str]:
        """The tasks of `eval.suites.tasks`."""
        return list(BENCHMARKS)

    def load_data(self, dataset: str) -> pd.DataFrame:
        """The questions, from the folder that UNIRESXX_DATA names. The toolkit reads a column `image` as pixels."""
        rows = [
            {
                "index": number,
                "question": row["text"],
                "image_path": self._path(row),
                "expression_id": row["expression_id"],
            }
            for number, row in enumerate(documents(benchmark_of(dataset)))
        ]
        return pd.DataFrame(rows)

    def _path(self, row: Mapping[str, Any]) -> str:
        """The photo as a file; one that lies inside another file or was drawn is written below the toolkit's root."""
        record = records_of(row["benchmark"])[row["image"]]
        if record.path is not None:
            return record.path
        place = Path(self.img_root) / f"{row['image']}.png"
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(place, png_bytes(Image.fromarray(photo(row))))
        return str(place)

    def evaluate(self, eval_file: str, **judge: Any) -> dict[str, float]:
        """Scores in percent, those of `python -m eval score`.

        Args:
            eval_file: the toolkit's table with a column `prediction`; beside it, under the same name, come
                .predictions.jsonl and .scores.json.
            judge: options for a judging model; none is asked.
        """
        table = load(eval_file)
        answers = dict(zip(table["expression_id"], table["prediction"].map(str), strict=True))
        path = Path(eval_file).with_suffix(".predictions.jsonl")
        scores = score_predictions(benchmark_of(self.dataset_name), answers, path)
        write_json(Path(eval_file).with_suffix(".scores.json"), scores)
        return scores

    @classmethod
    def report_primary_metric(cls, metrics: Mapping[str, float] | None) -> dict[str, float]:
        """gIoU, which counts every question; the toolkit alone would take the first name with "acc" in it."""
        return {"gIoU": metrics["gIoU"]} if metrics else {}

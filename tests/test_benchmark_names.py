"""Every benchmark that the project evaluates opens by its NAME/SPLIT, and a missing folder is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from uniresxx.cli.data import prepare
from uniresxx.data.catalog import benchmark_name, known_benchmarks, load_benchmark, open_benchmark
from uniresxx.errors import InputError
from uniresxx.scoring.protocols import STRICT

MINI_REAL = Path(__file__).resolve().parents[1].parent / "shared" / "mini_real"
BENCHMARKS = (
    "refcoco/val", "refcoco/testA", "refcoco/testB", "refcoco+/val", "refcoco+/testA", "refcoco+/testB",
    "refcocog_umd/val", "refcocog_umd/test", "refcocog_google/val", "grefcoco/val", "grefcoco/testA",
    "grefcoco/testB", "refcocom/val_part_only", "refcocom/testA_part_only", "refcocom/testB_part_only",
    "refcocom/val_object_part", "refcocom/testA_object_part", "refcocom/testB_object_part", "refcoco_m/val",
    "gseval/val", "reasonseg/val", "reasonseg/test", "mmr/val", "mmr/test_mixed", "mmr/test_obj_only",
    "mmr/test_part_only", "instructpart/test", "scenes/val", "scenes/test", "scenes_easy/val", "scenes_easy/test",
)  # fmt: skip


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_known_and_its_missing_files_are_named(name: str, tmp_path: Path) -> None:
    assert name in known_benchmarks()
    STRICT.check(name)
    if name.startswith("scenes"):
        return
    with pytest.raises(InputError) as found:
        load_benchmark(name, tmp_path)
    assert str(tmp_path) in str(found.value) and "unknown benchmark" not in str(found.value)
    with pytest.raises(InputError, match="--data"):
        load_benchmark(name, None)


@pytest.mark.skipif(not MINI_REAL.is_dir(), reason="the small real data set is not here")
@pytest.mark.parametrize("name", ["refcoco/val", "grefcoco/val", "refcocom/val_part_only"])
def test_the_sets_that_are_here_open_natively_and_as_a_store(name: str, tmp_path: Path) -> None:
    native = load_benchmark(name, MINI_REAL)
    assert prepare.main([name, "--root", str(MINI_REAL), "--out", str(tmp_path / "mine")]) == 0
    store = open_benchmark(str(tmp_path / "mine"), None)
    assert benchmark_name(str(tmp_path / "mine"), None) == name
    ids = [e.expression_id for record in native for e in record.expressions]
    assert ids and ids == [e.expression_id for record in store for e in record.expressions]

"""NAME/SPLIT -> ImageRecords: the names of data in training, evaluation and on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniresxx.data import compose
from uniresxx.data.readers import (
    cris,
    cris_layout,
    densepose,
    evaluation_sets,
    hub,
    jsonl,
    llava,
    paco,
    partimagenet,
    pascal_part,
    psalm,
    reasoning,
    refer_layout,
    region_captions,
    semantic,
)
from uniresxx.data.readers.grefcoco import read_grefcoco
from uniresxx.data.readers.refcoco import REFCOCO, UNC_SPLITS, read_refcoco
from uniresxx.data.readers.refcocom import known_stems, read_refcocom
from uniresxx.data.store.folder import store_named
from uniresxx.errors import InputError
from uniresxx.types import ImageRecord

if TYPE_CHECKING:
    from uniresxx.data.store.read import Store

SCENES = ("scenes", "scenes_easy")
PARTS = tuple(f"{split}_{kind}" for split in UNC_SPLITS[1:] for kind in ("part_only", "object_part"))
Reader = Callable[[Path, str], Iterable[ImageRecord]]


def _read_mini_real(data: Path, split: str) -> list[ImageRecord]:
    return merge_records(read_grefcoco(data, split), read_refcocom(data, f"{split}_part_only"))


def _read_mres(data: Path, split: str) -> Iterator[ImageRecord]:
    return jsonl.read_jsonl(data, split, *jsonl.MRES_FOLDERS, prefix="mres32m")


# data set -> (reader, splits); sets as others converted them are <layout>_<set>
DATA_SETS: dict[str, tuple[Reader, tuple[str, ...]]] = {
    **{
        name: (partial(read_refcoco, dataset=folder, split_by=split_by, prefix=name), splits)
        for name, (folder, split_by, splits) in REFCOCO.items()
    },
    "grefcoco": (read_grefcoco, UNC_SPLITS),
    "refcocom": (read_refcocom, PARTS),  # the lists its papers report; others are found in the data folder
    "mini_real": (_read_mini_real, UNC_SPLITS),
    **{f"cris_{name}": (partial(cris.read_cris, dataset=name), REFCOCO[name][2]) for name in cris.SETS},
    **{
        f"psalm_{name}": (partial(psalm.read_psalm, dataset=name), REFCOCO.get(name, REFCOCO["refcoco"])[2])
        for name in psalm.SETS
    },
    **{
        f"jxu124_{name}": (partial(hub.read_jxu124, dataset=name), tuple(splits))
        for name, (_, splits) in hub.JXU124.items()
    },
    "jxu124_benchmark": (
        hub.read_jxu124_benchmark,
        ("refcoco_unc_val",),
    ),  # others are found in the data folder
    **{
        f"lmms_{name}": (partial(hub.read_lmms, dataset=name), tuple(splits))
        for name, (_, splits) in hub.LMMS.items()
    },
    **{name: (partial(llava.read_llava, dataset=name), ("train",)) for name in llava.SETS},
    "visual_genome": (region_captions.read_visual_genome, ("train",)),
    # other splits are found in the data folder
    "region_captions": (region_captions.read_region_captions, ("train",)),
    # parts
    "composed_parts": (compose.read_composed, ("train",)),
    "paco": (paco.read_paco, paco.SPLITS),
    "densepose": (densepose.read_densepose, densepose.SPLITS),
    "pascal_part": (pascal_part.read_pascal_part, pascal_part.SPLITS),
    "partimagenet": (partimagenet.read_partimagenet, partimagenet.SPLITS),
    "partimagenetpp": (partimagenet.read_partimagenet_plus, ("train",)),
    "mres32m": (_read_mres, ("train",)),  # others are found in the data folder
    # one label per pixel
    "ade20k": (semantic.read_ade20k, tuple(semantic.ADE_SPLITS)),
    "cocostuff": (semantic.read_cocostuff, tuple(semantic.STUFF_SPLITS)),
    # questions that need reasoning
    "reasonseg": (reasoning.read_reasonseg, reasoning.REASONSEG_SPLITS),
    "mmr": (reasoning.read_mmr, reasoning.MMR_SPLITS),
    "instructpart": (reasoning.read_instructpart, tuple(reasoning.INSTRUCT_SPLITS)),
    # to measure on
    "refcoco_m": (evaluation_sets.read_refcoco_m, evaluation_sets.REFCOCO_M_SPLITS),
    "gseval": (evaluation_sets.read_gseval, evaluation_sets.GSEVAL_SPLITS),
    **{
        name: (partial(refer_layout.read_refer, folder=folder, split_by=split_by, prefix=name), splits)
        for name, (folder, split_by, splits) in refer_layout.NAMED.items()
    },
}
# any set of a known layout: LAYOUT:FOLDER instead of a name; its splits are read from the folder
LAYOUTS = ("refer", "cris", "jsonl")


def known_benchmarks() -> list[str]:
    """Every NAME/SPLIT that is known without a data folder."""
    return [f"{name}/{split}" for name in (*DATA_SETS, *SCENES) for split in splits_of(name, None)]


def scene_splits(preset: str) -> list[str]:
    """Splits of drawn scenes that have a fixed number of expressions (train is drawn without end)."""
    from uniresxx.data.scenes.presets import preset_of

    return [split for split in preset_of(preset).splits if split != "train"]


def find_store(name: str, data: Path | None) -> tuple[Path, str | None] | None:
    """(folder, split or None) of the prepared store that a name means; None where it means none.

    A name is the path of a store, or of one below `data` or `data/stores`, with /SPLIT behind it or not. A
    store is taken before a native layout of that name; names of scenes always mean the drawn ones.
    """
    if name.partition("/")[0] in SCENES:
        return None
    below = () if data is None else (data / "stores", data)
    for place in (Path(), *below):
        found = store_named(str(place / name))
        if found is not None:
            return found
    return None


def benchmark_name(name: str, data: Path | None) -> str:
    """NAME/SPLIT under which results of a benchmark are stored; for a store, its data set and split."""
    found = find_store(name, data)
    if found is None:
        return name
    from uniresxx.data.store.read import Store

    store = Store.open(found[0])
    return f"{store.name.partition('/')[0]}/{_split_of(store, found[1])}"


def _split_of(store: Store, split: str | None) -> str:
    """The split that was named, else the only one; InputError lists them."""
    if split is None and len(store.splits) != 1:
        raise InputError(f"{store.path}: name a split, as in {store.path}/{store.splits[0]}; it has "
                         f"{', '.join(store.splits)}")  # fmt: skip
    return split or store.splits[0]


def open_benchmark(name: str, data: Path | None, images: Path | None = None) -> Sequence[ImageRecord]:
    """Records of NAME/SPLIT, from its prepared store where there is one (find_store), else as load_benchmark.

    Records of a store are parsed one by one as they are asked for; `images` is where its photographs lie now.
    """
    found = find_store(name, data)
    if found is None:
        return load_benchmark(name, data)
    from uniresxx.data.store.read import Store

    store = Store.open(found[0], images)
    return store.records(_split_of(store, found[1]))


def load_benchmark(name: str, data: Path | None) -> Sequence[ImageRecord]:
    """As `stream_benchmark`, all records at once."""
    records = stream_benchmark(name, data)
    return records if isinstance(records, Sequence) else list(records)


def stream_benchmark(name: str, data: Path | None) -> Iterable[ImageRecord]:
    """Records of NAME/SPLIT from the native layouts under `data` (not needed for scenes), or of a store's path.

    Sets that may be larger than memory (JSONL, label maps) come one by one: they can be passed over once.

    Raises InputError: an unknown name (lists the known ones), no data folder, and all that the readers
    refuse.
    """
    dataset, _, split = name.partition("/")
    if dataset in SCENES and split:
        from uniresxx.data.scenes import benchmark_records

        return benchmark_records(dataset, split)
    layout, colon, _ = dataset.partition(":")
    if dataset not in (*DATA_SETS, *SCENES) and not (colon and layout in LAYOUTS):
        if find_store(name, None) is not None:
            return open_benchmark(name, None)
        raise InputError(
            f"unknown benchmark {name!r}: no prepared store, and no data set of that name; "
            f"known: {_known_sets()}"
        )
    if not split:
        raise InputError(
            f"{name} needs a split: {', '.join(f'{name}/{item}' for item in splits_of(dataset, data))}"
        )
    if data is None:
        raise InputError(f"{name} is read from disk: give the root of the native layout with --data DIR")
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; --data DIR must be the root of the native layout")
    return _reader_of(dataset)(data, split)


def _reader_of(dataset: str) -> Reader:
    """The reader of a data set or of LAYOUT:FOLDER."""
    if dataset in DATA_SETS:
        return DATA_SETS[dataset][0]
    layout, _, name = dataset.partition(":")
    if layout == "refer":
        folder, split_by = refer_layout.named_folder(name)
        return partial(refer_layout.read_refer, folder=folder, split_by=split_by, prefix=dataset)
    if layout == "cris":
        return partial(cris_layout.read_cris_layout, folder=name)
    return lambda data, split: jsonl.read_jsonl(data, split, name, prefix=dataset)


def merge_records(*sets: list[ImageRecord]) -> list[ImageRecord]:
    """One record per image from several sets, in order of first appearance; the ids keep their source.

    Raises InputError where two sets disagree about an image's size.
    """
    merged: dict[str, ImageRecord] = {}
    for record in (item for records in sets for item in records):
        known = merged.get(record.image_id)
        if known is None:
            merged[record.image_id] = record
            continue
        if (known.height, known.width) != (record.height, record.width):
            raise InputError(
                f"image {record.image_id} is {known.height} x {known.width} in one data set "
                f"and {record.height} x {record.width} in another"
            )
        left_out = known.source.get("left_out", ()) + record.source.get("left_out", ())
        merged[record.image_id] = replace(
            known,
            expressions=known.expressions + record.expressions,
            boxes={**record.boxes, **known.boxes},
            source=_merged(known.source, record.source) | ({"left_out": left_out} if left_out else {}),
        )
    return list(merged.values())


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The sources of one photo in two sets: the first wins, but both licences apply."""
    licences = dict.fromkeys(str(source["licence"]) for source in (first, second) if "licence" in source)
    return {**second, **first, **({"licence": " | ".join(licences)} if licences else {})}


def splits_of(dataset: str, data: Path | None) -> list[str]:
    """Splits of a data set; InputError where it is unknown."""
    if dataset in SCENES:
        return scene_splits(dataset)
    if dataset == "refcocom" and data is not None:
        return known_stems(data)
    if dataset == "jxu124_benchmark" and data is not None:
        return hub.benchmark_splits(data)
    if dataset == "region_captions" and data is not None:
        return region_captions.splits_there(data)
    if dataset == "mres32m" and data is not None:
        return jsonl.jsonl_splits(data, *jsonl.MRES_FOLDERS)
    layout, colon, name = dataset.partition(":")
    if colon and layout in LAYOUTS:
        return _splits_of_layout(layout, name, data)
    if dataset not in DATA_SETS:
        raise InputError(f"unknown data set {dataset!r}; known: {_known_sets()}")
    return list(DATA_SETS[dataset][1])


def _splits_of_layout(layout: str, folder: str, data: Path | None) -> list[str]:
    if data is None:
        raise InputError(f"{layout}:{folder} is read from disk: give the folder above it with --data DIR")
    if layout == "refer":
        return refer_layout.splits_there(data, folder)
    if layout == "cris":
        return cris_layout.cris_layout_splits(data, folder)
    return jsonl.jsonl_splits(data, folder)


def _known_sets() -> str:
    return ", ".join((*DATA_SETS, *SCENES, *(f"{layout}:FOLDER" for layout in LAYOUTS)))

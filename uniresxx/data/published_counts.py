"""Counts of the referring-expression sets as published, to hold beside what a reader found.

`refs` are object records, `sentences` expressions. Sources: refs from CRIS's data set table and the cards on the
Hub; images from the TFDS page of ref_coco and jxu124/refcoco-benchmark; sentences from the FlagEval page,
Kangheng/refcocop and the sums of the splits. A number named in `recalled` is commonly quoted but confirmed by
none of these: a difference to it means little. None: nothing published is known.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PublishedCount:
    """What is published about one split (`all`: the whole set, where its parts do not say it)."""

    dataset: str  # as in benchmark names: refcoco, refcocog_umd, …
    split: str
    images: int | None
    refs: int | None
    sentences: int | None
    recalled: tuple[str, ...] = ()  # fields whose number no source confirms
    note: str = ""

    @property
    def only_objects(self) -> bool:
        """Whether every expression of the set points at one object."""
        return self.dataset.startswith(("refcoco_", "refcoco+", "refcocog_")) or self.dataset == "refcoco"


SENTENCES, IMAGES = ("sentences",), ("images",)
BOTH = IMAGES + SENTENCES

PUBLISHED = (
    PublishedCount("refcoco", "train", 16_994, 42_404, 120_624),
    PublishedCount("refcoco", "val", 1_500, 3_811, 10_834),
    PublishedCount("refcoco", "testA", 750, 1_975, 5_657),
    PublishedCount("refcoco", "testB", 750, 1_810, 5_095),
    PublishedCount("refcoco", "all", 19_994, 50_000, 142_210, note="papers print 142,209 sentences"),
    PublishedCount("refcoco_google", "train", 19_213, 40_000, None),
    PublishedCount("refcoco_google", "val", 4_559, 5_000, None),
    PublishedCount("refcoco_google", "test", 4_527, 5_000, None),
    PublishedCount("refcoco+", "train", 16_992, 42_278, 120_191, SENTENCES),
    PublishedCount("refcoco+", "val", 1_500, 3_805, 10_758),
    PublishedCount("refcoco+", "testA", 750, 1_975, 5_726),
    PublishedCount("refcoco+", "testB", 750, 1_798, 4_889),
    PublishedCount("refcoco+", "all", 19_992, 49_856, 141_564, note="from a page about the data"),
    PublishedCount("refcocog_umd", "train", 21_899, 42_226, 80_512, SENTENCES),
    PublishedCount("refcocog_umd", "val", 1_300, 2_573, 4_896, SENTENCES),
    PublishedCount("refcocog_umd", "test", 2_600, 5_023, 9_602, SENTENCES),
    PublishedCount("refcocog_umd", "all", 25_799, 49_822, 95_010),
    PublishedCount("refcocog_google", "train", 24_698, 44_822, 85_474, SENTENCES),
    PublishedCount(
        "refcocog_google", "val", 4_650, 5_000, 9_536, SENTENCES, "Google's own release has 104,560 in all"
    ),
    PublishedCount("grefcoco", "train", 16_994, None, 209_344, BOTH),
    PublishedCount("grefcoco", "val", 1_500, None, 16_870, BOTH),
    PublishedCount("grefcoco", "testA", 750, None, 18_712, BOTH),
    PublishedCount("grefcoco", "testB", 750, None, 14_933, BOTH),
    PublishedCount(
        "grefcoco",
        "all",
        19_994,
        60_287,
        278_232,
        note="as its paper says (80,022 multi, 32,202 without a target); the released files hold 259,859",
    ),
    *(
        PublishedCount(
            "refcocom", f"{split}_{kind}", images, None, None, IMAGES, "about 70,000 part expressions in all"
        )
        for split, images in (("val", 1_500), ("testA", 750), ("testB", 750))
        for kind in ("part_only", "object_part")
    ),
    PublishedCount("mmr", "all", 57_643, None, None),
    PublishedCount("mmr", "train", None, None, 154_127),
    PublishedCount("mmr", "val", None, None, 8_194),
    PublishedCount("mmr", "test", None, None, 32_077),
    PublishedCount("arefcoco", "test", 2_213, 4_112, 7_050),
)


def published(dataset: str, split: str) -> PublishedCount | None:
    """The published counts of a split; None where none are known."""
    for count in PUBLISHED:
        if (count.dataset, count.split) == (dataset, split):
            return count
    return None


# data sets as others converted them hold the same refs; jxu124's benchmark names set and split in one
CONVERTED = ("cris_", "psalm_", "jxu124_")
BENCHMARK_SETS = (
    ("refcoco_unc_", "refcoco"),
    ("refcoco_google_", "refcoco_google"),
    ("refcoco_plus_unc_", "refcoco+"),
    ("refcocog_umd_", "refcocog_umd"),
    ("refcocog_google_", "refcocog_google"),
)


def published_of(dataset: str, split: str) -> PublishedCount | None:
    """The published counts that a split of a data set, converted by others or not, should have; None: none known.

    lmms-lab's copies have none: rows whose mask is known to be wrong are left out of them.
    """
    if dataset == "jxu124_benchmark":
        for start, name in BENCHMARK_SETS:
            if split.startswith(start):
                return published(name, split.removeprefix(start))
        return None
    for start in CONVERTED:
        dataset = dataset.removeprefix(start)
    return published(dataset, split)

"""`uniresxx export RUN OUT [--merge [--dtype D] | --adapter | --unmerge DIR | --mask-head FORM] [--max-shard-size S]`

Writes a plain `from_pretrained` folder: config.json, model.safetensors, tokenizer.json, and README.md, a model card
of what the run recorded. RUN is a run folder (its best checkpoint, else the newest undamaged one), one of its
checkpoints, or another plain folder. Checkpoints of every engine and ZeRO stage hold whole weights, so nothing is
gathered and deepspeed is not needed.

Weights are copied byte by byte and compared with the checkpoint, unless they are merged, un-merged or sharded.
A merge takes one tensor at a time and keeps the dtype of each weight.
What an earlier export wrote to OUT is replaced once the new files are complete. Files of anybody else are never
replaced or removed: if OUT holds other weights, or files of the same names, the export is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from uniresxx.cli import OneLineParser, parser_for
from uniresxx.errors import InputError


def parser() -> OneLineParser:
    """The parser of the command."""
    made = parser_for("uniresxx export", __doc__)
    made.add_argument("run", metavar="RUN", help="run folder, checkpoint, or hub:OWNER/NAME")
    made.add_argument("out", type=Path, metavar="OUT", help="folder for the plain model")
    form = made.add_mutually_exclusive_group()
    form.add_argument(
        "--merge", action="store_true", help="add adapters and token rows into the weights they adapt"
    )
    form.add_argument(
        "--adapter", action="store_true", help="write adapters and token rows alone, without the weights"
    )
    form.add_argument(
        "--unmerge", type=Path, metavar="DIR", help="RUN was merged: take the adapter of DIR out again"
    )
    form.add_argument(
        "--mask-head",
        choices=("torch", "onnx"),
        help="write the mask head alone, as programs that need no uniresxx",
    )
    made.add_argument(
        "--dtype",
        default="auto",
        help="with --merge: auto (default: each weight keeps its own), float32, bfloat16",
    )
    made.add_argument(
        "--max-shard-size", metavar="SIZE", help="cut weights into files of at most 500MB, 5GB, …"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Do the job; returns the exit code."""
    options = parser().parse_args(argv)
    if options.max_shard_size and (options.adapter or options.mask_head):
        raise InputError("--max-shard-size is for whole weights, not for --adapter or --mask-head")
    if options.dtype != "auto" and not options.merge:
        raise InputError("--dtype is for --merge: the other forms keep the dtypes of the checkpoint")
    from uniresxx.checkpoints.resolve import resolve
    from uniresxx.hub.classes import byte_size
    from uniresxx.hub.export import export
    from uniresxx.model.placement import dtype_of

    source = resolve(options.run, lambda line: print(f"warning: {line}", file=sys.stderr))
    if options.out.resolve() == source.resolve():
        raise InputError(f"{options.out} is the checkpoint itself: name another folder")
    names = export(
        source,
        options.out,
        merge=options.merge,
        adapter=options.adapter,
        unmerge=options.unmerge,
        mask_head=options.mask_head,
        shard_bytes=byte_size(options.max_shard_size) if options.max_shard_size else None,
        dtype=dtype_of(options.dtype),
    )
    print(f"{source} -> {options.out}: {', '.join(names)}")
    return 0

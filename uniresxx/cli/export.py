"""`uniresxx export RUN OUT [--merge | --adapter | --unmerge DIR | --mask-head torch|onnx] [--max-shard-size 5GB]`

Writes a plain `from_pretrained` folder: config.json, model.safetensors, tokenizer.json, and README.md, a model card
of what the run recorded. RUN is a run folder (its best checkpoint, else the newest that verifies), one of its
checkpoints, or another such folder. Checkpoints of every engine and ZeRO stage hold whole weights already, so
nothing is gathered and no deepspeed is needed.

The weights are copied byte by byte and compared with the checkpoint's checksum, unless they are merged, un-merged
or sharded. Files of the same names in OUT are replaced; weights of another layout there are removed, other files
are left alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from uniresxx.cli import OneLineParser
from uniresxx.errors import InputError


def _parser() -> argparse.ArgumentParser:
    lines = (__doc__ or "").split("\n", 2)
    parser = OneLineParser(
        prog="uniresxx export",
        usage=lines[0].strip("`"),
        description=lines[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="run folder, checkpoint, or hub:OWNER/NAME")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the plain model")
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--merge", action="store_true", help="adapters and token rows into the weights they adapt"
    )
    way.add_argument(
        "--adapter", action="store_true", help="adapters and token rows alone, without the weights"
    )
    way.add_argument(
        "--unmerge", type=Path, metavar="DIR", help="RUN was merged: take the adapter of DIR out again"
    )
    way.add_argument(
        "--mask-head",
        choices=("torch", "onnx"),
        help="the mask head alone, as programs that need no uniresxx",
    )
    parser.add_argument(
        "--max-shard-size", metavar="SIZE", help="cut weights into files of at most 500MB, 5GB, …"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Do the job; returns the exit code."""
    options = _parser().parse_args(argv)
    from uniresxx.checkpoints.folders import named_folder, resolve

    if options.max_shard_size and (options.adapter or options.mask_head):
        raise InputError("--max-shard-size is for whole weights, not for --adapter or --mask-head")
    source = resolve(
        named_folder(options.run), lambda line: print(f"uniresxx export: {line}", file=sys.stderr)
    )
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"{options.out} is a file: name a folder")
    if options.out.resolve() == source.resolve():
        raise InputError(f"{options.out} is the checkpoint itself: name another folder")
    if not (options.adapter or options.mask_head):
        _refuse_run(options.out)
    names = _export(source, options)
    print(f"{source} -> {options.out}: {', '.join(names)}")
    return 0


def _refuse_run(out: Path) -> None:
    """InputError for folders of a run: weights there would be taken for the run's own, before its checkpoints."""
    from uniresxx.checkpoints.folders import CHECKPOINTS, MANIFEST

    if (out / CHECKPOINTS).is_dir():
        raise InputError(f"{out} is a run folder, whose checkpoints a copy would hide: name another folder")
    if (out / MANIFEST).is_file():
        raise InputError(f"{out} is a checkpoint of a run: name another folder")


def _export(source: Path, options: argparse.Namespace) -> list[str]:
    """Write what is asked; returns the names of the files."""
    from uniresxx.checkpoints.folders import CARD, CONFIG, export, read_json
    from uniresxx.files import write_atomic
    from uniresxx.model.config import MODEL_TYPE, UniRESPlusPlusConfig

    values = read_json(source / CONFIG)
    ours = values.get("model_type") == MODEL_TYPE
    rebuilt = (
        options.merge or options.adapter or options.unmerge or options.mask_head or options.max_shard_size
    )
    if rebuilt and not ours:
        raise InputError(
            f"{source} is a {values.get('model_type')!r} model, which is exported as it is: no options"
        )
    names = _rebuilt(source, options) if rebuilt else export(source, options.out)
    if ours and not (options.adapter or options.mask_head):
        from uniresxx.hub.card import card_of

        config = UniRESPlusPlusConfig.from_dict(read_json(options.out / CONFIG))
        write_atomic(options.out / CARD, card_of(config, source).encode())
        names = [*names, CARD]
    return names


def _rebuilt(source: Path, options: argparse.Namespace) -> list[str]:
    """What needs the model itself."""
    from uniresxx.checkpoints.folders import save_pretrained
    from uniresxx.hub.adapters import export_merged, save_adapter, unmerged
    from uniresxx.hub.classes import byte_size
    from uniresxx.model.build import load_model

    shard = byte_size(options.max_shard_size) if options.max_shard_size else None
    if options.unmerge:
        return save_pretrained(options.out, unmerged(source, options.unmerge), shard)
    if options.mask_head:
        from uniresxx.hub.head_program import check_form, export_mask_head

        check_form(options.mask_head)
        errors = export_mask_head(load_model(source).float(), options.out, options.mask_head)
        print(
            ", ".join(f"{name}: largest difference from eager {error:.1e}" for name, error in errors.items())
        )
        return sorted(path.name for path in options.out.glob("mask_head*"))
    model = load_model(source)
    if options.merge:  # in fp32: added to bf16, most of an adapter would be rounded away
        return export_merged(model.float(), options.out, shard)
    return save_adapter(model, options.out) if options.adapter else save_pretrained(options.out, model, shard)

"""What `uniresxx export` writes: a plain folder, one with merged or separate adapters, or the mask head alone."""

from __future__ import annotations

from pathlib import Path

import torch

from uniresxx.checkpoints.folders import CARD, copied_files, pretrained_files, publish_model
from uniresxx.checkpoints.tensors import CONFIG, read_json
from uniresxx.errors import InputError
from uniresxx.hub.adapters import merged, plain, save_adapter, unmerged
from uniresxx.hub.card import card_of
from uniresxx.hub.head_program import Form, export_mask_head
from uniresxx.model.build import load_model
from uniresxx.model.config import MODEL_TYPE, UniRESPlusPlusConfig


def export(
    source: Path,
    out: Path,
    merge: bool = False,
    adapter: bool = False,
    unmerge: Path | None = None,
    mask_head: Form | None = None,
    shard_bytes: int | None = None,
    dtype: torch.dtype | None = None,
) -> list[str]:
    """Export the model of a folder; at most one of `merge`, `adapter`, `unmerge` and `mask_head` is given.

    Args:
        source: the folder with the weights.
        out: the folder for the result; files that this program did not write there stay as they are.
        merge: adapters and token rows go into the weights they adapt.
        adapter: adapters and token rows alone.
        unmerge: the folder of the adapter that is taken out of merged weights again.
        mask_head: the mask head alone, as programs of this form.
        shard_bytes: the most that one file of weights holds.
        dtype: of merged weights; None: each keeps its own.

    Returns:
        The names of the files.

    Raises:
        InputError: the model cannot be exported this way, or `out` holds what somebody else wrote.
        OSError: the disk is full or refuses.
    """
    values = read_json(source / CONFIG)
    rebuilt = merge or adapter or unmerge or mask_head or shard_bytes
    if values.get("model_type") != MODEL_TYPE:
        if rebuilt:
            raise InputError(
                f"{source} is a {values.get('model_type')!r} model, which is exported as it is: no options"
            )
        return publish_model(out, copied_files(source))
    if adapter:
        return save_adapter(load_model(source), out)
    if mask_head:
        return export_mask_head(load_model(source).float(), out, mask_head)
    config = UniRESPlusPlusConfig.from_dict(values)
    if not rebuilt:
        files = copied_files(source)
    elif unmerge:
        model = unmerged(source, unmerge)
        config, files = model.config, pretrained_files(model, shard_bytes)
    else:
        model = load_model(source)
        if merge:
            config = plain(model.config)
            files = pretrained_files(merged(model, dtype), shard_bytes)
        else:
            files = pretrained_files(model, shard_bytes)
    return publish_model(out, {CARD: card_of(config, source).encode()} | files)

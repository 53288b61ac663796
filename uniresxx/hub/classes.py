"""UniRES++ as transformers knows models: a config, a base class of the model and a processor, without remote code.

The dataclass `UniRESPlusPlusConfig` stays the source of truth: `HubConfig` holds one, and a config.json written by
either is read by both. Weights go through our own strict loader (safetensors only, every name and shape checked):
transformers' `from_pretrained` builds on the meta device and initialises what it does not find, which would leave a
missing tensor random. `uniresxx.register_auto_classes` registers the three.

Shapes: B photos, R rows (texts of all photos), E expressions; pixels and boxes as in uniresxx.types.Batch.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Self

import torch
from transformers import BatchFeature, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from mllm.tokens import Vocabulary
from uniresxx.checkpoints import folders as checkpoint
from uniresxx.checkpoints.publish import MARKER, publish
from uniresxx.checkpoints.resolve import HUB, resolve
from uniresxx.errors import InputError
from uniresxx.imaging.inputs import Photo, checked, photo_pixels
from uniresxx.model.config import MODEL_TYPE, UniRESPlusPlusConfig
from uniresxx.model.processing import tensors_of, view_photo
from uniresxx.types import Decoding, Question

Text = str | Question
SHARD_SIZE = "5GB"
_FROM_AUTO = (  # what the Auto classes add; nothing of it is needed
    "config", "trust_remote_code", "name_or_path", "adapter_kwargs", "_from_auto", "_commit_hash",
)  # fmt: skip
_OF_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")


class HubConfig(PreTrainedConfig):
    """`UniRESPlusPlusConfig` in transformers' clothes; its sections are attributes here too."""

    model_type = MODEL_TYPE

    def __init__(self, settings: UniRESPlusPlusConfig | None = None) -> None:
        super().__init__()
        self.settings = settings or UniRESPlusPlusConfig()

    def __getattr__(self, name: str) -> Any:
        settings = self.__dict__.get("settings")
        if settings is None or name not in settings.__dataclass_fields__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(settings, name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HubConfig) and self.settings == other.settings

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As of transformers; keys that are not ours raise InputError instead of being kept."""
        unused = kwargs.pop("return_unused_kwargs", False)
        values = {key: value for key, value in config_dict.items() if not key.startswith("_")}
        config = cls(UniRESPlusPlusConfig.from_dict(values))
        return (config, kwargs) if unused else config

    def to_dict(self) -> dict[str, Any]:
        """The dict of the dataclass, `model_type` included."""
        return self.settings.to_dict()

    def to_diff_dict(self) -> dict[str, Any]:
        """All of it: defaults may change in a later version, a saved model must not."""
        return self.to_dict()


class HubModel(PreTrainedModel):
    """What `UniRESPlusPlus` is on the Hub: saving with a model card, strict loading, pushing."""

    config_class = HubConfig
    main_input_name = "pixels_high_B3HW"
    _supports_sdpa = True
    source: Path | None = None  # the folder it was loaded from: its card tells what was recorded there

    def __init__(self, settings: UniRESPlusPlusConfig) -> None:
        super().__init__(HubConfig(settings))

    @property
    def settings(self) -> UniRESPlusPlusConfig:
        """The typed configuration."""
        config: HubConfig = self.config
        return config.settings

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *model_args: Any,
        dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
        **options: Any,
    ) -> Self:
        """A run folder, a `from_pretrained` folder, or a Hub id, which is downloaded because it was named.

        `dtype`: of all weights; where it is not given ("auto" is that) fp32, and bf16 for frozen weights that
        were trained so. `attn_implementation` as in `mllm.attention`. In evaluation mode, on the CPU. InputError
        for an option that would be ignored, and for whatever is no complete checkpoint.
        """
        from uniresxx.model.build import load_model

        kind = _weight_type(dtype)
        folder = folder_named(source, options)
        wrong = [
            name for name in options if name not in (*_FROM_AUTO, *_OF_HUB) and options[name] is not None
        ]
        if model_args or wrong:
            raise InputError(f"from_pretrained does not know {', '.join(wrong) or model_args}")
        model = load_model(folder, attn_implementation)
        return model if kind is None else model.to(kind)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        max_shard_size: int | str | None = SHARD_SIZE,
        card: str | None = None,
    ) -> None:
        """config.json, weights (sharded above `max_shard_size` bytes or "5GB"), tokenizer.json, README.md.

        README.md is the model card, made of what is recorded in the folder the model was loaded from, or `card`.
        """
        from uniresxx.hub.card import card_of

        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file: name a folder")
        text = card if card is not None else card_of(self.settings, self.source)
        shard = None if max_shard_size is None else byte_size(max_shard_size)
        checkpoint.save_pretrained(folder, self, shard, text)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str = "Upload UniRES++",
        max_shard_size: int | str | None = SHARD_SIZE,
        card: str | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes; returns the address of the commit. The repository is made if new."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        name = str(api.create_repo(repo_id, private=private, exist_ok=True).repo_id)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size, card)
            found = api.upload_folder(
                repo_id=name,
                folder_path=folder,
                ignore_patterns=[MARKER],
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message,
            )
        return str(found.commit_url)


class UniRESPlusPlusProcessor(ProcessorMixin):
    """Photos and texts -> what `UniRESPlusPlus.predict` takes; the same code as training, evaluation and chat use.

    Text is plain text: `[SEG]` or `<image>` typed in it mean nothing.
    """

    def __init__(self, settings: UniRESPlusPlusConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.settings, self.vocabulary = settings, vocabulary

    def __call__(
        self,
        images: Photo | list[Photo],
        text: Text | list[Text] | list[list[Text]],
        decoding: Decoding | None = None,
    ) -> BatchFeature:
        """One photo and its text or texts, or B photos and a list of texts for each.

        A photo is a path, a PIL picture or an array (uint8 (y, x, 3)). Raises InputError as `Predictor` does.
        Of the result, `to(device)` moves the tensors.
        """
        photos = images if isinstance(images, list) else [images]
        given = text if isinstance(images, list) else [text]
        rows = [[row] if isinstance(row, str | Question) else row for row in given]  # type: ignore[union-attr]
        if len(rows) != len(photos):
            raise InputError(
                f"{len(photos)} photos and texts for {len(rows)}: give a list of texts for each photo"
            )
        texts = [[checked(one) for one in row] for row in rows]  # type: ignore[arg-type]
        views = [view_photo(photo_pixels(photo), self.settings) for photo in photos]
        rest = {"views": views, "texts": texts, "decoding": decoding or Decoding()}
        return BatchFeature(tensors_of(views, self.settings) | rest)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **options: Any) -> Self:
        """From the folders and ids that the model takes."""
        from uniresxx.model.build import load_vocabulary

        folder = folder_named(source, options)
        values = checkpoint.read_json(folder / checkpoint.CONFIG)
        return cls(UniRESPlusPlusConfig.from_dict(values), load_vocabulary(folder))

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """config.json and tokenizer.json, which a saved model has already."""
        values = checkpoint.to_json(self.settings.to_dict())
        words = self.vocabulary.to_json().encode()
        publish(Path(save_directory), {checkpoint.TOKENIZER: words, checkpoint.CONFIG: values})

    def to_dict(self) -> dict[str, Any]:
        """What it shows of itself."""
        return {"processor_class": type(self).__name__} | self.settings.to_dict()


def folder_named(source: str | os.PathLike[str], options: dict[str, Any]) -> Path:
    """The folder with the weights of a run, of a plain folder, or of a Hub id, which was named to be downloaded."""
    name = os.fspath(source).removeprefix(HUB)
    if not Path(name).exists():
        from mllm.loading import folder_of

        try:
            wanted = {key: options[key] for key in _OF_HUB if options.get(key) is not None}
            return folder_of(name, **wanted)
        except ValueError as error:
            raise InputError(str(error)) from error
    return resolve(Path(name), print)


def _weight_type(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The type that is asked for; None: as saved. InputError for all that the model does not run in."""
    if dtype is None or dtype == "auto":
        return None
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype) or kind not in (torch.float32, torch.bfloat16):
        raise InputError(f"dtype {dtype} is not one of float32, bfloat16, auto")
    return kind


def byte_size(size: int | str) -> int:
    """Bytes of 500, "500MB", "5GB" or "2GiB"; InputError for anything else."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    text = str(size).strip().upper()
    unit = next((unit for unit in units if text.endswith(unit)), "")
    number = text.removesuffix(unit).strip()
    if not number.isdecimal() or int(number) < 1:
        raise InputError(f"{size!r} is no size: write 500MB or 5GB")
    return int(number) * units.get(unit, 1)

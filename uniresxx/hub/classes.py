"""UniRES++ as transformers knows models: a config, a model and a processor, without remote code.

`UniRESPlusPlus` wraps a `UniRESPlusPlusModel`, and `UniRESPlusPlusPreTrainedConfig` its dataclass; files on disk hold
the tensors and the config of what is wrapped. Weights go through our own strict loader (safetensors only, every name
and shape checked): transformers' `from_pretrained` builds on the meta device and initialises what it does not find,
which would leave a missing tensor random. `uniresxx.register_auto_classes` registers the three.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from mllm.loading import folder_of
from mllm.tokens import Vocabulary
from uniresxx.checkpoints import folders as checkpoint
from uniresxx.checkpoints.publish import MARKER, publish
from uniresxx.checkpoints.resolve import HUB, resolve
from uniresxx.errors import InputError
from uniresxx.hub.card import card_of
from uniresxx.imaging.inputs import Photo, checked, photo_pixels
from uniresxx.model.answering import EncodedPhotos
from uniresxx.model.build import load_model
from uniresxx.model.config import MODEL_TYPE, UniRESPlusPlusConfig
from uniresxx.model.criterion import ModelOutput
from uniresxx.model.from_folder import load_vocabulary
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.placement import placement_of
from uniresxx.model.processing import tensors_of, view_photo
from uniresxx.prediction import Prediction
from uniresxx.types import Batch, DecisionRule, Decoding, OnText, Question

Text = str | Question
SHARD_SIZE = "5GB"
_AUTO_OPTIONS = (  # what the Auto classes add; none of it is needed
    "config", "trust_remote_code", "name_or_path", "adapter_kwargs", "_from_auto", "_commit_hash",
)  # fmt: skip
_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


class UniRESPlusPlusPreTrainedConfig(PreTrainedConfig):
    """The dataclass `UniRESPlusPlusConfig` as a config of transformers; its fields are attributes here too."""

    model_type = MODEL_TYPE

    def __init__(self, config: UniRESPlusPlusConfig | None = None) -> None:
        super().__init__()
        self.config = config or UniRESPlusPlusConfig()

    def __getattr__(self, name: str) -> Any:
        config = self.__dict__.get("config")
        if config is None or name not in config.__dataclass_fields__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(config, name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UniRESPlusPlusPreTrainedConfig) and self.config == other.config

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config of a config.json; InputError for keys that it does not know, which transformers would keep."""
        unused = kwargs.pop("return_unused_kwargs", False)
        values = {key: value for key, value in config_dict.items() if not key.startswith("_")}
        config = cls(UniRESPlusPlusConfig.from_dict(values))
        return (config, kwargs) if unused else config

    def to_dict(self) -> dict[str, Any]:
        """The dict of the dataclass, `model_type` included."""
        return self.config.to_dict()

    def to_diff_dict(self) -> dict[str, Any]:
        """All of it: defaults may change in a later version, a saved model must not."""
        return self.to_dict()


class UniRESPlusPlus(PreTrainedModel):
    """UniRES++ for users of transformers: loading, saving with a model card, pushing, and answering.

        model = UniRESPlusPlus.from_pretrained("runs/export")
        processor = UniRESPlusPlusProcessor.from_pretrained("runs/export")
        predictions = model.predict(processor(images="photo.jpg", text=["the left wheel of the red car"]))

    `model` is the plain module inside, which training and evaluation use.
    """

    config_class = UniRESPlusPlusPreTrainedConfig
    main_input_name = "pixels_high_B3HW"
    _supports_sdpa = True

    def __init__(self, model: UniRESPlusPlusModel, source: Path | None = None) -> None:
        """Wrap a model.

        Args:
            model: the model; a configuration alone holds no vocabulary.
            source: the folder it was loaded from, whose records go into the model card.

        Raises:
            InputError: `model` is a configuration.
        """
        if not isinstance(model, UniRESPlusPlusModel):
            raise InputError(
                "a new model needs its vocabulary: UniRESPlusPlus(UniRESPlusPlusModel(config, vocabulary)); "
                "load a saved one by UniRESPlusPlus.from_pretrained(folder)"
            )
        super().__init__(UniRESPlusPlusPreTrainedConfig(model.config))
        self.model, self.source = model, source

    def forward(self, batch: Batch) -> ModelOutput:
        """One pass over packed rows, see `UniRESPlusPlusModel.forward`."""
        return self.model(batch)

    @property
    def decision_rule(self) -> DecisionRule:
        """The rule of the config."""
        return self.model.decision_rule

    def encode_images(self, photos: Sequence[np.ndarray]) -> EncodedPhotos:
        """Encode photos (uint8 (y, x, 3) RGB) once, for any number of calls of `answer`."""
        return self.model.encode_images(photos)

    def join_images(self, encoded: Sequence[EncodedPhotos]) -> EncodedPhotos:
        """Photos encoded apart, as if they had been encoded together."""
        return self.model.join_images(encoded)

    def split_images(self, encoded: EncodedPhotos) -> list[EncodedPhotos]:
        """Each encoded photo alone."""
        return self.model.split_images(encoded)

    def answer(
        self,
        encoded: EncodedPhotos,
        texts: Sequence[Sequence[Text]],
        decoding: Decoding,
        on_text: OnText | None = None,
    ) -> list[Prediction]:
        """Answer the texts of each photo; flat, photo by photo."""
        return self.model.answer(encoded, texts, decoding, on_text)

    def predict(self, inputs: Mapping[str, Any]) -> list[Prediction]:
        """Answer what `UniRESPlusPlusProcessor` prepared; flat, photo by photo."""
        encoded = self.model.encode_views(inputs["views"], inputs)
        return self.model.answer(encoded, inputs["texts"], inputs["decoding"])

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *model_args: Any,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
        **options: Any,
    ) -> Self:
        """Load a model in evaluation mode.

        Args:
            source: a run folder, a `from_pretrained` folder, or a Hub id, which is downloaded.
            model_args: none.
            device: "cpu", where models of transformers start, "cuda", "cuda:N", "mps", or "auto", the first there is.
            dtype: of all weights; None and "auto": fp32, and bf16 for frozen weights that were trained so.
            attn_implementation: as in `mllm.attention`.
            options: of the download: revision, token, cache_dir, local_files_only, force_download.

        Raises:
            InputError: `source` is no complete checkpoint, or an option would be ignored.
        """
        placement = placement_of(device, dtype, attn_implementation)
        folder = checkpoint_folder(source, options)
        known = (*_AUTO_OPTIONS, *_HUB_OPTIONS)
        unknown = [name for name, value in options.items() if name not in known and value is not None]
        if model_args or unknown:
            hint = (
                "; one device is device=, several are those of load_segmenter"
                if "device_map" in unknown
                else ""
            )
            raise InputError(f"from_pretrained does not know {', '.join(unknown) or model_args}{hint}")
        return cls(load_model(folder, placement), folder).eval()

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        max_shard_size: int | str | None = SHARD_SIZE,
        card: str | None = None,
    ) -> None:
        """Write config.json, weights, tokenizer.json and the model card README.md.

        Args:
            save_directory: made where it is missing.
            max_shard_size: larger weights are cut into files of at most this size (bytes, "500MB", "5GB").
            card: text of the model card; None: from the records of the folder the model was loaded from.

        Raises:
            InputError: `save_directory` is a file, or `max_shard_size` is no size.
        """
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file: name a folder")
        text = card if card is not None else card_of(self.model.config, self.source)
        shard_bytes = None if max_shard_size is None else byte_size(max_shard_size)
        checkpoint.save_pretrained(folder, self.model, shard_bytes, text)

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
        """Upload what `save_pretrained` writes; returns the address of the commit.

        Args:
            repo_id: `OWNER/NAME`, or `NAME` of the token's owner; made where it is missing.
            private: whether a new repository is private; None: the owner's default.
            token: of the Hub; None: the one that is logged in.
            revision: branch to upload to.
            create_pr: open a pull request instead of a commit on the branch.
            commit_message: of the commit.
            max_shard_size: as in `save_pretrained`.
            card: as in `save_pretrained`.
        """
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

    def __init__(self, config: UniRESPlusPlusConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary

    def __call__(
        self,
        images: Photo | list[Photo],
        text: Text | list[Text] | list[list[Text]],
        decoding: Decoding | None = None,
    ) -> BatchFeature:
        """Prepare photos and texts; `to(device)` of the result moves its tensors.

        Args:
            images: one photo or a list of them, each a path, a PIL picture or an array (uint8 (y, x, 3)).
            text: of one photo its text or texts; of a list of photos a list of texts for each.
            decoding: how answers are generated.

        Raises:
            InputError: as `Predictor` does, and where photos and lists of texts differ in number.
        """
        photos = images if isinstance(images, list) else [images]
        given = text if isinstance(images, list) else [text]
        rows = [[row] if isinstance(row, str | Question) else row for row in given]  # type: ignore[union-attr]
        if len(rows) != len(photos):
            raise InputError(
                f"{len(photos)} photos and texts for {len(rows)}: give a list of texts for each photo"
            )
        texts = [[checked(one) for one in row] for row in rows]  # type: ignore[arg-type]
        views = [view_photo(photo_pixels(photo), self.config) for photo in photos]
        rest = {"views": views, "texts": texts, "decoding": decoding or Decoding()}
        return BatchFeature(tensors_of(views, self.config) | rest)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **options: Any) -> Self:
        """Load from the folders and Hub ids that `UniRESPlusPlus.from_pretrained` takes."""
        folder = checkpoint_folder(source, options)
        values = checkpoint.read_json(folder / checkpoint.CONFIG)
        return cls(UniRESPlusPlusConfig.from_dict(values), load_vocabulary(folder))

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Write config.json and tokenizer.json, which a saved model has already."""
        values = checkpoint.to_json(self.config.to_dict())
        words = self.vocabulary.to_json().encode()
        publish(Path(save_directory), {checkpoint.TOKENIZER: words, checkpoint.CONFIG: values})

    def to_dict(self) -> dict[str, Any]:
        """The config with the name of this class."""
        return {"processor_class": type(self).__name__} | self.config.to_dict()


def checkpoint_folder(source: str | os.PathLike[str], options: Mapping[str, Any]) -> Path:
    """The folder with the weights: of a run, a plain folder, or a Hub id, which is downloaded with `options`."""
    name = os.fspath(source).removeprefix(HUB)
    if Path(name).exists():
        return resolve(Path(name), print)
    wanted = {key: options[key] for key in _HUB_OPTIONS if options.get(key) is not None}
    try:
        return folder_of(name, **wanted)
    except ValueError as error:
        raise InputError(str(error)) from error


def byte_size(size: int | str) -> int:
    """Bytes of 500, "500MB", "5GB" or "2GiB"; InputError for anything else."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    text = str(size).strip().upper()
    unit = next((unit for unit in units if text.endswith(unit)), "")
    number = text.removesuffix(unit).strip()
    if not number.isdecimal() or int(number) < 1:
        raise InputError(f"{size!r} is not a size: write 500MB or 5GB")
    return int(number) * units.get(unit, 1)

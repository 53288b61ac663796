"""Which folder a name means: of a run its best checkpoint, a plain folder, a repository of the Hub, or the folders of
a public model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from uniresxx.checkpoints import folders
from uniresxx.checkpoints.folders import CHECKPOINTS, MANIFEST, checkpoint_identity
from uniresxx.checkpoints.publish import sha256_of
from uniresxx.checkpoints.tensors import CONFIG, WEIGHTS, read_json, weight_files
from uniresxx.errors import InputError

# the model that comes with the package, and what is known of it
SHIPPED = Path(__file__).resolve().parents[1] / "assets" / "tiny"
ABOUT = "about.json"
HUB = "hub:"  # before the id of a repository, so that a misspelt folder name causes no download
# families of public models, which come before a colon, and the folders that each consists of
FAMILIES = {
    "clipseg": ("MODEL",),
    "detect": ("DETECTOR", "SEGMENTER"),
    "florence2": ("MODEL",),
    "qwenvl": ("MODEL", "SEGMENTER"),
    "sam3": ("MODEL",),
}
JOINT = "+"  # between the folders of a family
# what is downloaded of one: never code or pickles
_PUBLIC_FILES = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt"]
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model's files are: the folder of one of this project's, or those of a public family."""

    folders: tuple[Path, ...]
    family: str | None = None

    @property
    def name(self) -> str:
        """A name that `find` gives this source for again."""
        prefix = "" if self.family is None else f"{self.family}:"
        return prefix + JOINT.join(map(str, self.folders))

    def identity(self) -> str:
        """`<name>:<hash of all that answers depend on>`, as evaluations record it."""
        if self.family is None:
            return checkpoint_identity(self.folders[0])
        files = [path for folder in self.folders for path in _public_files(folder)]
        names = JOINT.join(folder.resolve().name for folder in self.folders)
        return f"{self.family}:{names}:{sha256_of(*files)[:16]}"

    def weights_sha256(self) -> str:
        """The checksum of the weights, all files one after another; of one with a manifest, as that has it."""
        first = self.folders[0]
        names = list(weight_files(first))
        if self.family is None and len(names) == 1 and (first / MANIFEST).is_file():
            known: dict[str, Any] = read_json(first / MANIFEST)["files"][
                names[0]
            ]  # `resolve` has compared it
            return str(known["sha256"])
        return sha256_of(*(folder / name for folder in self.folders for name in weight_files(folder)))

    def config_sha256(self) -> str:
        """The checksum of the configs, and of a public model's tokenizer and preprocessor."""
        if self.family is None:
            return sha256((self.folders[0] / CONFIG).read_bytes()).hexdigest()
        files = [path for folder in self.folders for path in _public_files(folder)]
        return sha256_of(*(path for path in files if path.suffix != ".safetensors"))


def find(name: str | os.PathLike[str] | None, log: folders.Log) -> Source:
    """The files of any model that answers.

    Args:
        name: as of `resolve`, or `FAMILY:DIR_OR_HUB_ID` of a public model, with + between the folders of a family
            that has two, such as `detect:IDEA-Research/grounding-dino-tiny+facebook/sam2.1-hiera-tiny`. What is no
            folder is downloaded.
        log: as of `resolve`.

    Raises:
        InputError: there is nothing to load.
    """
    family = _family_of(name)
    if family is None:
        return Source((resolve(name, log),))
    named = os.fspath(name or "").removeprefix(f"{family}:").split(JOINT)
    if len(named) != len(FAMILIES[family]) or not all(named):
        raise InputError(
            f"{os.fspath(name or '')!r}: a {family} model is {family}:{JOINT.join(FAMILIES[family])}, "
            "each a folder or a hub id"
        )
    return Source(tuple(map(_public_folder, named)), family)


def _family_of(name: str | os.PathLike[str] | None) -> str | None:
    """The family before the colon of a name; None where there is none, or a folder has this very name."""
    word, colon, _ = os.fspath(name or "").partition(":")
    return word if colon and word in FAMILIES and not os.path.isdir(name or "") else None


def _public_folder(name: str) -> Path:
    """The folder of a public model, complete. A pickle is never opened."""
    folder = _downloaded(name, allow_patterns=_PUBLIC_FILES)
    read_json(folder / CONFIG)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles and not any(folder.glob("*.safetensors")):
        raise InputError(
            f"{folder} has weights only in {pickles[0]}, a pickle, which is never opened: name a folder with "
            f"{WEIGHTS}, or `uniresxx convert {folder} OUT` writes it"
        )
    weight_files(folder)
    return folder


def _public_files(folder: Path) -> list[Path]:
    """The files of a public model that its answers depend on, by name."""
    kept = {".safetensors", ".json", ".jinja", ".txt"}
    return sorted(path for path in folder.iterdir() if path.suffix in kept and path.is_file())


def resolve(name: str | os.PathLike[str] | None, log: folders.Log) -> Path:
    """The folder that holds the weights.

    Args:
        name: a run folder (its best checkpoint, else the newest undamaged one), a folder with weights, or
            `hub:OWNER/NAME[@REVISION]`, which is downloaded. None: the model that comes with the package.
        log: gets a line for each damaged checkpoint that is passed over.

    Raises:
        InputError: there is nothing to load.
    """
    if name is None:
        return shipped()
    source = os.fspath(name)
    if (family := _family_of(name)) is not None:
        raise InputError(
            f"{source}: a public {family} model only answers (segment, chat, serve, eval run): give a run folder "
            f"or a folder with {CONFIG} and {WEIGHTS}"
        )
    path = _downloaded(source.removeprefix(HUB)) if source.startswith(HUB) else Path(source)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        known = f", or FAMILY:DIR_OR_HUB_ID ({', '.join(FAMILIES)})" if ":" in source else ""
        raise InputError(f"{path} {what}: give a run folder or a folder with {CONFIG} and {WEIGHTS}{known}")
    if (path / CONFIG).exists():
        reason = folders.damage(path, to_answer=True) if (path / MANIFEST).exists() else None
        if reason is not None:
            raise InputError(f"checkpoint {path} is damaged ({reason}): use another one of the run")
        return path
    if not (path / CHECKPOINTS).is_dir():
        raise InputError(f"{path} is not a checkpoint: it has neither {CONFIG} nor a {CHECKPOINTS} folder")
    best = folders.best_step(path)
    if best is not None:
        folder = folders.step_folder(path, best)
        reason = folders.damage(folder, to_answer=True)
        if reason is None:
            return folder
        log(f"the best checkpoint {folder} is damaged ({reason}): taking the newest")
    newest = folders.newest_verified(path, log, to_answer=True)
    if newest is None:
        raise InputError(f"{path} has no undamaged checkpoint: train it first, or use another run")
    return newest


def shipped() -> Path:
    """The folder of the model that comes with the package. InputError where this installation has none."""
    if not (SHIPPED / CONFIG).is_file():
        raise InputError(f"this installation has no model of its own ({SHIPPED}): name one by --checkpoint")
    return SHIPPED


def model_name(name: str | os.PathLike[str] | None) -> str:
    """What a program calls the model it loaded by `name`; of the package's own, with the recipe that made it."""
    if name is not None:
        return os.fspath(name)
    recipe = read_json(shipped() / ABOUT).get("recipe")
    return f"the model that comes with uniresxx ({recipe}, trained on drawn scenes)"


def _downloaded(repository: str, **options: Any) -> Path:
    from mllm.loading import folder_of

    try:
        return folder_of(repository, **options)
    except ValueError as error:
        raise InputError(str(error)) from error

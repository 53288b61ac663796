"""FiLM-UNet: a convolutional encoder runs once per picture, and each question scales and shifts the channels of a
small decoder (Perez et al. 2018, FiLM; Ronneberger et al. 2015, U-Net). No language model, no region proposals.

Shapes: B images, E expressions (decisions), T tokens of a row, Q tokens of the longest question, D text width,
C channels, h w a feature map, N its h * w, H W high frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.tokens import REJ, SEG, Vocabulary
from uniresxx.errors import InputError
from uniresxx.model.answering import prediction_of
from uniresxx.model.collate import PackedCollator
from uniresxx.model.criterion import mask_counts, mask_terms, weighted
from uniresxx.model.forced import forced
from uniresxx.model.from_folder import load_vocabulary, load_with
from uniresxx.model.heads.base import HeadOutput
from uniresxx.model.losses import Counts, LossTerms
from uniresxx.model.photo_batches import join_tensors, split_tensors
from uniresxx.model.placement import Placement, autocast_of, sent
from uniresxx.model.processing import PixelNorm, View, photo_masks, pixels, view_photo
from uniresxx.model.templates import asked_branches
from uniresxx.prediction import Prediction
from uniresxx.segmenters.film_unet.config import GROUPS, FilmUNetConfig
from uniresxx.types import EVALUATION_TEMPLATE, Batch, DecisionRule, Decoding, OnText, Question


@dataclass(frozen=True, slots=True)
class EncodedPhotos:
    """Photos encoded once: the decoder's input at each stride, finest first."""

    views: list[View]
    maps: list[Tensor]


class TextEncoder(nn.Module):
    """Embedding and one GRU layer, whose last state stands for the question."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, ids_EQ: Tensor, length_E: Tensor) -> Tensor:
        """Questions padded at the end -> (E, D); a question's vector does not depend on the padding."""
        lengths = length_E.cpu()  # packing wants them there
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(ids_EQ), lengths, batch_first=True, enforce_sorted=False
        )
        return self.gru(packed)[1][0]


class Film(nn.Module):
    """Normalise, then scale and shift each channel by the text, then ReLU."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, affine=False)
        self.film = nn.Linear(text_width, 2 * width)

    def forward(self, x_EChw: Tensor, text_ED: Tensor) -> Tensor:
        """Same shape as `x_EChw`."""
        scale_EC, shift_EC = self.film(text_ED).chunk(2, dim=1)
        scale, shift = 1 + scale_EC[..., None, None], shift_EC[..., None, None]
        return torch.addcmul(shift, self.norm(x_EChw), scale).relu()


class FilmBlock(nn.Module):
    """Residual 3x3 convolution under FiLM."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.film = Film(width, text_width)

    def forward(self, x_EChw: Tensor, text_ED: Tensor) -> Tensor:
        """Same shape as `x_EChw`."""
        return x_EChw + self.film(self.conv(x_EChw), text_ED)


def _conv(before: int, after: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, after), nn.GELU())


class Encoder(nn.Module):
    """Two convolutions per stride; the skip of each stride is projected here, once per image.

    The input has the coordinates -1..1 as two more channels, as in FiLM: "left" needs them.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        before = (5, *widths[:-1])
        self.levels = nn.ModuleList(
            nn.Sequential(_conv(a, b, 2), _conv(b, b, 1)) for a, b in zip(before, widths, strict=True)
        )
        self.skips = nn.ModuleList(nn.Conv2d(width, width // 2, 3, padding=1) for width in widths)

    def forward(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Maps (B, C/2, h, w) at strides 2, 4, 8, …"""
        B, _, H, W = pixels_B3HW.shape
        down, across = (torch.linspace(-1, 1, n, device=pixels_B3HW.device) for n in (H, W))
        place_2HW = torch.stack((down[:, None].expand(H, W), across[None].expand(H, W)))
        x = torch.cat((pixels_B3HW, place_2HW.to(pixels_B3HW.dtype).expand(B, -1, -1, -1)), dim=1)
        maps = []
        for level, skip in zip(self.levels, self.skips, strict=True):
            x = level(x)
            maps.append(skip(x))
        return maps


class Decoder(nn.Module):
    """Runs per expression: FiLM where the skips join and in 3x3 blocks, two in the bottleneck.

    The convolution over [upsampled, skip] of a U-Net is split into its two summands, so that the skip's share
    is computed per image; the other's is 1x1 and comes before the upsampling, with which it commutes. The
    finest stride has no block: it would cost as much as all the rest (our choice).
    """

    def __init__(self, widths: tuple[int, ...], text_width: int) -> None:
        super().__init__()
        *finer, bottom = (width // 2 for width in widths)
        self.bottleneck = nn.ModuleList(FilmBlock(bottom, text_width) for _ in range(2))
        below = (*finer[1:], bottom)
        self.reduce = nn.ModuleList(
            nn.Conv2d(before, width, 1, bias=False) for before, width in zip(below, finer, strict=True)
        )
        self.blocks = nn.ModuleList(FilmBlock(width, text_width) for width in finer[1:])
        self.join = nn.ModuleList(Film(width, text_width) for width in (*finer, bottom))
        self.mask = nn.Linear(finer[0], 1)
        self.decide = nn.Sequential(
            nn.Linear(2 * bottom + text_width, bottom), nn.GELU(), nn.Linear(bottom, 2)
        )

    def forward(self, maps: list[Tensor], text_ED: Tensor, image_E: Tensor) -> HeadOutput:
        """Answer each expression on its image's maps."""
        x = self.join[-1](maps[-1][image_E], text_ED)
        for block in self.bottleneck:
            x = block(x, text_ED)
        pooled = torch.cat((x.mean((2, 3)), x.amax((2, 3)), text_ED), dim=1)
        quality_E, presence_E = self.decide(pooled).unbind(1)
        for level in reversed(range(len(self.reduce))):
            up = F.interpolate(self.reduce[level](x), scale_factor=2, mode="bilinear", align_corners=False)
            x = self.join[level](up + maps[level][image_E], text_ED)
            x = self.blocks[level - 1](x, text_ED) if level else x
        # a dot product per pixel; much faster on CPUs than a convolution to one channel
        masks_E1N = torch.bmm(self.mask.weight.expand(len(x), 1, -1), x.flatten(2)) + self.mask.bias
        masks_Ehw = masks_E1N.view(len(x), *x.shape[2:])
        return HeadOutput(masks_Ehw, quality_E, presence_E)


def questions_of(batch: Batch, pad: int) -> tuple[Tensor, Tensor]:
    """Token ids (E, Q) and lengths (E,) of the text before each decision: its branch up to the position that
    predicts it, without the answer itself, what follows it, and other branches."""
    stop_E = batch.seg_position_E
    length_E = batch.position_BT[batch.image_of_expr_E, stop_E] + 1
    longest = int(length_E.max()) if len(length_E) else 0
    step_Q = torch.arange(longest, device=stop_E.device)
    asked_EQ = step_Q < length_E[:, None]
    place_EQ = (stop_E - length_E + 1)[:, None] + step_Q * asked_EQ
    ids_EQ = batch.token_ids_BT[batch.image_of_expr_E[:, None], place_EQ]
    return ids_EQ.masked_fill(~asked_EQ, pad), length_E


class FilmUNet(nn.Module):
    """The baseline; trains through `forward` and `loss`, answers as a Segmenter.

    It answers every text with one mask or none: presence is a logit of its own, and both rules read it.
    """

    def __init__(self, config: FilmUNetConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        size = config.inputs.mllm.token_count
        if vocabulary.rows > size:
            raise ValueError(f"vocabulary of {vocabulary.rows} tokens exceeds vocab_size={size} of mllm.llm")
        self.config, self.vocabulary = config, vocabulary
        self.normalise = PixelNorm(config.inputs.mllm.pixel_stats.high)
        self.text = TextEncoder(size, config.text_width)
        self.encoder = Encoder(config.widths)
        self.decoder = Decoder(config.widths, config.text_width)

    def forward(self, batch: Batch) -> HeadOutput:
        """Every decision of the batch; a batch without any gives empty outputs."""
        maps = self.encoder(self.normalise(batch.pixels_high_B3HW))
        if not len(batch.image_of_expr_E):
            none_Ehw = maps[0][:0, 0]
            return HeadOutput(none_Ehw, none_Ehw.new_zeros(0), none_Ehw.new_zeros(0))
        text_ED = self.text(*questions_of(batch, self.vocabulary.pad))
        return self.decoder(maps, text_ED, batch.image_of_expr_E)

    def counts(self, batch: Batch) -> Counts:
        """Denominators of the loss terms, known before the forward pass."""
        return mask_counts(batch)

    def loss(self, output: HeadOutput, batch: Batch) -> LossTerms:
        """Sums over this micro-batch; masks are supervised only where the truth has one."""
        return weighted(mask_terms(output, batch, self.config.loss), self.config.loss)

    @property
    def collator(self) -> PackedCollator:
        """What prepares its training samples."""
        return PackedCollator(self.config.view, self.vocabulary)

    @property
    def tokenizer(self) -> Vocabulary:
        """What a checkpoint stores as tokenizer.json."""
        return self.vocabulary

    @property
    def decision_rule(self) -> DecisionRule:
        """The rule of the compared model's config; both mean the same here."""
        return self.config.inputs.decision_rule

    @property
    def question_template(self) -> str:
        """The project's."""
        return EVALUATION_TEMPLATE

    @property
    def finds_instances(self) -> bool:
        """Never: one mask for all that is meant."""
        return False

    @torch.no_grad()
    def encode_images(self, photos: Sequence[np.ndarray]) -> EncodedPhotos:
        """Encode photos once."""
        views = [view_photo(photo, self.config.view) for photo in photos]
        inputs = sent(pixels([view.high_HW3 for view in views]), self.text.embed.weight.device)
        with autocast_of(self):
            return EncodedPhotos(views, self.encoder(self.normalise(inputs)))

    def join_images(self, encoded: Sequence[EncodedPhotos]) -> EncodedPhotos:
        """Photos encoded apart, as if they had been encoded together."""
        views = [view for photos in encoded for view in photos.views]
        return EncodedPhotos(views, join_tensors([photos.maps for photos in encoded]))

    def split_images(self, encoded: EncodedPhotos) -> list[EncodedPhotos]:
        """Each encoded photo alone."""
        parts = split_tensors(encoded.maps, len(encoded.views))
        return [EncodedPhotos([view], maps) for view, maps in zip(encoded.views, parts, strict=True)]

    @torch.no_grad()
    def answer(
        self,
        encoded: EncodedPhotos,
        texts: Sequence[Sequence[str | Question]],
        decoding: Decoding,
        on_text: OnText | None = None,
    ) -> list[Prediction]:
        """Answer all texts of all photos together; flat, photo by photo. It has no words to report."""
        image_of_row, branches = asked_branches(
            texts, decoding, self.vocabulary, self.config.inputs.mllm.chat
        )
        if not branches:
            return []
        device = self.text.embed.weight.device
        asked = [torch.tensor(branch, device=device) for branch in branches]
        ids_EQ = nn.utils.rnn.pad_sequence(asked, batch_first=True, padding_value=self.vocabulary.pad)
        with autocast_of(self):
            text_ED = self.text(ids_EQ, torch.tensor([len(ids) for ids in asked]))
            output = self.decoder(encoded.maps, text_ED, torch.tensor(image_of_row, device=device))
        masks = photo_masks(output.masks_Ehw, image_of_row, encoded.views)
        presence, score = output.presence_E.sigmoid().tolist(), output.quality_E.sigmoid().tolist()
        predictions = [
            prediction_of(f"{SEG if p > 0.5 else REJ}.", [mask], [p > 0.5], [s], [1 - p])
            for mask, p, s in zip(masks, presence, score, strict=True)
        ]
        return forced(predictions) if decoding.mode == "forced" else predictions


def load_film_unet(folder: Path, placement: Placement) -> FilmUNet:
    """The baseline of a `from_pretrained` folder; InputError for an attention backend, which it does not have."""
    if placement.attention is not None:
        raise InputError(
            f"attention {placement.attention!r}: the FiLM-UNet of {folder} has none; leave it out"
        )
    return load_with(folder, FilmUNetConfig.from_dict, FilmUNet, placement, lambda _: load_vocabulary(folder))

"""`python -m tools.explain_unires RUN IMAGE TEXT [--out FILE]`: where the groups of a UniRES look that a mask reads.

The first row has the photo and the mask. Below it each level has a row: the groups that the patches of the mask read
most, with their share of all that is read, and the patches to which each attends before it leaves the encoder.
Exit codes: 0 written; 2 wrong input.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from uniresxx.errors import InputError
from uniresxx.files import png_bytes, write_atomic
from uniresxx.imaging.geometry import Letterbox
from uniresxx.imaging.inputs import photo_pixels
from uniresxx.imaging.legend import Line, draw_lines
from uniresxx.imaging.marking import PALETTE, fitted_size
from uniresxx.imaging.panel import draw_panel, tile
from uniresxx.imaging.sheets import in_columns, stacked
from uniresxx.model.processing import pixels
from uniresxx.prediction import Prediction
from uniresxx.segmenters.unires.explain import group_attention, groups_read, load_grouped
from uniresxx.segmenters.unires.modeling import Unires
from uniresxx.types import AS_TYPED, Decoding

TILE, SHOWN = (262, 262), 4  # pixels of a picture; groups of a level
GLOW = np.array([255.0, 190.0, 0.0])


def glowing(photo: np.ndarray, weights_gg: np.ndarray, box: Letterbox) -> np.ndarray:
    """The photo, dark, with a glow on the patches: full on that of the largest weight, none on the smallest."""
    heat_gg = (weights_gg - weights_gg.min()) / max(float(np.ptp(weights_gg)), 1e-9)
    square = Image.fromarray(heat_gg.astype(np.float32)).resize(
        (box.side, box.side), Image.Resampling.NEAREST
    )
    shown = square.crop((0, 0, box.inner_width, box.inner_height))
    heat_yx1 = np.asarray(shown.resize((box.width, box.height), Image.Resampling.NEAREST))[..., None]
    return (0.45 * photo * (1 - heat_yx1) + (0.35 * photo + 0.65 * GLOW) * heat_yx1).astype(np.uint8)


def card(picture: np.ndarray, text: str, tail: str) -> Image.Image:
    """A picture with a line below it."""
    height, width = picture.shape[:2]
    drawn = draw_panel(picture, [], fitted_size(height, width, TILE))
    return stacked([drawn, draw_lines([Line(text, tail)], drawn.width, 16)])


def explained(model: Unires, photo: np.ndarray, text: str) -> Image.Image:
    """The sheet of one photo and text."""
    encoded = model.encode_images([photo])
    answer: Prediction = model.answer(encoded, [[text]], Decoding(template=AS_TYPED))[0]
    box, grid = encoded.letterboxes[0], model.config.grid
    device = model.patches.weight.device
    looks = group_attention(model.vision, model.normalise(pixels([box.photo(photo)]).to(device)))
    read_NM = groups_read(model, encoded, text).float().cpu().numpy()
    share_M = read_NM[patches_of(answer.mask, box, grid)].mean(axis=0)
    cards = [[tile(photo, answer.mask, PALETTE[0], TILE)]]
    first = 0
    for level, look_1GN in (("low", looks.low_BGN), ("high", looks.high_BGN)):
        count = look_1GN.shape[1]
        share_G = share_M[first : first + count]
        first += count
        best = np.argsort(-share_G)[:SHOWN]
        maps = [look_1GN[0, int(g)].float().cpu().numpy().reshape(grid, grid) for g in best]
        cards.append(
            [
                card(glowing(photo, look_gg, box), f"{level} {g}", f"{100 * share_G[g]:.0f} %")
                for g, look_gg in zip(best, maps, strict=True)
            ]
        )
    rows = [in_columns(row, SHOWN, gap=8, margin=8) for row in cards if row]
    width = max(row.width for row in rows)
    return stacked([draw_lines([Line(text, "not there" if answer.rejected else "")], width, 20), *rows])


def patches_of(mask_yx: np.ndarray | None, box: Letterbox, grid: int) -> np.ndarray:
    """Bool (N,): patches that the mask covers by half or more; all of them where it covers none."""
    if mask_yx is None:
        return np.ones(grid**2, dtype=bool)
    cell = box.side // grid
    covered_gg = box.mask(mask_yx).reshape(grid, cell, grid, cell).mean(axis=(1, 3))
    found_N = covered_gg.reshape(-1) >= 0.5
    return found_N if found_N.any() else np.ones(grid**2, dtype=bool)


def main(argv: list[str] | None = None) -> int:
    """The program: returns the exit code, prints an error as one line."""
    parser = argparse.ArgumentParser(prog="python -m tools.explain_unires", description=__doc__)
    parser.add_argument("run", help="run or checkpoint folder of a UniRES")
    parser.add_argument("image", type=Path, help="photo")
    parser.add_argument("text", help="expression")
    parser.add_argument("--out", type=Path, default=Path("explained.png"), help="picture to write")
    options = parser.parse_args(argv)
    try:
        model = load_grouped(options.run)
        photo = photo_pixels(options.image)
        with torch.inference_mode():
            sheet = explained(model, photo, options.text)
        write_atomic(options.out, png_bytes(sheet))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Recipe of two hours on full `scenes`: `scenes_hour` with the losses and the pairs that make words heard."""

from __future__ import annotations

from dataclasses import replace

from train.recipe import Recipe
from train.recipes.scenes_hour import scenes_hour


def scenes_two_hours() -> Recipe:
    """python -m train scenes_two_hours --out runs/scenes_two_hours

    Hardware: 1 CPU core. Time: 128 minutes (`optim.max_minutes`). Expected on scenes/val: part 45, object 45, multi
    61, N-acc 85, T-acc 90 (one seed, before pairs were asked for in the words of full scenes; docs/results.md).
    """
    hour = scenes_hour()
    images = hour.data.batch_images
    return replace(
        hour,
        name="scenes_two_hours",
        model=replace(hour.model, loss=replace(hour.model.loss, words=0.1, presence=1.0, contrast=1.0)),
        data=replace(
            hour.data, first_images=1200 * images, pair_images=(500 * images, 800 * images, 1000 * images)
        ),
        optim=replace(hour.optim, steps=9000, lr=1e-3, max_minutes=128.0),
    )

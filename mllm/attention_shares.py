"""Where the state of a decision looked: its attention, summed over each stream of the prefix.

Shapes: B = 1 image, L prefix tokens, T tokens of the question and its answer, S = L + T keys, K decisions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mllm.modeling import MLLM
from mllm.prefix import PrefixCache, branch_mask, prefix_branch, prefix_positions

STREAMS = ("image", "objects", "parts", "words")


@torch.no_grad()
def attention_shares(
    mllm: MLLM, prefix: PrefixCache, branch: Sequence[int], answer: Sequence[int]
) -> list[dict[str, float]]:
    """For each [SEG] and [REJ] of an answer, the share of attention on each of STREAMS; they sum to 1.

    The attention is that of the state which prompts the mask head, the mean over layers and heads of the language
    model. `words` are the question, the answer so far, and the marks around the streams.

    Args:
        mllm: the model.
        prefix: of one image.
        branch: token ids of the question, up to where the answer begins.
        answer: generated token ids.
    """
    own = mllm.config.prompt_state == "own"
    decisions = (mllm.vocabulary.seg, mllm.vocabulary.rej)
    places = [len(branch) + place - (not own) for place, token in enumerate(answer) if token in decisions]
    if not places:
        return []
    ids = [*branch, *answer][: places[-1] + 1]
    rows_KS = _attention(mllm, prefix, ids)[places]
    length, before = prefix.length, len(mllm.vocabulary.encode_template(mllm.config.chat.before_image))
    image = slice(before, before + mllm.config.low_grid**2)
    objects = slice(image.stop + 1, image.stop + 1 + mllm.config.max_objects)
    parts = slice(objects.stop + 1, objects.stop + 1 + mllm.config.max_parts)
    assert parts.stop == length, "the layout of `splice`"
    sums = torch.stack([rows_KS[:, stream].sum(dim=1) for stream in (image, objects, parts)], dim=1)
    return [dict(zip(STREAMS, [*row, 1 - sum(row)], strict=True)) for row in sums.clamp(max=1).tolist()]


def _attention(mllm: MLLM, prefix: PrefixCache, ids: Sequence[int]) -> Tensor:
    """Attention (T, S) of the tokens after the prefix, the mean over layers and heads, in fp32."""
    T, device = len(ids), prefix.valid_BL.device
    hidden_BTD = mllm.embed_text(torch.tensor([ids], device=device))
    branch_BS = torch.cat(
        (prefix_branch(prefix.valid_BL), torch.zeros(1, T, dtype=torch.long, device=device)), 1
    )
    start_B1 = prefix_positions(prefix.valid_BL, mllm.config.count_padding)[:, -1:] + 1
    with mllm.attention_backend("eager"):
        output = mllm.llm.model(
            inputs_embeds=hidden_BTD,
            attention_mask=branch_mask(branch_BS, T, hidden_BTD.dtype),
            position_ids=start_B1 + torch.arange(T, device=device),
            use_cache=True,
            output_attentions=True,
            **{mllm.cache_argument: prefix.with_room([0], T)},
        )
    return torch.stack([layer[0].float().mean(dim=0) for layer in output.attentions]).mean(dim=0)

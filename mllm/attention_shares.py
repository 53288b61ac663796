"""Where the state of a decision looked: its attention, summed over each stream.

Shapes: B = 1 image, L prefix tokens, T tokens of the question and its answer, S = L + T keys, Q newest tokens,
K decisions, G streams.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mllm.config import MLLMConfig
from mllm.language import newest_states
from mllm.modeling import MLLM
from mllm.prefix import PrefixCache, branch_mask, prefix_branch, prefix_positions

STREAMS = ("image", "objects", "parts", "words", "system")
_IMAGE, _OBJECTS, _PARTS, _WORDS, _SYSTEM = range(5)


@torch.no_grad()
def attention_shares(
    mllm: MLLM, prefix: PrefixCache, branch: Sequence[int], answer: Sequence[int]
) -> list[dict[str, float]]:
    """For each [SEG] and [REJ] of an answer, the share of attention on each of STREAMS; they sum to 1.

    The attention is that of the state which prompts the mask head, the mean over layers and heads of the language
    model. `words` are the earlier turns, the question and the answer so far. `system` is what else the prefix has:
    the text before the picture, the marks before the regions, the constants in place of a stream that the model does
    not have. Such a stream has no share.

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
    rows_QS = _attention(mllm, prefix, [*branch, *answer][: places[-1] + 1], places[0])
    rows_KS = rows_QS[[place - places[0] for place in places]]
    stream_S = _stream_of_keys(mllm, prefix.length, rows_KS.shape[1]).to(rows_KS.device)
    sums_KG = rows_KS.new_zeros(len(places), len(STREAMS)).index_add(1, stream_S, rows_KS)
    shown = _streams_of(mllm.config)
    return [{STREAMS[g]: row[g] for g in shown} for row in sums_KG.tolist()]


def _streams_of(config: MLLMConfig) -> list[int]:
    """The streams that a model has."""
    absent = {_OBJECTS: not config.use_objects, _PARTS: not config.use_parts}
    return [stream for stream in range(len(STREAMS)) if not absent.get(stream, False)]


def _stream_of_keys(mllm: MLLM, L: int, S: int) -> Tensor:
    """The stream (S) of each key."""
    config = mllm.config
    before = len(mllm.vocabulary.encode_template(config.chat.before_image))
    stream_S = torch.full((S,), _SYSTEM)
    stop = before + config.low_grid**2
    stream_S[before:stop] = _IMAGE
    for stream, count in ((_OBJECTS, config.max_objects), (_PARTS, config.max_parts)):
        start, stop = stop + 1, stop + 1 + count  # behind a mark
        if stream in _streams_of(config):
            stream_S[start:stop] = stream
    assert stop == L, "the layout of `splice`"
    stream_S[L:] = _WORDS
    return stream_S


def _attention(mllm: MLLM, prefix: PrefixCache, ids: Sequence[int], first: int) -> Tensor:
    """Attention (Q, S) of the tokens from `first` on, the mean over layers and heads, in fp32.

    The weights of the tokens before them are not kept: those of 3,000 tokens would be 24 GB in a 7B model (32 layers
    of 32 heads, 3,900 keys, bf16).
    """
    T, device = len(ids), prefix.valid_BL.device
    hidden_BTD = mllm.embed_text(torch.tensor([ids], device=device))
    branch_BS = torch.cat(
        (prefix_branch(prefix.valid_BL), torch.zeros(1, T, dtype=torch.long, device=device)), 1
    )
    start_B1 = prefix_positions(prefix.valid_BL, mllm.config.count_padding)[:, -1:] + 1
    position_BT = start_B1 + torch.arange(T, device=device)
    cache = prefix.with_room([0], T)
    if first:
        mask = branch_mask(branch_BS[:, : prefix.length + first], first, hidden_BTD.dtype)
        with mllm.attention_backend("eager" if mllm.config.attention == "eager" else "sdpa"):
            newest_states(
                mllm.llm.model,
                hidden_BTD[:, :first],
                position_BT[:, :first],
                cache,
                mask,
                mllm.cache_argument,
            )
    with mllm.attention_backend("eager"):
        output = mllm.llm.model(
            inputs_embeds=hidden_BTD[:, first:],
            attention_mask=branch_mask(branch_BS, T - first, hidden_BTD.dtype),
            position_ids=position_BT[:, first:],
            use_cache=True,
            output_attentions=True,
            **{mllm.cache_argument: cache},
        )
    return torch.stack([layer[0].float().mean(dim=0) for layer in output.attentions]).mean(dim=0)

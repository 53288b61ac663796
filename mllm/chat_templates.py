"""Chat formats: the text around the picture, questions and answers that a language model was trained with.

Each piece is written as the model's own format has it, special tokens spelled out (`<s>`, `<|im_start|>`). The visual
prefix stands inside the first question, after `before_image`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Text of a conversation about one picture, in the order in which it is written.

    `before_image`, picture, `after_image`, question, `before_answer`, answer, `end`, then for each later question
    `before_question`, question, `before_answer`, answer, `end`. A space at the end of a piece belongs to the word
    after it; before [SEG] and [REJ] it is left out. The defaults are the tiny model's: marks of its own.
    """

    before_image: str = "<image>"
    after_image: str = "<user>"
    before_question: str = "<user>"
    before_answer: str = "<assistant>"
    end: str = "<end>"  # one token, which is learned and ends an answer


# LLaVA-1.5 (conv "vicuna_v1" of the original code). The space before the line break is a token of its training, whose
# tokenizer put one at the start of each piece between pictures and marks.
LLAVA_1_5 = ChatTemplate(
    before_image=(
        "<s> A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions. USER: "
    ),
    after_image=" \n",
    before_question=" USER: ",
    before_answer=" ASSISTANT: ",
    end="</s>",
)
MISTRAL = ChatTemplate("<s>[INST] ", "\n", "[INST] ", " [/INST] ", "</s>")
LLAMA_3 = ChatTemplate(
    before_image="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
    after_image="\n",
    before_question="<|start_header_id|>user<|end_header_id|>\n\n",
    before_answer="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    end="<|eot_id|>",
)
QWEN_2 = ChatTemplate(
    before_image="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    after_image="\n",
    before_question="\n<|im_start|>user\n",
    before_answer="<|im_end|>\n<|im_start|>assistant\n",
    end="<|im_end|>",
)
# Without thinking, as the format of Qwen3 writes it: an empty thought before the answer.
QWEN_3 = ChatTemplate(
    before_image="<|im_start|>user\n",
    after_image="\n",
    before_question="\n<|im_start|>user\n",
    before_answer="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    end="<|im_end|>",
)

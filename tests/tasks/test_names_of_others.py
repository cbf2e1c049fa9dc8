"""Files of a task give what loaders of others ask for by name.

The names are those of optimum's exporter (its outputs by task), which `ORTModelFor...` and transformers.js read.

Covers: tasks/table.py
"""

from __future__ import annotations

import pytest

from onnxopt.tasks.table import parse_task

WANTED = {
    "causal-lm": {"logits"},
    "default": {"last_hidden_state"},
    "image-classification": {"logits"},
    "masked-lm": {"logits"},
    "object-detection": {"logits", "pred_boxes"},
    "question-answering": {"start_logits", "end_logits"},
    "seq2seq-lm": {"logits"},
    "sequence-classification": {"logits"},
    "speech2seq-lm": {"logits"},
    "token-classification": {"logits"},
    "zero-shot-image-classification": {"logits_per_image", "text_embeds", "image_embeds"},
}


@pytest.mark.parametrize("name", WANTED)
def test_outputs_have_the_names_that_others_ask_for(name: str) -> None:
    head = parse_task(name).head
    given = {*WANTED[name], "hidden_states", "attentions"}  # as transformers' classes give them
    assert set(head.answers(given)) == WANTED[name]

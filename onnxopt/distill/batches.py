"""Rows as tensors on a device, with what counts in them for a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.load.checkpoint.opened import Opened
from onnxopt.spec import Array
from onnxopt.texts.rows import Rows, next_tokens

MASKED_SHARE = 0.15  # of the tokens, for a model that fills masks (Devlin et al. 2019, arXiv:1810.04805)


@dataclass(frozen=True)
class Batch:
    """Some rows, all tensors on one device.

    Attributes:
        feeds: `input_ids` and `attention_mask`, int64 [rows, width].
        tokens: bool [rows, width], the positions that count.
        wanted: int64, what is right: of each position, or of each row; None when nobody knows.
        count: how many positions, or rows, count.
    """

    feeds: dict[str, Any]
    tokens: Any
    wanted: Any
    count: int


@dataclass(frozen=True)
class Batches:
    """Makes batches.

    Attributes:
        seed: of the tokens that are hidden.
        teacher: says what the task is, and how a hidden token is written.
        device: where tensors go.
    """

    seed: int
    teacher: Opened
    device: Any

    def make(self, rows: Rows, index: Array, step: int) -> Batch:
        """Return some rows; what is hidden in them depends on the row and the step alone."""
        import torch

        some = rows.take(index)
        ids, mask = some.ids, some.mask
        tokens, wanted = mask.astype(bool), None
        name = self.teacher.task.name
        if name == "text-generation":
            wanted = next_tokens(ids, mask)
        elif name == "fill-mask":
            ids, tokens = self._hide(ids, mask, index, step)
        elif some.labels is not None:
            wanted = some.labels
        return Batch(
            {
                "input_ids": torch.from_numpy(ids).to(self.device),
                "attention_mask": torch.from_numpy(mask).to(self.device),
            },
            torch.from_numpy(tokens).to(self.device),
            None if wanted is None else torch.from_numpy(wanted).to(self.device),
            len(ids) if name == "text-classification" else int(tokens.sum()),
        )

    def _hide(self, ids: Array, mask: Array, index: Array, step: int) -> tuple[Array, Array]:
        """Hide some tokens of each row behind the mask token, the same whichever process has the row."""
        from onnxopt.texts.tokenizer import open_tokenizer, read_settings, token_text

        folder = self.teacher.folder
        named = token_text(read_settings(folder, "tokenizer_config.json").get("mask_token")) or "[MASK]"
        hidden = open_tokenizer(folder).token_to_id(named)
        if hidden is None:
            raise InputError("the tokenizer has no mask token", where=str(folder))
        chosen = np.zeros(mask.shape, bool)
        for place, row in enumerate(index):
            draw = np.random.default_rng([self.seed, step, int(row)])
            chosen[place] = draw.random(mask.shape[1]) < MASKED_SHARE
            chosen[place, 0] |= not chosen[place].any()
        chosen &= mask.astype(bool)
        return np.where(chosen, hidden, ids), chosen

"""What a student is held to: the teacher's distribution, its hidden states, its embeddings, and labels.

Every function returns a sum over rows or tokens, so that pieces of a batch, and processes, add up to the batch.

Sources: Hinton, Vinyals & Dean 2015, arXiv:1503.02531 (logits at a temperature, times T²); Sanh et al. 2019,
arXiv:1910.01108 (next token and labels beside it); Jiao et al. 2020 (TinyBERT), arXiv:1909.10351 (hidden states through
a learned projection); Reimers & Gurevych 2020, arXiv:2004.09813 (embeddings).
"""

from __future__ import annotations

from typing import Any


def soft_targets(student: Any, teacher: Any, *, temperature: float, top_k: int = 0) -> Any:
    """Return Σ KL(teacher ‖ student)·T² over rows.

    With `top_k` the teacher's likeliest tokens count one by one and all others as one, which is a bound of the whole
    divergence from below and needs no softmax of the rest in memory twice.

    Args:
        student: float [rows, vocabulary].
        teacher: float [rows, vocabulary].
        temperature: T.
        top_k: 0 for the whole vocabulary.
    """
    import torch
    from torch.nn import functional

    ours = functional.log_softmax(student.float() / temperature, dim=-1)
    theirs = functional.log_softmax(teacher.float() / temperature, dim=-1)
    if top_k and top_k < theirs.shape[-1]:
        best, index = theirs.topk(top_k, dim=-1)
        mine = ours.gather(-1, index)
        theirs = torch.cat([best, _rest(best)], dim=-1)
        ours = torch.cat([mine, _rest(mine)], dim=-1)
    divergence = functional.kl_div(ours, theirs, reduction="sum", log_target=True)
    return divergence * temperature**2


def _rest(logs: Any) -> Any:
    """Return log(1 − Σ p) of what is left over: float [rows, 1]."""
    return (1 - logs.exp().sum(dim=-1, keepdim=True)).clamp(min=1e-12).log()


def hidden_states(student: Any, teacher: Any) -> Any:
    """Return Σ over rows of the mean squared difference, in units of the teacher's mean square there.

    Args:
        student: float [rows, width], already projected to the teacher's width.
        teacher: float [rows, width].
    """
    scale = teacher.float().square().mean(dim=-1).clamp(min=1e-6)
    return ((student.float() - teacher.float()).square().mean(dim=-1) / scale).sum()


def embeddings(student: Any, teacher: Any) -> Any:
    """Return Σ (1 − cosine) over rows: float [rows, width] both."""
    from torch.nn import functional

    return (1 - functional.cosine_similarity(student.float(), teacher.float(), dim=-1)).sum()


def likeness(student: Any, teacher: Any) -> float:
    """Return the mean cosine of rows, or, for rows of different widths, how their similarities to each other correlate.

    Args:
        student: float [rows, width].
        teacher: float [rows, width'].
    """
    import torch
    from torch.nn import functional

    if student.shape == teacher.shape:
        return 1 - float(embeddings(student, teacher)) / max(len(student), 1)
    pairs = torch.triu_indices(len(student), len(student), offset=1)
    found = []
    for rows in (student.float(), teacher.float()):
        unit = functional.normalize(rows, dim=-1)
        found.append((unit @ unit.T)[pairs[0], pairs[1]])
    return float(torch.corrcoef(torch.stack(found))[0, 1]) if pairs.shape[1] > 1 else 1.0


def labels(student: Any, wanted: Any) -> Any:
    """Return Σ cross entropy: float [rows, classes] and int64 [rows]; -100 does not count."""
    from torch.nn import functional

    return functional.cross_entropy(student.float(), wanted, ignore_index=-100, reduction="sum")

"""What a student is held to: the teacher's distribution, its hidden states, its embeddings, and labels.

Every function returns a sum over rows or tokens, so that pieces of a batch, and processes, add up to the batch.

Sources: Hinton, Vinyals & Dean 2015, arXiv:1503.02531 (logits at a temperature, times T²); Sanh et al. 2019,
arXiv:1910.01108 (next token and labels beside it); Jiao et al. 2020 (TinyBERT), arXiv:1909.10351 (hidden states through
a learned projection); Wang et al. 2020 (MiniLM), arXiv:2002.10957, section 3.1 (where the last layer's heads look);
Reimers & Gurevych 2020, arXiv:2004.09813 (embeddings).
"""

from __future__ import annotations

from typing import Any


def distribution(student: Any, *, temperature: float, logits: Any = None, best: Any = None, index: Any = None) -> Any:
    """Return Σ KL(teacher ‖ student)·T² over rows.

    Of the teacher there are all logits, or the likeliest entries. Those then count one by one and all others as one,
    which bounds the divergence of the whole from below.

    Args:
        student: float [rows, vocabulary].
        temperature: T.
        logits: of the teacher, float [rows, vocabulary].
        best: or its likeliest log probabilities at T, float [rows, k].
        index: and where they are, int64 [rows, k].
    """
    import torch
    from torch.nn import functional

    ours = functional.log_softmax(student.float() / temperature, dim=-1)
    if index is None:
        theirs = functional.log_softmax(logits.float() / temperature, dim=-1)
    else:
        theirs, whole = best, ours.shape[-1]
        ours = ours.gather(-1, index)
        if index.shape[-1] < whole:
            ours, theirs = (torch.cat([one, _rest(one)], dim=-1) for one in (ours, theirs))
    return functional.kl_div(ours, theirs, reduction="sum", log_target=True) * temperature**2


def likeliest(logits: Any, *, temperature: float, top_k: int) -> tuple[Any, Any]:
    """Return the likeliest entries of a teacher: their log probabilities at a temperature, and where they are.

    Args:
        logits: float [..., vocabulary].
        temperature: T.
        top_k: how many.

    Returns:
        float32 [..., k] and int64 [..., k].
    """
    scaled = logits.float() / temperature
    best, index = scaled.topk(min(top_k, scaled.shape[-1]), dim=-1)
    return best - scaled.logsumexp(dim=-1, keepdim=True), index


def _rest(logs: Any) -> Any:
    """Return log(1 − Σ p) of what is left over: float [rows, 1]."""
    return (1 - logs.exp().sum(dim=-1, keepdim=True)).clamp(min=1e-12).log()


def attentions(student: Any, teacher: Any) -> Any:
    """Return Σ over rows of KL(teacher ‖ student) of where each head looks, averaged over heads.

    Args:
        student: float [rows, heads, keys], each a distribution.
        teacher: float [rows, heads, keys].
    """
    ours, theirs = (one.float().clamp(min=1e-9) for one in (student, teacher))
    return (theirs * (theirs.log() - ours.log())).sum(dim=-1).mean(dim=-1).sum()


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

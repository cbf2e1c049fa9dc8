"""Fixed shapes: a request is padded to the smallest bucket, and its part comes back as it would alone.

Covers: run/padding.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxopt import FixedShapes, Session
from onnxopt.errors import InputError
from onnxopt.run.padding import Filler
from tests.support.pool import feeds, session

__all__ = ["session"]

BUCKETS = ({"batch": 1, "sequence": 4}, {"batch": 4, "sequence": 8})


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 3), (4, 8), (3, 5)])
def test_a_request_in_a_bucket_is_answered_as_alone(session: Session, shape: tuple[int, int]) -> None:
    buckets = FixedShapes(session, BUCKETS)
    for _ in range(2):  # the second time the buffers hold what was there
        found, alone = buckets.run(feeds(*shape)), session.run(feeds(*shape))
        for name, expected in alone.items():
            np.testing.assert_array_equal(expected, found[name])


def test_buffers_stay_and_an_older_answer_is_not_overwritten(session: Session) -> None:
    buckets = FixedShapes(session, BUCKETS)
    first = buckets.run(feeds(1, 2))
    kept = {name: array.copy() for name, array in first.items()}
    bound = buckets._bound[0]
    buckets.run(feeds(1, 4))
    assert buckets._bound[0] is bound
    for name, array in kept.items():
        np.testing.assert_array_equal(array, first[name])


def test_every_bucket_has_a_graph_of_its_own(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[int | None] = []
    run = session.run_bound

    def counted(binding: Any, graph: int | None = None) -> None:
        graphs.append(graph)
        run(binding)

    monkeypatch.setattr(session, "run_bound", counted)
    session.cuda_graph = True
    buckets = FixedShapes(session, BUCKETS)
    for shape in ((1, 1), (2, 2), (1, 3)):
        buckets.run(feeds(*shape))
    assert graphs == [1, 2, 1]


def test_what_no_bucket_holds_is_said(session: Session) -> None:
    with pytest.raises(InputError, match="no bucket holds batch 1, sequence 9; add a larger one"):
        FixedShapes(session, BUCKETS).run(feeds(1, 9))
    with pytest.raises(InputError, match="the axis 'sequence' has no size in the bucket"):
        FixedShapes(session, [{"batch": 1}])
    with pytest.raises(InputError, match="there is no bucket"):
        FixedShapes(session, [])


def test_a_model_without_a_mask_is_not_padded(session: Session) -> None:
    filler = Filler(session.inputs[:1], session.outputs[:1])
    assert (filler.batch, filler.length) == ("batch", "")
    with pytest.raises(InputError, match="the axis 'sequence' of input 'input_ids' cannot be padded"):
        filler.fill({"input_ids": np.ones((1, 2), np.int64)}, {"batch": 1, "sequence": 3})


def test_padding_goes_to_the_side_that_was_asked_for(session: Session) -> None:
    filler = Filler(session.inputs, session.outputs, pad=3, left=True)
    filled = filler.fill(feeds(1, 2), {"batch": 2, "sequence": 4})
    assert filled["input_ids"].tolist() == [[3, 3, 1, 2], [3, 3, 1, 2]]
    assert filled["attention_mask"].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    cut = filler.cut(session.run(filled), {"batch": 1, "sequence": 2}, start=1)
    np.testing.assert_array_equal(session.run(feeds(1, 2))["tokens"], cut["tokens"])

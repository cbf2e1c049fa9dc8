"""Budgets are read as they are written, and metrics are what their names say."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.errors import InputError
from onnxopt.judge.metrics import Metric, MetricBudget, MetricName, cosine
from onnxopt.spec import Signature, TensorSpec


@pytest.mark.parametrize(
    ("text", "metric", "limit"),
    [
        ("perplexity<=+2%", "perplexity", 1.02),
        ("perplexity <= +0.5 %", "perplexity", 1.005),
        ("perplexity<=1.1", "perplexity", 1.1),
        ("cosine>=0.995", "cosine", 0.995),
        ("agreement>=99%", "agreement", 0.99),
        ("top-1>=0.9", "agreement", 0.9),
        ("rank >= 98 %", "rank", 0.98),
    ],
)
def test_reads_budgets(text: str, metric: str, limit: float) -> None:
    found = MetricBudget.parse(text)
    assert found.metric == metric
    assert found.limit == pytest.approx(limit)
    assert MetricBudget.parse(str(found)).limit == pytest.approx(limit)


@pytest.mark.parametrize(
    "text", ["", "cosine", "cosine<=0.9", "perplexity>=2%", "cosine>=1.5", "perplexity<=-3%", "bleu>=3", "cosine>=a"]
)
def test_refuses_what_nothing_can_meet(text: str) -> None:
    with pytest.raises(InputError, match="budget"):
        MetricBudget.parse(text)


def test_holds_on_its_own_side() -> None:
    assert MetricBudget.parse("cosine>=0.9").holds(0.95)
    assert not MetricBudget.parse("cosine>=0.9").holds(0.85)
    assert MetricBudget.parse("perplexity<=+2%").holds(1.01)
    assert not MetricBudget.parse("perplexity<=+2%").holds(1.03)


def signature(*outputs: tuple[str, int]) -> Signature:
    ids = TensorSpec("input_ids", "int64", ("batch", "sequence"))
    axes = ("batch", "sequence", 8)
    return Signature((ids,), tuple(TensorSpec(name, "float32", axes[:rank]) for name, rank in outputs))


@pytest.mark.parametrize(
    ("outputs", "metric", "output"),
    [
        ((("logits", 3), ("present.0.key", 3)), "perplexity", "logits"),
        ((("logits", 2),), "agreement", "logits"),
        ((("last_hidden_state", 3), ("sentence_embedding", 2)), "cosine", "sentence_embedding"),
        ((("last_hidden_state", 3),), "cosine", "last_hidden_state"),
    ],
)
def test_a_model_is_judged_by_what_it_gives(outputs: tuple[tuple[str, int], ...], metric: str, output: str) -> None:
    assert Metric.of(signature(*outputs)) == Metric(metric, output)  # type: ignore[arg-type]  # a name of a metric


def seeing(*outputs: str, rank: int) -> Signature:
    pixels = TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width"))
    axes = ("batch", 5, "height", "width")[:rank]
    return Signature((pixels,), tuple(TensorSpec(name, "float32", axes) for name in outputs))


def test_segments_are_judged_pixel_by_pixel() -> None:
    metric = Metric.of(seeing("logits", rank=4))
    assert metric == Metric("agreement", "logits")
    reference = np.random.default_rng(0).standard_normal((2, 5, 4, 6)).astype(np.float32)
    candidate = reference.copy()
    candidate[0, :, 1] = -candidate[0, :, 1]  # the best label of a row becomes the worst
    np.testing.assert_allclose(metric.scores(candidate, reference, {}), [0.75, 1.0])


@pytest.mark.parametrize("name", ["pred_boxes", "pred_masks", "masks_queries_logits"])
def test_what_nothing_judges_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"nothing here judges {name} yet.*leave --precision at fp32"):
        Metric.of(seeing("logits", name, rank=3))


def test_perplexity_is_relative_to_the_reference() -> None:
    generator = np.random.default_rng(0)
    logits, ids = generator.standard_normal((2, 6, 9)), generator.integers(0, 9, (2, 6))
    metric = Metric("perplexity", "logits")
    assert metric.value(metric.scores(logits, logits, {"input_ids": ids})) == pytest.approx(1.0)
    best = logits.copy()
    np.put_along_axis(best[:, :-1], ids[:, 1:, None], 20.0, axis=2)
    assert metric.value(metric.scores(best, logits, {"input_ids": ids})) < 0.5
    low, high = metric.interval(metric.scores(best, logits, {"input_ids": ids}))
    assert low <= metric.value(metric.scores(best, logits, {"input_ids": ids})) <= high


def test_agreement_counts_samples() -> None:
    metric = Metric("agreement", "logits")
    a, b = np.array([[1.0, 2], [3, 1]]), np.array([[0.0, 5], [1, 9]])
    assert metric.value(metric.scores(a, b, {})) == 0.5


def test_cosine_of_nothing_with_nothing_is_one() -> None:
    assert cosine(np.zeros((1, 3)), np.zeros((1, 3)))[0] == 1.0
    assert cosine(np.zeros((1, 3)), np.ones((1, 3)))[0] == 0.0
    assert cosine(np.array([[1.0, 1.0]]), np.array([[2.0, 2.0]]))[0] == pytest.approx(1.0)


@pytest.mark.parametrize(("name", "value", "loss"), [("cosine", 0.97, 0.03), ("perplexity", 1.05, 0.04879)])
def test_a_value_and_its_loss_stand_for_each_other(name: MetricName, value: float, loss: float) -> None:
    metric = Metric(name, "logits")
    assert metric.loss(value) == pytest.approx(loss, rel=1e-4)
    assert metric.value_at(metric.loss(value)) == pytest.approx(value)


def one_score() -> Signature:
    whole = signature(("logits", 2))
    return Signature(whole.inputs, (TensorSpec("logits", "float32", ("batch", 1)),))


def test_one_score_is_judged_by_the_order_that_it_gives() -> None:
    metric = Metric.of(one_score())
    assert metric == Metric("rank", "logits")
    reference = np.array([[3.0], [1.0], [-2.0], [0.5]])
    assert metric.value(metric.scores(reference * 7 - 2, reference, {})) == 1.0
    assert metric.value(metric.scores(-reference, reference, {})) == 0.0
    assert metric.value(metric.scores(np.zeros_like(reference), reference, {})) == 0.0
    near, far = reference.copy(), reference.copy()
    near[[1, 3]], far[[0, 2]] = near[[3, 1]], far[[2, 0]]
    values = [metric.value(metric.scores(one, reference, {})) for one in (near, far)]
    assert 0.9 < values[0] < 1  # what was nearly equal may change places
    assert values[1] < 0.2


def test_the_order_is_that_of_all_samples_whatever_their_batches() -> None:
    rng = np.random.default_rng(3)
    reference = rng.standard_normal((9, 1))
    candidate = reference + 0.3 * rng.standard_normal((9, 1))
    metric = Metric("rank", "logits")
    whole = metric.scores(candidate, reference, {})
    parts = [slice(0, 1), slice(1, 5), slice(5, 9)]
    split = metric.over([candidate[one] for one in parts], [reference[one] for one in parts], [{}, {}, {}])
    np.testing.assert_allclose(split, whole)
    assert 0 < metric.value(whole) < 1
    classes = Metric("agreement", "logits")
    a, b = rng.standard_normal((2, 6, 3))
    np.testing.assert_array_equal(classes.over([a[:2], a[2:]], [b[:2], b[2:]], [{}, {}]), classes.scores(a, b, {}))

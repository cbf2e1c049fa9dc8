"""The report: complete, self-contained, safe with other people's names, the same every time, and fit for a phone.

Covers: artifact/report_plots.py, artifact/report_rows.py, artifact/report_use.py
"""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.artifact.golden import Golden
from onnxopt.artifact.report import Graphs, render_report
from onnxopt.artifact.report_rows import grouped, operator_rows, pass_rows
from onnxopt.graph.outline import Block, Step
from onnxopt.records.manifest import DecodingRecord, FileRecord, Manifest, Shipped
from onnxopt.records.measurements import Latency, Measurements, Race, SessionCost
from onnxopt.records.quantization import (
    FrontRecord,
    GateRecord,
    LayerRecord,
    QuantizationRecord,
    SensitivityRecord,
)
from onnxopt.records.rewrites import BlockCount, PassRecord, ProofRecord, RefusalRecord, RollbackRecord
from onnxopt.spec import PADDINGS, Budget, Signature, Target, TensorSpec, Workload
from tests.support import browser

HOSTILE = "</title></style><script src=http://evil.example/x.js>alert(1)</script><img src=x onerror=alert(1)>\"'&$x_1$"
LONG = "/model/" + "a_very_long_name_without_spaces" * 8
BEFORE = {"Add": 30, "MatMul": 12, "Erf": 2}
AFTER = {"Add": 4, "MatMul": 12, "com.microsoft::Attention": 2}
MASK = (Step("Cast", ("mask",), ("m",)), Step("Sub", ("m",), ("n",)), Step("Mul", ("n",), ("bias",)))
HEADS = tuple(
    step
    for one in "qkv"
    for step in (
        Step("MatMul", ("x",), (f"{one}0",)),
        Step("Reshape", (f"{one}0",), (f"{one}1",)),
        Step("Transpose", (f"{one}1",), (one,)),
    )
)
BLOCK = Block(
    "y",
    (*MASK, *HEADS, Step("Attention", ("q", "k", "v", "bias"), ("z",)), Step("Reshape", ("z",), ("y",))),
    (Step("com.microsoft::Attention", ("x", "mask"), ("y",)),),
)
GRAPHS = Graphs(BEFORE, AFTER, BLOCK)
GOLDEN = Golden(
    {"ids": np.arange(9, dtype=np.int64)[None], "past": np.zeros((1, 0, 4), np.float32)},
    {"hidden": np.linspace(0, 1, 36, dtype=np.float32).reshape(1, 9, 4)},
    1e-4,
)


def make_manifest(**changes: Any) -> Manifest:
    facts: dict[str, Any] = {
        "name": "tiny",
        "task": "feature-extraction",
        "origin": {"source": "some/model", "revision": "abc", "versions": {"onnx-ir": "1.1"}, "sizes": [1, 2]},
        "signature": Signature(
            (TensorSpec("ids", "int64", ("batch", "sequence")),), (TensorSpec("hidden", "float32", ("batch", 4)),)
        ),
        "target": Target("cpu", threads=2),
        "workload": Workload(),
        "budget": Budget(1e-4),
        "proof": tuple(
            ProofRecord(
                sizes={"batch": batch, "sequence": 7},
                padding=padding,
                output=output,
                worst_relative_error=error,
                worst_absolute_error=2 * error,
            )
            for batch in (1, 3)
            for padding in PADDINGS
            for output, error in (("hidden", 3.1e-6), ("pooled", 0.0))
        ),
        "ledger": (
            PassRecord(
                name="fuse-gelu",
                stage="fuse",
                numerics="exact",
                applied=2,
                refused=(RefusalRecord(node="/a", reason="x is int64"), RefusalRecord(node="/b", reason="x is int64")),
                max_error=1e-7,
                nodes_before=44,
                nodes_after=40,
            ),
            PassRecord(name="fuse-rms-norm", stage="fuse", numerics="exact"),
            PassRecord(
                name="fuse-attention",
                stage="fuse",
                numerics="exact",
                rolled_back=(RollbackRecord(node="/layer.3", reason="shapes differ", error=math.inf),),
            ),
            PassRecord(name="fuse-gelu", stage="fuse", numerics="exact", applied=1, nodes_before=40, nodes_after=38),
        ),
        "blocks": {"attention": BlockCount(fused=5, total=6), "layer_norm": BlockCount(fused=2, total=2)},
        "nodes_before": 44,
        "nodes_after": 18,
        "bytes_before": 4096,
        "bytes_after": 2048,
        "notes": ("attention not fused: /layer.4",),
        "versions": {"onnxopt": "0.1", "onnx_ir": "1.1"},
        "machine": {"cpu": "some processor", "memory_bytes": 2**34, "isa": ["avx2"]},
    }
    return Manifest(**(facts | changes))


def make_measurements() -> Measurements:
    return Measurements(
        created="2026-11-02T03:04:05+00:00",
        latency=(
            Latency(shape={"batch": 1, "sequence": 16}, before_ms=8.0, after_ms=4.0),
            Latency(shape={"batch": 8, "sequence": 128}, fill=0.26, before_ms=300.0, after_ms=330.0),
        ),
        pass_seconds={"fuse-gelu": 1.25},
        seconds=12.0,
    )


def render(manifest: Manifest | None = None, measurements: Measurements | None = None) -> str:
    return render_report(manifest or make_manifest(), measurements, GRAPHS, golden=[GOLDEN], folder="tiny").decode()


class Page(HTMLParser):
    """Collects elements and the text that a reader sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def test_tells_the_headline() -> None:
    text = Page(render(measurements=make_measurements())).text
    for fact in (
        "tiny",
        "for cpu, 2 threads",
        "7 of 8",
        "3.1e-06",
        "budget 0.0001",
        "2.00×",
        "0.91×",
        "8 × 128, 26% real",
        "8.00 → 4.00 ms",
    ):
        assert fact in text


def test_a_speed_is_told_with_its_interval_and_only_as_far_as_it_was_seen() -> None:
    bounds = {"faster": (1.4, 1.6), "the same": (0.9, 1.2), "slower": (0.7, 0.9)}
    shapes = tuple(
        Latency(shape={"batch": n}, before_ms=10.0, after_ms=20 / (low + high), low=low, high=high)
        for n, (low, high) in enumerate(bounds.values(), start=1)
    )
    race = Race(
        form="optimized", speedup=1.1, low=0.9, high=1.3, turns=18, shapes=shapes, trouble="others took 1.4 of 2"
    )
    page = Page(
        render(
            make_manifest(shipped=Shipped(form="optimized", tried=("fused",), reason="it is pruned")),
            Measurements(created="2026-11-02T03:04:05+00:00", latency=shapes, races=(race,)),
        )
    )
    tiles = [attrs.get("class") for tag, attrs in page.elements if tag == "b" and "class" in attrs]
    assert tiles == ["good", "", "bad"]
    assert "no difference seen at 2" in page.text
    assert "1.05× (0.90 to 1.20): no difference seen" in page.text
    assert (
        "the optimized graph: 1.10× (0.90 to 1.30): no difference seen, 18 turns; the machine was not quiet"
        in page.text
    )
    assert "The optimized graph is shipped: it is pruned." in page.text


def test_the_error_of_a_quantized_graph_is_said_to_be_that_of_the_float_graph() -> None:
    for is_shipped in (True, False):
        found = QuantizationRecord(asked="int8", shipped=is_shipped, reason="" if is_shipped else "too far off")
        text = Page(render(make_manifest(quantization=found))).text
        assert ("worst relative error of the float graph" in text) == is_shipped


def test_a_row_of_a_pass_counts_weights_of_the_file_alone() -> None:
    ledger = tuple(
        PassRecord(name=name, stage="canonicalize", numerics="exact", applied=1, bytes_saved=count)
        for name, count in [("fold-constants", -5000), ("merge-initializers", 5000)] * 4 + [("remove-unused", 70)]
    )
    assert {row.name: row.bytes_saved for row in pass_rows(ledger, {})} == {
        "fold-constants": 0,
        "merge-initializers": 0,
        "remove-unused": 70,
    }


def test_tells_everything_about_each_pass() -> None:
    text = Page(render(measurements=make_measurements())).text
    assert "3 applied · 2 refused · 2 runs" in text
    assert "worst error 1.0e-07 · −6 nodes · 1.25 s" in text
    assert "refused 2 × x is int64" in text
    assert "rolled back at /layer.3: shapes differ (error not comparable)" in text
    assert "Found nothing to do: fuse-rms-norm" in text


def test_tells_proof_operators_origin_and_tools() -> None:
    text = Page(render()).text
    for fact in (
        *PADDINGS,
        "hidden",
        "pooled",
        "com.microsoft::Attention",
        "some processor",
        "16.00 GiB",
        "attention not fused: /layer.4",
        "some/model at abc",
        "speed not measured",
        "2.0 KiB",
    ):
        assert fact in text
    assert text.count("onnx-ir") == 1


def test_the_same_facts_give_the_same_bytes() -> None:
    assert render(measurements=make_measurements()) == render(measurements=make_measurements())


def test_loads_nothing() -> None:
    page = render(measurements=make_measurements())
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    elements = Page(page).elements
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in elements}
    addresses = {value for _, attrs in elements for key, value in attrs.items() if key in {"src", "href", "xlink:href"}}
    assert all(address and address.startswith("#") for address in addresses)


def test_ids_are_unique_and_colours_follow_the_page() -> None:
    page = render(measurements=make_measurements())
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(ids)
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}", drawings)
    assert "<text" in drawings


def test_names_out_of_files_stay_text() -> None:
    proof = ProofRecord(
        sizes={HOSTILE: 3}, padding="none", output=HOSTILE, worst_relative_error=1e-6, worst_absolute_error=1e-6
    )
    record = PassRecord(
        name=HOSTILE,
        stage=HOSTILE,
        numerics=HOSTILE,
        applied=1,
        refused=(RefusalRecord(node=HOSTILE, reason=HOSTILE),),
        rolled_back=(RollbackRecord(node=HOSTILE, reason=HOSTILE, error=0.1),),
    )
    manifest = make_manifest(
        name=HOSTILE,
        task=HOSTILE,
        origin={"source": HOSTILE, "revision": HOSTILE, HOSTILE: {HOSTILE: [HOSTILE]}},
        signature=Signature((TensorSpec(HOSTILE, HOSTILE, (HOSTILE,)),), ()),
        proof=(proof,),
        ledger=(record, PassRecord(name=HOSTILE, stage="idle", numerics="exact")),
        blocks={HOSTILE: BlockCount(fused=1, total=1)},
        notes=(HOSTILE,),
        versions={HOSTILE: HOSTILE},
        machine={HOSTILE: HOSTILE},
    )
    measurements = Measurements(
        created=HOSTILE,
        latency=(Latency(shape={HOSTILE: 1}, before_ms=1.0, after_ms=1.0),),
        pass_seconds={HOSTILE: 1.0},
    )
    page = Page(render_report(manifest, measurements, Graphs({HOSTILE: 1}, {HOSTILE: 2})).decode())
    plain = Page(render(measurements=make_measurements()))
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements} | {"wbr"}
    assert not any(key.startswith("on") for _, attrs in page.elements for key in attrs)
    assert HOSTILE in "".join(page.words)


def test_half_a_surrogate_pair_does_not_stop_the_report() -> None:
    assert b"name&#56320;" in render_report(make_manifest(name="name\udc00"), None, Graphs({}, {}))


def test_says_when_weights_are_random() -> None:
    assert "Random weights." not in Page(render()).text
    assert "no accuracy is claimed" in Page(render(make_manifest(random_weights=True))).text


def test_an_empty_manifest_still_reads() -> None:
    bare = make_manifest(proof=(), ledger=(), blocks={}, notes=(), origin={}, versions={}, machine={})
    text = Page(render_report(bare, Measurements(created="now"), Graphs({}, {})).decode()).text
    assert "Nothing was compared." in text
    assert "none recognised" in text
    assert "No pass changed or refused anything." in text


def test_errors_that_cannot_be_drawn_do_not_stop_the_report() -> None:
    proof = tuple(
        ProofRecord(sizes={}, padding="none", output=name, worst_relative_error=error, worst_absolute_error=error)
        for name, error in (("a", math.nan), ("b", math.inf), ("c", 0.0), ("d", 1e-30))
    )
    text = Page(render(make_manifest(proof=proof, ledger=(), budget=Budget(0.0)))).text
    assert text.count("not comparable") == 6  # two errors, relative and absolute, the headline and the tile


def test_refusals_are_counted_and_cut() -> None:
    nodes = [f"/n{index}" for index in range(50)]
    record = PassRecord(
        name="p", stage="fuse", numerics="exact", refused=tuple(RefusalRecord(node=node, reason="no") for node in nodes)
    )
    (row,) = pass_rows([record], {})
    assert (row.reasons[0].count, row.reasons[0].more) == (50, 44)
    assert "and 44 more" in Page(render(make_manifest(ledger=(record,)))).text


def test_operators_stand_with_the_most_frequent_first() -> None:
    rows = operator_rows({"Add": 1, "Mul": 4}, {"Add": 2})
    assert [(row.name, row.before, row.after, row.before_share) for row in rows] == [
        ("Mul", 4, 0, 100.0),
        ("Add", 1, 2, 25.0),
    ]
    assert rows[1].after_share == 50.0


def quantized() -> Manifest:
    gate = GateRecord(
        metric="cosine", budget="cosine>=0.99", value=0.995, low=0.994, high=0.996, worst=0.99, samples=64, holds=True
    )
    layers = {f"layer.{place}": LayerRecord(precision="int8", smoothed=place < 8) for place in range(24)}
    front = (
        FrontRecord(value=0.991, seconds=5e-5, counts={"int8": 24}),
        FrontRecord(value=0.995, seconds=6e-5, counts={"int8": 16, "int8 smoothed": 8}),
    )
    ranked = tuple(SensitivityRecord(label=name, loss=1e-4 * place) for place, name in enumerate(layers))
    found = QuantizationRecord(asked="int8", shipped=True, gate=gate, layers=layers, front=front, sensitivities=ranked)
    return make_manifest(quantization=found, shipped=Shipped(form="optimized"), bytes_before=400, bytes_after=100)


def test_the_headline_says_what_is_shipped_how_fast_how_large_and_how_near() -> None:
    latency = (Latency(shape={"batch": 1}, before_ms=9.0, after_ms=3.0, low=2.5, high=3.5, after_p99_ms=3.75),)
    race = Race(
        form="optimized",
        speedup=3.0,
        low=2.5,
        high=3.5,
        turns=8,
        shapes=latency,
        trouble="others took 1 of 2 processors",
        before_bytes=8 << 20,
        after_bytes=2 << 20,
        after_session=SessionCost(open_ms=1250.0, held_bytes=3 << 20),
    )
    measured = Measurements(created="2026-11-02T03:04:05+00:00", latency=latency, races=(race,))
    text = Page(render(quantized(), measured)).text
    for fact in (
        "int8, quantized",
        "3.00× (2.50 to 3.50) the original's over the workload; the machine was not quiet: others took 1 of 2",
        "2.0 MiB at its highest, 8.0 MiB before",
        "1.2 s, and it holds 3.0 MiB",
        "100 B, 25% of 400 B",
        "cosine 0.99500, 95 % 0.99400 to 0.99600",
        "some processor, 2 threads",
        "3.75",
    ):
        assert fact in text
    assert "the optimized graph, not quantized" in Page(render(make_manifest(shipped=Shipped(form="optimized")))).text


def test_the_plan_that_is_shipped_is_marked() -> None:
    page = render(quantized())
    front = page[page.index("Accuracy against speed") :].split("</svg>")[0]
    assert front.count("fill:var(--after)") == 1
    assert front.index("cosine 0.99500") < front.index("cosine 0.99100")
    assert front.count("shipped") == 1
    assert "0.99100" in page
    text = Page(render(make_manifest(quantization=QuantizationRecord(asked="int8", shipped=False, reason="off")))).text
    assert "Accuracy against speed" not in text


def test_it_says_how_to_use_the_artifact_and_shows_one_answer() -> None:
    text = Page(render()).text
    assert "onnxopt bench tiny" in text, "there is no tokenizer to read text with"
    assert "0, 1, 2, 3, 4, 5, …" in text
    assert "0.028571" in text
    assert "past" not in text, "an empty cache has no numbers"
    known = FileRecord(sha256="0" * 64, size_bytes=1)
    cached = DecodingRecord(shared_buffers=False, logits="last")
    for decoding, line in ((None, 'onnxopt run tiny "a first text"'), (cached, "onnxopt generate tiny")):
        found = Page(render(make_manifest(files={"tokenizer.json": known}, decoding=decoding))).text
        assert line in found
        assert "onnxopt serve tiny" in found


def test_a_block_is_drawn_before_and_after() -> None:
    page = render()
    assert f"{len(BLOCK.before)} nodes became 1" in Page(page).text
    drawings = page[page.index('id="block"') :].split("</section>")[0]
    assert drawings.count("<rect") == len(BLOCK.before) + 1
    assert "One block" not in Page(render_report(make_manifest(), None, Graphs(BEFORE, AFTER)).decode()).text


def test_the_outputs_of_a_cache_are_one_line_with_the_worst_of_them() -> None:
    errors = {
        "logits": 1e-7,
        "present.0.key": 1e-6,
        "present.1.key": 3e-6,
        "present.12.key": 2e-6,
        "present.0.value": 0.0,
    }
    proof = [
        ProofRecord(sizes={"batch": 1}, padding="none", output=name, worst_relative_error=one, worst_absolute_error=one)
        for name, one in errors.items()
    ]
    found = {record.output: record.worst_relative_error for record in grouped(proof)}
    assert found == {"logits": 1e-7, "present.*.key": 3e-6, "present.0.value": 0.0}
    unclear = proof[2].model_copy(update={"worst_relative_error": math.nan})
    found = {record.output: record.worst_relative_error for record in grouped([*proof[:2], unclear, proof[3]])}
    assert math.isnan(found["present.*.key"])


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_no_word_of_a_drawing_lies_over_another_or_is_cut(width: int, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(quantized(), make_measurements()))
    words, trouble = browser.drawings(page, width, tmp_path)
    assert words > 40
    assert trouble == ""
    page.write_text(
        "<svg width=90 height=40><text y=20>one</text><text x=5 y=21>two</text><text x=80 y=20>three</text></svg>"
    )
    assert browser.drawings(page, width, tmp_path)[1] == "one over two | three is cut"


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1200])
def test_fits_a_phone_and_a_desk(width: int, tmp_path: Path) -> None:
    from PIL import Image

    refusal = RefusalRecord(node=LONG, reason=LONG)
    record = PassRecord(name="fuse-linear", stage="fuse", numerics="exact", applied=1, refused=(refusal,))
    manifest = make_manifest(
        name=LONG,
        notes=(LONG,),
        ledger=(*make_manifest().ledger, record),
        origin={"source": LONG, "weights_sha256": "0123456789abcdef" * 4},
    )
    page = tmp_path / "report.html"
    page.write_bytes(render_report(manifest, make_measurements(), Graphs({LONG: 3, **BEFORE}, AFTER)))
    taken, height, outside = browser.measure(page, width, tmp_path)
    assert (width, "") == (taken, outside)
    assert height > 1000
    picture = tmp_path / "report.png"
    browser.screenshot(page, picture, width, 2000, tmp_path)
    with Image.open(picture) as image:
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3)
    teal = np.abs(colours.astype(int) - (0x0B, 0x7A, 0x75)).max(axis=1) < 12
    assert teal.sum() > 300, "the bars of the result are not drawn"

"""Products, convolutions, pools and recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence

from onnxopt.sizes.facts import UNKNOWN, Fact, of_rank
from onnxopt.sizes.rules import Step, contrib, rule, together
from onnxopt.sizes.terms import Size, add, divide, exact_quotient, fresh, multiply, subtract


@rule("MatMul", "MatMulInteger")
def _matmul(step: Step) -> Sequence[Fact]:
    return [Fact(_multiplied(step.dims(0), step.dims(1)))]


@rule("QLinearMatMul")
def _quantized_matmul(step: Step) -> Sequence[Fact]:
    return [Fact(_multiplied(step.dims(0), step.dims(3)))]


@contrib("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "TransposeMatMul")
def _matmul_to_float(step: Step) -> Sequence[Fact]:
    return [Fact(_multiplied(step.dims(0), step.dims(1)))]


@contrib("FusedMatMul")
def _fused_matmul(step: Step) -> Sequence[Fact]:
    left, right = step.dims(0), step.dims(1)
    if step.attribute("transBatchA") or step.attribute("transBatchB") or left is None or right is None:
        return [UNKNOWN]
    return [Fact(_multiplied(_turned(left, step.attribute("transA")), _turned(right, step.attribute("transB"))))]


def _turned(dims: tuple[Size, ...], flag: int | None) -> tuple[Size, ...]:
    return (*dims[:-2], dims[-1], dims[-2]) if flag and len(dims) > 1 else dims


def _multiplied(left: tuple[Size, ...] | None, right: tuple[Size, ...] | None) -> tuple[Size, ...] | None:
    """Return the dimensions of a product of stacks of matrices, as numpy.matmul has them."""
    if not left or not right:
        return None
    stack = together(left[:-2] if len(left) > 1 else (), right[:-2] if len(right) > 1 else ())
    rows = (left[-2],) if len(left) > 1 else ()
    columns = (right[-1],) if len(right) > 1 else ()
    return (*(stack or ()), *rows, *columns)


@rule("Gemm")
def _gemm(step: Step) -> Sequence[Fact]:
    return [Fact(_of_gemm(step, step.dims(0), step.dims(1)))]


@contrib("FusedGemm", "GemmFastGelu")
def _fused_gemm(step: Step) -> Sequence[Fact]:
    return [Fact(_of_gemm(step, step.dims(0), step.dims(1)))]


@contrib("QGemm")
def _quantized_gemm(step: Step) -> Sequence[Fact]:
    return [Fact(_of_gemm(step, step.dims(0), step.dims(3)))]


def _of_gemm(step: Step, left: tuple[Size, ...] | None, right: tuple[Size, ...] | None) -> tuple[Size, ...] | None:
    if left is None or right is None or len(left) != 2 or len(right) != 2:
        return None
    return (left[1 if step.attribute("transA") else 0], right[0 if step.attribute("transB") else 1])


@contrib("MatMulNBits")
def _matmul_bits(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    return [Fact(None if dims is None else (*dims[:-1], int(step.attribute("N"))))]


@contrib("GatherBlockQuantized")
def _gather_blocks(step: Step) -> Sequence[Fact]:
    data, indices = step.dims(0), step.dims(1)
    if data is None or indices is None:
        return [UNKNOWN]
    bits = step.node.attributes.get("bits")
    stored = step.node.inputs[0].dtype if step.node.inputs[0] is not None else None
    if bits is None or stored is None or int(stored.itemsize * 8) == bits.as_int():
        return (
            [Fact((*indices, *data[1:]))]
            if not step.attribute("gather_axis")
            else [of_rank(len(data) + len(indices) - 1)]
        )
    return [of_rank(len(data) + len(indices) - 1)]


@rule("Conv", "ConvInteger")
def _conv(step: Step) -> Sequence[Fact]:
    return [_convolved(step, step.dims(0), step.dims(1))]


@contrib("FusedConv", "NhwcFusedConv")
def _fused_conv(step: Step) -> Sequence[Fact]:
    if step.node.op_type != "FusedConv":
        return [of_rank(step.fact(0).rank or 4)]
    return [_convolved(step, step.dims(0), step.dims(1))]


@rule("QLinearConv")
def _quantized_conv(step: Step) -> Sequence[Fact]:
    return [_convolved(step, step.dims(0), step.dims(3))]


def _convolved(step: Step, dims: tuple[Size, ...] | None, weight: tuple[Size, ...] | None) -> Fact:
    if dims is None or weight is None:
        return UNKNOWN
    if len(weight) != len(dims):
        return of_rank(len(dims))
    return Fact((dims[0], weight[0], *_windows(step, dims[2:], weight[2:])))


def _windows(step: Step, sizes: Sequence[Size], kernel: Sequence[Size]) -> list[Size]:
    """Return how many places a window has along each axis; ONNX operators Conv-11 and MaxPool-12."""
    rank = len(sizes)
    strides = list(step.attribute("strides") or [1] * rank)
    dilations = list(step.attribute("dilations") or [1] * rank)
    pads = list(step.attribute("pads") or [0] * 2 * rank)
    how = step.attribute("auto_pad") or "NOTSET"
    ceil = bool(step.node.attributes.get("ceil_mode") is not None and step.attribute("ceil_mode"))
    made: list[Size] = []
    for place, size in enumerate(sizes):
        stride, reach = strides[place], add(multiply(subtract(kernel[place], 1), dilations[place]), 1)
        if how in ("SAME_UPPER", "SAME_LOWER"):
            made.append(divide(add(size, stride - 1), stride))
            continue
        around = 0 if how == "VALID" else pads[place] + pads[place + rank]
        room = subtract(add(size, around), reach)
        if ceil and stride > 1 and exact_quotient(room, stride) is None:
            made.append(fresh())  # whether a last window that starts in the padding counts, versions differ in
        elif stride == 1:
            made.append(add(room, 1))
        else:
            made.append(add(divide(room, stride), 1))
    return made


@rule("MaxPool", "AveragePool", "LpPool", "MaxUnpool")
def _pool(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    if dims is None:
        return [UNKNOWN]
    if step.node.op_type == "MaxUnpool":
        return [of_rank(len(dims))]
    made = Fact((*dims[:2], *_windows(step, dims[2:], list(step.attribute("kernel_shape")))))
    return [made, made][: len(step.node.outputs)]


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    return [Fact(None if dims is None else (*dims[:2], *(1 for _ in dims[2:])))]


@rule("ConvTranspose")
def _conv_transpose(step: Step) -> Sequence[Fact]:
    dims, weight = step.dims(0), step.dims(1)
    if dims is None or weight is None or len(weight) != len(dims):
        return [UNKNOWN if dims is None else of_rank(len(dims))]
    rank = len(dims) - 2
    channels = multiply(weight[1], int(step.attribute("group") or 1))
    given = step.attribute("output_shape")
    if given:
        return [Fact((dims[0], channels, *list(given)[-rank:]))]
    strides = list(step.attribute("strides") or [1] * rank)
    dilations = list(step.attribute("dilations") or [1] * rank)
    pads = list(step.attribute("pads") or [0] * 2 * rank)
    extra = list(step.attribute("output_padding") or [0] * rank)
    how = step.attribute("auto_pad") or "NOTSET"
    made: list[Size] = []
    for place, size in enumerate(dims[2:]):
        if how in ("SAME_UPPER", "SAME_LOWER"):
            made.append(multiply(size, strides[place]))
            continue
        around = 0 if how == "VALID" else pads[place] + pads[place + rank]
        reach = add(multiply(subtract(weight[2 + place], 1), dilations[place]), 1)
        made.append(subtract(add(add(multiply(subtract(size, 1), strides[place]), extra[place]), reach), around))
    return [Fact((dims[0], channels, *made))]


@rule("LSTM", "GRU", "RNN")
def _recurrent(step: Step) -> Sequence[Fact]:
    return _of_recurrent(step)


@contrib("DynamicQuantizeLSTM")
def _quantized_recurrent(step: Step) -> Sequence[Fact]:
    return _of_recurrent(step)


def _of_recurrent(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    hidden = step.node.attributes.get("hidden_size")
    if dims is None or len(dims) != 3 or hidden is None:
        return []
    size, directions = hidden.as_int(), 2 if step.attribute("direction") == "bidirectional" else 1
    if step.attribute("layout"):
        batch, length = dims[0], dims[1]
        state = Fact((batch, directions, size))
        return [Fact((batch, length, directions, size)), state, state]
    length, batch = dims[0], dims[1]
    state = Fact((directions, batch, size))
    return [Fact((length, directions, batch, size)), state, state]


@rule("Einsum")
def _einsum(step: Step) -> Sequence[Fact]:
    equation = str(step.attribute("equation")).replace(" ", "")
    terms, arrow, result = equation.partition("->")
    parts = terms.split(",")
    if "." in equation or len(parts) != len(step.inputs):
        return [UNKNOWN]
    sizes: dict[str, Size] = {}
    for letters, fact in zip(parts, step.inputs, strict=True):
        if fact.dims is None or len(fact.dims) != len(letters):
            return [UNKNOWN]
        for letter, size in zip(letters, fact.dims, strict=True):
            known = sizes.get(letter, 1)
            sizes[letter] = size if known == 1 or (isinstance(size, int) and size != 1) else known
    if not arrow:
        result = "".join(sorted(letter for letter in sizes if terms.count(letter) == 1))
    return [Fact(tuple(sizes[letter] for letter in result))]


@rule("GridSample")
def _grid_sample(step: Step) -> Sequence[Fact]:
    dims, grid = step.dims(0), step.dims(1)
    if dims is None or grid is None:
        return [UNKNOWN]
    return [Fact((*dims[:2], *grid[1:-1]))]


@rule("Det")
def _det(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    return [Fact(None if dims is None else dims[:-2])]


@contrib("CDist")
def _distances(step: Step) -> Sequence[Fact]:
    left, right = step.dims(0), step.dims(1)
    return [Fact(None if not left or not right else (left[0], right[0]))]


@contrib("QLinearGlobalAveragePool")
def _quantized_pool(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    if dims is None or step.attribute("channels_last"):
        return [of_rank(len(dims))] if dims is not None else [UNKNOWN]
    return [Fact((*dims[:2], *(1 for _ in dims[2:])))]


@contrib("QLinearConcat", "QLinearConv", "QLinearWhere", "QLinearReduceMean", "QLinearAveragePool")
def _quantized_other(step: Step) -> Sequence[Fact]:
    del step
    return [UNKNOWN]

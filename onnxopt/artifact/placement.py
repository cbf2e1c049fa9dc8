"""Tell where the nodes of a model run: which provider took how many, what is copied between them, and what takes time.

onnxruntime records which provider it assigned each node to; its profile of one run tells the kernels that ran, the
copies between devices that it put in, and their times.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, computed_field

from onnxopt.errors import InputError
from onnxopt.host.runtime_errors import runtime_errors, runtime_line
from onnxopt.host.scratch import scratch_folder
from onnxopt.records.record import Record
from onnxopt.run.providers import CPU, Device
from onnxopt.run.session import Session
from onnxopt.spec import Array

_RECORD = {"session.record_ep_graph_assignment_info": "1"}
_COPIES = ("MemcpyFromHost", "MemcpyToHost")
_KERNEL = "_kernel_time"  # how the profile ends the names of these events
SHOWN_KERNELS = 12  # of the slowest, in the report for people


class Kernel(Record):
    """Kernels of one operator on one provider.

    Attributes:
        provider: who ran them.
        operator: the operator's name; what a provider compiled whole has a name of its own.
        count: how many ran.
        microseconds: how long they took together in one run, with the profiler on.
    """

    provider: str
    operator: str
    count: int
    microseconds: int


class Placement(Record):
    """Where the nodes of a model run.

    Attributes:
        device: what was asked for, or what was found for `auto`.
        providers: onnxruntime's providers, in order of preference.
        nodes: how many nodes each provider was given.
        left: on a device other than the CPU, how many nodes of each operator the CPU was given.
        subgraphs: how many pieces each provider took whole; TensorRT builds one engine for each.
        kernels: what ran, slowest first; empty when there were no inputs to run it on.
        copies: between the CPU and the device, in one run.
        notes: sentences a user should read.
    """

    device: Device
    providers: tuple[str, ...]
    nodes: dict[str, int]
    left: dict[str, int] = Field(default_factory=dict)
    subgraphs: dict[str, int]
    kernels: tuple[Kernel, ...] = ()
    copies: int = 0
    notes: tuple[str, ...] = ()

    @computed_field  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def whole(self) -> bool:
        """Whether the first provider took every node."""
        return set(self.nodes) <= {self.providers[0]}

    def lines(self) -> list[str]:
        """Return the report for people."""
        shown = [f"{provider}: {count} nodes" for provider, count in self.nodes.items()]
        if self.left:
            shown.append("left to the CPU: " + ", ".join(f"{name} {count}" for name, count in self.left.items()))
        shown.append(f"copies between devices: {self.copies}")
        total = sum(kernel.microseconds for kernel in self.kernels) or 1
        for kernel in self.kernels[:SHOWN_KERNELS]:
            share = kernel.microseconds / total
            shown.append(
                f"{kernel.operator} x {kernel.count}: {kernel.microseconds} us, {share:.0%} ({kernel.provider})"
            )
        if rest := self.kernels[SHOWN_KERNELS:]:
            spent = sum(kernel.microseconds for kernel in rest)
            shown.append(f"{len(rest)} more kernels: {spent} us, {spent / total:.0%}")
        return shown + [f"note: {note}" for note in self.notes]


def placement(
    path: str | Path, *, device: Device | str = "auto", feeds: Mapping[str, Array] | None = None
) -> Placement:
    """Open a model, run it once and tell where its nodes went.

    Args:
        path: an .onnx file or an artifact folder.
        device: as for `Session`.
        feeds: inputs of one run; the first golden case of an artifact when not given, nothing is run without either.

    Raises:
        InputError: when the model cannot be opened or run there.
    """
    path = Path(path)
    with scratch_folder() as room:
        session = Session(path, device=device, config=_RECORD, profile=room / "run")
        feeds = _golden(path) if feeds is None else feeds
        if feeds:
            session.run(feeds)
        events = json.loads(Path(session.end_profile()).read_text(encoding="utf-8"))
        try:
            assigned = [(part.ep_name, part.get_nodes()) for part in session.assignment()]
        except runtime_errors() as error:
            raise InputError(f"onnxruntime does not tell where its nodes are: {runtime_line(error)}") from error
    nodes: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for provider, part in assigned:
        nodes[provider] += len(part)
        if provider == CPU and session.providers[0] != CPU:
            left.update(node.op_type for node in part)
    kernels = _kernels(events)
    return Placement(
        device=session.plan.device,
        providers=tuple(session.providers),
        nodes=dict(nodes),
        left=dict(left.most_common()),
        subgraphs=dict(Counter(provider for provider, _ in assigned)),
        kernels=kernels,
        copies=sum(kernel.count for kernel in kernels if kernel.operator in _COPIES),
        notes=session.plan.notes,
    )


def _kernels(events: list[dict[str, Any]]) -> tuple[Kernel, ...]:
    counts: Counter[tuple[str, str]] = Counter()
    spent: Counter[tuple[str, str]] = Counter()
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith(_KERNEL):
            key = (str(event["args"].get("provider", "")), str(event["args"].get("op_name", "")))
            counts[key] += 1
            spent[key] += int(event["dur"])
    return tuple(
        Kernel(provider=key[0], operator=key[1], count=counts[key], microseconds=microseconds)
        for key, microseconds in spent.most_common()
    )


def _golden(path: Path) -> Mapping[str, Array]:
    """Return inputs of an artifact's first golden case; nothing for a plain file."""
    from onnxopt.artifact.golden import GOLDEN_FOLDER
    from onnxopt.artifact.package import read_golden

    if not (path / GOLDEN_FOLDER).is_dir():
        return {}
    return next((case.feeds for case in read_golden(path)), {})

"""What a run is to reach: its options as they are read, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxopt.artifact.place import check_output_folder
from onnxopt.load.source.source import Source
from onnxopt.quantize.options import HalfOptions, QuantizeOptions
from onnxopt.rewrite import Rewrite
from onnxopt.road.asked import precision_of, shard_bytes_of
from onnxopt.road.options import Options, TuneOptions
from onnxopt.road.pinned import Pins
from onnxopt.spec import Budget, Target, Workload


@dataclass(frozen=True)
class Goal:
    """What a run is to reach.

    Attributes:
        target: where the model will run.
        workload: what will be asked of it.
        budget: how far an answer of the float graph may move.
        out: the folder to write.
        tune: what may be measured.
        quantize: what is asked of integers; None for nothing.
        half: what is asked of 16 bits; None for nothing.
        own: passes from outside of onnxopt.
        pins: the measured choices of another build, where they are taken over.
        shard_bytes: of the largest file of weights; None for one file.
    """

    target: Target
    workload: Workload
    budget: Budget
    out: Path
    tune: TuneOptions
    quantize: QuantizeOptions | None = None
    half: HalfOptions | None = None
    own: Sequence[type[Rewrite]] = ()
    pins: Pins | None = None
    shard_bytes: int | None = None

    @classmethod
    def of(
        cls,
        options: Options,
        target: Target,
        source: Source,
        out: Path | None,
        own: Sequence[type[Rewrite]] = (),
        *,
        pins: Pins | None = None,
    ) -> Goal:
        """Read the options for a source; what they leave open is as its recipe has it.

        Args:
            options: as the user wrote them.
            target: of `target_of`.
            source: what was found under the user's name for it.
            out: the folder; `build/<name>` when None.
            own: passes from outside of onnxopt, loaded.
            pins: of `options.tune.forms_from`, read.

        Raises:
            InputError: one of them cannot be read, or the folder is not ours to write.
        """
        recipe = source.recipe
        asked = options.package.workload
        workload = Workload.parse(asked) if isinstance(asked, str) else asked
        limit, quantize, half = precision_of(options.quantize, target)
        folder = out if out is not None else Path("build") / source.name
        check_output_folder(folder)
        return cls(
            target,
            workload or (recipe.workload if recipe else Workload()),
            limit or (recipe.budget if recipe else Budget()),
            folder,
            options.tune,
            quantize,
            half,
            own,
            pins,
            shard_bytes_of(options.package),
        )

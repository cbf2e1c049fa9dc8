"""Look ahead at a recipe: what can be refused by names and words alone, before anything large is imported or loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxopt.artifact.place import check_output_folder
from onnxopt.calibrate.sources import require_there
from onnxopt.compress.recipe import CompressRecipe
from onnxopt.load.source.source import require_known
from onnxopt.road.ahead import require_readable
from onnxopt.road.asked import target_of
from onnxopt.road.options import Options, PrecisionOptions, PruneOptions, TuneOptions


def look_ahead(recipe: CompressRecipe, out: Path) -> None:
    """Refuse a recipe that cannot come to a result.

    Args:
        recipe: what to do.
        out: folder of the artifact.

    Raises:
        InputError: names the option, what is not there, or a folder that is not ours to replace.
    """
    require_readable(_options_of(recipe), target_of(recipe.package))
    for text in filter(None, (recipe.data, recipe.evaluate, *_data_of(recipe.distill))):
        require_there(text)
    check_output_folder(out)
    require_known(recipe.source)


def _options_of(recipe: CompressRecipe) -> Options:
    """Return the options of all steps as those of one run, to be looked at before the first."""
    prune = recipe.prune or PruneOptions()
    return Options(
        package=recipe.package,
        quantize=recipe.quantize or PrecisionOptions(),
        load=recipe.load,
        tune=recipe.tune or TuneOptions(),
        prune=replace(prune, data=prune.data or recipe.data),
    )


def _data_of(distill: Mapping[str, Any] | None) -> Sequence[str]:
    """Return the files of text that a distillation names; what is no list of them is refused where it is read."""
    named = (distill or {}).get("data", ())
    return [one for one in named if isinstance(one, str)] if isinstance(named, list) else ()

"""Which tensors transformers' own tokenizers and processors make for a kind of model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxopt.host.quiet import quiet


def made_by_processors(model_type: str) -> frozenset[str]:
    """Return the names of what transformers' tokenizer, image processor and feature extractor of a model type make."""
    import transformers
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    names: set[str] = set()
    for table in (TOKENIZER_MAPPING_NAMES, IMAGE_PROCESSOR_MAPPING_NAMES, FEATURE_EXTRACTOR_MAPPING_NAMES):
        listed = table.get(model_type) or ()
        for name in [listed] if isinstance(listed, str) else _class_names(listed):
            try:
                with quiet():
                    made = getattr(transformers, name).model_input_names
            except Exception:  # noqa: BLE001, S112  a class whose own libraries are missing says nothing
                continue
            names.update(made if isinstance(made, list) else ())
    return frozenset(names)


def _class_names(listed: Any) -> list[str]:
    """Return the names in an entry of transformers' tables: several, by backend or in a row, some of them None."""
    values = listed.values() if isinstance(listed, Mapping) else listed
    return [name for name in values if isinstance(name, str)]

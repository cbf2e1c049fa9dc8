"""How the options of the commands are arranged on their help pages: which belong together, and which are rare."""

from __future__ import annotations

from collections.abc import Mapping

OTHERS = "Options"  # what nothing is said of
HELP = "Help"

# Panels in the order of the page, each with the parameters in it; `command.parameter` goes before `parameter`.
PANELS: Mapping[str, frozenset[str]] = {
    "Source": frozenset(
        {
            *("task", "weights", "revision", "trust_remote_code", "with_pooling", "without", "with_cache", "logits"),
            *("exporter", "padding", "feeds", "axes", "values", "axis", "value", "passes", "own", "tokenizer"),
        }
    ),
    "Target and workload": frozenset({"target", "workload", "device", "threads"}),
    "Precision": frozenset(
        {
            *("precision", "optimize.budget", "calibration", "calibration_samples", "calibrator", "keep"),
            *("force_calibration", "allow_slower", "require_precision"),
        }
    ),
    "Pruning": frozenset(
        {
            *("prune", "prune_data", "prune_budget", "prune.data", "prune.budget"),
            *("importance", "compensate", "align", "allocation", "prune.seed"),
        }
    ),
    "Student and data": frozenset({"student", "distill.data", "distill.length", "distill.task"}),
    "Training": frozenset(
        {
            *("steps", "distill.batch", "accumulate", "learning_rate", "schedule", "loss", "temperature", "top_k"),
            *("cache_teacher", "mixed_precision", "evaluate", "evaluate_every", "patience", "save_every", "resume"),
            *("processes", "job", "distill.seed"),
        }
    ),
    "Prompts": frozenset({"prompts_file", "chat", "system", "generate.batch", "pair", "prompt", "context"}),
    "Writing": frozenset(
        {
            *("max_new_tokens", "sample", "generate.temperature", "generate.top_k", "top_p", "min_p"),
            *("repetition_penalty", "generate.seed", "stop"),
        }
    ),
    "Text": frozenset({"text", "window", "stride", "max_windows", "original", "perplexity.batch"}),
    "Listening": frozenset({"host", "port", "config", "api_key", "cors_origin", "access_log"}),
    "Batching": frozenset({"workers", "max_batch", "max_wait_ms", "max_rows"}),
    "Limits": frozenset(
        {
            *("max_queue", "max_items", "max_body", "serve.max_new_tokens", "max_connections", "memory", "timeout"),
            "grace",
        }
    ),
    "Measuring": frozenset({"measure", "tune", "retune", "forms_from", "rounds", "seconds", "require_speedup"}),
    "Comparing": frozenset({"verify.budget"}),
    "Output": frozenset({"out", "shard_size", "stacks", "limit", "plot", "as_json", "progress", "quiet", "verbose"}),
}

# Parameters that few people need: `--help-all` shows them too. Written as above.
RARE: frozenset[str] = frozenset(
    {
        *("revision", "without", "exporter", "padding", "logits", "optimize.with_pooling"),
        *("calibration_samples", "calibrator", "force_calibration"),
        *("prune_data", "optimize.tune", "retune", "forms_from"),
        *("compensate", "align", "allocation", "prune.seed"),
        *("accumulate", "schedule", "top_k", "cache_teacher", "mixed_precision", "evaluate_every", "patience", "job"),
        *("max_wait_ms", "max_items", "max_body", "serve.max_new_tokens", "max_connections", "grace"),
        *("min_p", "repetition_penalty", "shard_size"),
        *("stride", "max_windows", "perplexity.batch"),
    }
)


def panel_of(command: str, parameter: str) -> str:
    """Return the panel that an option of a command stands in.

    Args:
        command: its name.
        parameter: of the option, as Python has it.
    """
    if parameter == "help":
        return HELP
    for name in (f"{command}.{parameter}", parameter):
        for panel, parameters in PANELS.items():
            if name in parameters:
                return panel
    return OTHERS


def is_rare(command: str, parameter: str) -> bool:
    """Tell whether an option of a command is shown by `--help-all` alone; the arguments are those of `panel_of`."""
    return f"{command}.{parameter}" in RARE or parameter in RARE

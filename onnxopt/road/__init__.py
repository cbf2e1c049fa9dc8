"""From a source to an artifact: options, stages, work, write, optimize."""

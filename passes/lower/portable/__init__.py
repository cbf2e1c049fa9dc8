"""Forms for any runtime, in standard operators, one per file."""

"""This machine: threads and limits, folders that appear whole, the runtime's own words, silence."""

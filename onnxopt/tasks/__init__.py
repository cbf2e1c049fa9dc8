"""What a model can be asked to do: one table, of which every other room reads its part."""

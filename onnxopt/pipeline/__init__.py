"""The passes of a target, in order, in their fastest forms; why one fired or not."""

"""Inputs of strangers, each given to the command that it concerns: a line and an exit code, whatever they hold."""

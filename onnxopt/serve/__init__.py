"""Serve artifacts over HTTP from one process: the OpenAI interface, the KServe v2 protocol, metrics and health."""

"""Time honestly: rounds, worker, latency, requests, bench."""

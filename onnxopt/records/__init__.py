"""What is written down: events, ledger, passes, quantization, manifest, measurements, numbers for people."""

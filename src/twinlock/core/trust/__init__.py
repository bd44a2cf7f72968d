"""Trust decisions over signed metadata: strict reading in `strict`, the verifier in `verifier`."""

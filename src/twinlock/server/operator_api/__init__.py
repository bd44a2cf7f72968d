"""The edge that operators' programs speak to: FastAPI, so that it describes itself as OpenAPI."""

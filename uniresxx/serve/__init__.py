"""The model over HTTP; the only package that imports fastapi, uvicorn and prometheus_client."""

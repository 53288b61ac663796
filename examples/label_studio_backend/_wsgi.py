"""The web server of the backend; `label-studio-ml start` looks for this file."""

from __future__ import annotations

import argparse

from label_studio_ml.api import init_app
from model import UniresxxBackend

app = init_app(model_class=UniresxxBackend)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("-p", "--port", type=int, default=9090)
    options, _ = parser.parse_known_args()
    app.run(host=options.host, port=options.port)

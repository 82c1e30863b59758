"""Runs one of the small sites of tests/clients/README.md: python3 site.py NAME PORT [stock]."""

import importlib
import logging
import pathlib
import signal
import sys

THREADS = 64


def main(name, port, *stock):
    # This file would hide the standard library's `site`.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parent / "sites")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that temporary files are removed
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    application = importlib.import_module(f"{name}_site").make(is_stock=bool(stock))
    if name in ["starlette", "django_asgi"]:
        import uvicorn

        uvicorn.run(application, port=int(port), log_level="warning")
    else:
        import waitress

        waitress.serve(application, host="127.0.0.1", port=int(port), threads=THREADS)


if __name__ == "__main__":
    main(*sys.argv[1:])

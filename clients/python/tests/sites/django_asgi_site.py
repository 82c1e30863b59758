"""The Django site under ASGI, with asynchronous views."""

import os

from django_site import prepare


def make(is_stock):
    os.environ["ASYNC"] = "1"
    prepare(is_stock)
    from django.core.asgi import get_asgi_application

    return get_asgi_application()

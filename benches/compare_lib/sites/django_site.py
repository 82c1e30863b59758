"""Sessions as a site on Django has them today: the cache's session engine, on Redis.

The environment has the port of Redis in REDIS_PORT. gunicorn serves `application`.
"""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

settings.configure(
    SECRET_KEY="of the benchmark", ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, USE_TZ=True,
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    SESSION_ENGINE="django.contrib.sessions.backends.cache",
    CACHES={"default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": f"redis://127.0.0.1:{os.environ.get('REDIS_PORT', 6379)}",
    }},
)

PAGE = "." * 1024
VALUES = {
    "user_id": 48213, "name": "Ada Example", "roles": ["customer", "editor"],
    "csrf": "0123456789abcdef" * 2, "pad": "." * 64, "n": 1,
}


def page():
    return HttpResponse(PAGE, content_type="text/plain")


def begin(request):
    request.session.update(VALUES)
    return HttpResponse("created")


def read(request):
    # A KeyError, so a 500, if the session is missing.
    assert request.session["user_id"]
    return page()


def increment(request):
    request.session["n"] += 1
    return page()


urlpatterns = [
    path("plain", lambda request: page()), path("begin", begin), path("read", read), path("increment", increment),
]
application = get_wsgi_application()

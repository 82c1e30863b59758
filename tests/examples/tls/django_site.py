# python3 django_site.py 3000
import sys
from wsgiref.simple_server import make_server

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.urls import path

SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

urlpatterns = [path("", lambda request: HttpResponse(request.scheme))]
settings.configure(
    ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECURE_PROXY_SSL_HEADER=SECURE_PROXY_SSL_HEADER
)
django.setup()
make_server("127.0.0.1", int(sys.argv[1]), WSGIHandler()).serve_forever()

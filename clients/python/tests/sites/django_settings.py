"""Settings of the Django sites; STOCK in the environment stands for Django's own sessions."""

import atexit
import os
import pathlib
import shutil
import tempfile

_directory = pathlib.Path(tempfile.mkdtemp(prefix="cloakroom-site-"))
atexit.register(shutil.rmtree, _directory, ignore_errors=True)
_is_stock = "STOCK" in os.environ

SECRET_KEY = "key"
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "django_urls"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": _directory / "db.sqlite3",
        "OPTIONS": {"timeout": 30},
    }
}
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
SESSION_ENGINE = "django.contrib.sessions.backends.db" if _is_stock else "cloakroom.django"
if "REDIS_PORT" in os.environ:
    SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": f"redis://127.0.0.1:{os.environ['REDIS_PORT']}",
        }
    }
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware" if _is_stock else "cloakroom.django.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

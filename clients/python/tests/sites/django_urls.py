"""The URLs of the Django sites: synchronous views, or asynchronous ones if ASYNC is in the environment."""

import os

import django_async_views
import django_views
from django.urls import path

views = django_async_views if "ASYNC" in os.environ else django_views
names = ["untouched", "read", "get", "id", "who", "login", "logout", "regenerate", "flush", "change"]
urlpatterns = [path(name, getattr(views, "show_id" if name == "id" else name)) for name in names]

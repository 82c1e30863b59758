"""Synchronous views."""

import json
import time

from django.contrib import auth
from django.contrib.auth.models import User
from django.http import JsonResponse, StreamingHttpResponse
from operations import apply, one, shown

PRIVATE = (auth.SESSION_KEY, auth.BACKEND_SESSION_KEY, auth.HASH_SESSION_KEY, "_session_expiry")


def untouched(request):
    return JsonResponse({"ok": True})


def read(request):
    return JsonResponse(shown(request.session, PRIVATE))


def get(request):
    return JsonResponse(one(request.session, request.GET["key"]))


def show_id(request):
    if not request.session.session_key:
        request.session.create()
    return JsonResponse({"id": request.session.session_key})


def who(request):
    return JsonResponse({"principal": request.user.get_username() or None})


def login(request):
    user, _ = User.objects.get_or_create(username=request.GET["name"])
    auth.login(request, user, "django.contrib.auth.backends.ModelBackend")
    return JsonResponse({"ok": True})


def logout(request):
    auth.logout(request)
    return JsonResponse({"ok": True})


def regenerate(request):
    request.session.cycle_key()
    return JsonResponse({"ok": True})


def flush(request):
    request.session.flush()
    apply(request.session, json.loads(request.body))
    return JsonResponse({"ok": True})


def change(request):
    operations = json.loads(request.body)
    if "stream" in request.GET:
        return StreamingHttpResponse(stream(request.session, operations), content_type="application/json")
    if "sleep" in request.GET:
        request.session.items()
        time.sleep(int(request.GET["sleep"]) / 1000)
    apply(request.session, operations)
    request.session.modified = True
    if "save" in request.GET:
        request.session.save()
    return JsonResponse({"ok": True}, status=int(request.GET.get("status", 200)))


def stream(session, operations):
    yield '{"ok":'
    apply(session, operations)
    yield " true}"

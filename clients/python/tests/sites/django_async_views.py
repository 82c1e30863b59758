"""Asynchronous views, with the asynchronous methods of the session."""

import asyncio
import json

from django.contrib import auth
from django.contrib.auth.models import User
from django.http import JsonResponse, StreamingHttpResponse
from django_views import PRIVATE
from operations import one, shown, value_of


async def untouched(request):
    return JsonResponse({"ok": True})


async def read(request):
    return JsonResponse(shown(dict(await request.session.aitems()), PRIVATE))


async def get(request):
    return JsonResponse(one(dict(await request.session.aitems()), request.GET["key"]))


async def show_id(request):
    await request.session.ahas_key("")
    if not request.session.session_key:
        await request.session.acreate()
    return JsonResponse({"id": request.session.session_key})


async def who(request):
    user = await request.auser()
    return JsonResponse({"principal": user.get_username() or None})


async def login(request):
    user, _ = await User.objects.aget_or_create(username=request.GET["name"])
    await auth.alogin(request, user, "django.contrib.auth.backends.ModelBackend")
    return JsonResponse({"ok": True})


async def logout(request):
    await auth.alogout(request)
    return JsonResponse({"ok": True})


async def regenerate(request):
    await request.session.acycle_key()
    return JsonResponse({"ok": True})


async def flush(request):
    await request.session.aflush()
    await aapply(request.session, json.loads(request.body))
    return JsonResponse({"ok": True})


async def change(request):
    operations = json.loads(request.body)
    if "stream" in request.GET:
        return StreamingHttpResponse(stream(request.session, operations), content_type="application/json")
    if "sleep" in request.GET:
        await request.session.aitems()
        await asyncio.sleep(int(request.GET["sleep"]) / 1000)
    await aapply(request.session, operations)
    if "save" in request.GET:
        await request.session.asave()
    return JsonResponse({"ok": True}, status=int(request.GET.get("status", 200)))


async def aapply(session, operations):
    for operation in operations:
        if operation[0] == "remove":
            await session.apop(operation[1], None)
        else:
            found = await session.aget(operation[1])
            key, value = value_of({operation[1]: found} if found else {}, operation)
            await session.aset(key, value)


async def stream(session, operations):
    yield '{"ok":'
    await aapply(session, operations)
    yield " true}"

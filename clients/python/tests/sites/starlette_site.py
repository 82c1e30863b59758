"""A Starlette application."""

import asyncio

import starlette.middleware.sessions
from operations import apply, one, shown
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

import cloakroom.asgi


async def untouched(request):
    return JSONResponse({"ok": True})


async def read(request):
    return JSONResponse(shown(request.session, ()))


async def get(request):
    return JSONResponse(one(request.session, request.query_params["key"]))


async def show_id(request):
    return JSONResponse({"id": request.session.id})


async def who(request):
    return JSONResponse({"principal": request.session.principal})


async def login(request):
    request.session.login(request.query_params["name"])
    return JSONResponse({"ok": True})


async def logout(request):
    request.session.logout()
    return JSONResponse({"ok": True})


async def regenerate(request):
    request.session.regenerate()
    return JSONResponse({"ok": True})


async def flush(request):
    request.session.clear()
    apply(request.session, await request.json())
    return JSONResponse({"ok": True})


async def change(request):
    operations, query = await request.json(), request.query_params
    if "stream" in query:
        return StreamingResponse(stream(request.session, operations), media_type="application/json")
    if "sleep" in query:
        dict(request.session)
        await asyncio.sleep(int(query["sleep"]) / 1000)
    apply(request.session, operations)
    if "save" in query:
        await asyncio.to_thread(request.session.save)
    return JSONResponse({"ok": True}, int(query.get("status", 200)))


async def stream(session, operations):
    yield '{"ok":'
    apply(session, operations)
    yield " true}"


def make(is_stock):
    app = Starlette(
        routes=[
            Route("/untouched", untouched), Route("/read", read), Route("/get", get), Route("/id", show_id),
            Route("/who", who), Route("/login", login, methods=["POST"]), Route("/logout", logout, methods=["POST"]),
            Route("/regenerate", regenerate, methods=["POST"]), Route("/flush", flush, methods=["POST"]),
            Route("/change", change, methods=["POST"]),
        ]
    )  # fmt: skip
    if is_stock:
        app.add_middleware(starlette.middleware.sessions.SessionMiddleware, secret_key="key")
    else:
        app.add_middleware(cloakroom.asgi.SessionMiddleware)
    return app

"""The routes of the page: images in, jobs out, for this machine's own browser only."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import numpy as np
from jinja2 import ChoiceLoader, PackageLoader
from PIL import Image
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from engine.errors import DataError, UsageError
from engine.explore.jobs import Job, Jobs
from engine.explore.studio import Exchange, Made, Push, Studio
from engine.report.page import script_hash, templates

LARGEST_UPLOAD = 64_000_000  # bytes
HOSTS = ["127.0.0.1", "localhost"]
Handler = Callable[[Request], Awaitable[Response]]
Context = dict[str, Any]


def build_app(studio: Studio, context: Context) -> Starlette:
    """The application.

    Args:
        context: what the page says of the model, see ``explore.html``.
    """
    jobs = Jobs()
    environment = templates()
    environment.loader = ChoiceLoader([PackageLoader("engine.explore"), PackageLoader("engine.report")])

    async def home(_: Request) -> Response:
        html = environment.get_template("explore.html").render(**context)
        script = environment.globals["source"]("explore.js")  # type: ignore[operator]
        policy = (
            "default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'unsafe-inline'; "
            f"script-src '{script_hash(script)}'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        )
        return HTMLResponse(html, headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"})

    async def upload(request: Request) -> Response:
        name, content = unquote(request.headers.get("x-name", "image")), bytearray()
        async for part in request.stream():
            content += part
            if len(content) > LARGEST_UPLOAD:
                raise UsageError(f"{name}: larger than {LARGEST_UPLOAD // 1_000_000} MB")
        return _kept(studio, await run_in_threadpool(studio.upload, name, bytes(content)))

    async def numbered(request: Request) -> Response:
        number = await _json(request)
        if not isinstance(number, int) or number < 0:
            raise UsageError("the number of an image is a whole number from 0 on")
        return _kept(studio, await run_in_threadpool(studio.number, number))

    async def picture(request: Request) -> Response:
        return _png(studio.image(request.path_params["number"]).pixels.numpy())

    async def start(request: Request) -> Response:
        asked = await _json(request)
        kind = asked.pop("kind", "") if isinstance(asked, dict) else ""
        if kind == "exchange":
            total, work = studio.exchange(Exchange.model_validate(asked))
        elif kind == "push":
            total, work = studio.push(Push.model_validate(asked))
        else:
            raise UsageError("kind: exchange or push")
        return JSONResponse(_told(jobs.start(total, work)), status_code=201)

    async def look(request: Request) -> Response:
        return JSONResponse(_told(_job(jobs, request)))

    async def stop(request: Request) -> Response:
        job = _job(jobs, request)
        job.stop = True
        return JSONResponse(_told(job))

    async def sheet(request: Request) -> Response:
        made, buffer = _made(jobs, request), io.BytesIO()
        await run_in_threadpool(made.sheet.save, buffer, "PNG")
        name = {"Content-Disposition": 'attachment; filename="sheet.png"'}
        return Response(buffer.getvalue(), media_type="image/png", headers=name)

    async def tile(request: Request) -> Response:
        images, place = _made(jobs, request).images, request.path_params
        if place["direction"] >= images.shape[0] or place["scale"] >= images.shape[1]:
            raise UsageError("there is no such image")
        return _png(images[place["direction"], place["scale"]])

    @asynccontextmanager
    async def lifespan(_: Starlette):  # noqa: ANN202
        yield
        jobs.close()

    return Starlette(
        routes=[
            Route("/", home),
            Route("/images", _guarded(upload), methods=["POST"]),
            Route("/numbers", _guarded(numbered), methods=["POST"]),
            Route("/images/{number:int}.png", _guarded(picture)),
            Route("/jobs", _guarded(start), methods=["POST"]),
            Route("/jobs/{number:int}", _guarded(look)),
            Route("/jobs/{number:int}", _guarded(stop), methods=["DELETE"]),
            Route("/jobs/{number:int}/sheet.png", _guarded(sheet)),
            Route("/jobs/{number:int}/{direction:int}/{scale:int}.png", _guarded(tile)),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
        lifespan=lifespan,
    )


def _guarded(handler: Handler) -> Handler:
    """Refuse what another site's page sends; tell mistakes as JSON with status 400."""

    async def run(request: Request) -> Response:
        origin, here = request.headers.get("origin"), f"http://{request.headers.get('host')}"
        if origin not in (None, here):
            return JSONResponse({"error": "this page is for its own server only"}, status_code=403)
        try:
            return await handler(request)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "request"
            return JSONResponse({"error": f"{place}: {first['msg']}"}, status_code=400)
        except (UsageError, DataError) as error:
            return JSONResponse({"error": str(error)}, status_code=400)

    return run


async def _json(request: Request) -> Any:
    try:
        return await request.json()
    except ValueError as error:
        raise UsageError("the request is no JSON") from error


def _kept(studio: Studio, number: int) -> Response:
    return JSONResponse({"id": number, "name": studio.image(number).name}, status_code=201)


def _job(jobs: Jobs, request: Request) -> Job:
    job = jobs.get(request.path_params["number"])
    if job is None:
        raise UsageError("this result is not here any more: make it again")
    return job


def _made(jobs: Jobs, request: Request) -> Made:
    job = _job(jobs, request)
    if job.state != "done":
        raise UsageError(f"this edit is {job.state}")
    return job.made


def _told(job: Job) -> dict[str, Any]:
    told = {
        "id": job.number,
        "state": job.state,
        "done": job.done,
        "total": job.total,
        "seconds_left": job.seconds_left,
        "error": job.error,
    }
    if job.state == "done":
        made: Made = job.made
        told["made"] = {"scales": made.scales, "told": made.told, "command": made.command}
    return told


def _png(pixels: np.ndarray) -> Response:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return Response(buffer.getvalue(), media_type="image/png", headers={"Cache-Control": "no-store"})

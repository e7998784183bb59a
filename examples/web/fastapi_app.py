"""Count visits per user with FastAPI, whose lifespan holds the store."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request

import hutch.aio


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    url = os.environ.get("HUTCH_STORAGE", "lmdb://state")
    async with hutch.aio.connect(url) as app.state.store:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/visit/{user}")
async def visit(user: str, request: Request) -> dict[str, int]:
    visits = await request.app.state.store["visits"]
    return {"visits": await visits.modify(user, lambda n: n + 1, default=0)}

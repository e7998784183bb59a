"""Count visits per user with Flask, under gunicorn too: gunicorn --preload."""

import os

from flask import Flask

import hutch

app = Flask(__name__)
store = hutch.connect(os.environ.get("HUTCH_STORAGE", "lmdb://state"))


@app.get("/visit/<user>")
def visit(user: str) -> dict[str, int]:
    visits = store["visits"]  # one handle, shared by every thread
    return {"visits": visits.modify(user, lambda n: n + 1, default=0)}

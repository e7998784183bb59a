"""Count visits per user in tasks of Celery, whose workers connect."""

import os
from typing import Any

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

import hutch

app = Celery("celery_app", broker=os.environ.get("BROKER"))
app.conf.result_backend = os.environ.get("BROKER")
store: hutch.Store


@worker_process_init.connect
def connect(**_: Any) -> None:
    global store
    store = hutch.connect(os.environ.get("HUTCH_STORAGE", "lmdb://state"))


@worker_process_shutdown.connect
def disconnect(**_: Any) -> None:
    store.close()


@app.task
def visit(user: str) -> int:
    return int(store["visits"].modify(user, lambda n: n + 1, default=0))

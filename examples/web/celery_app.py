"""Count visits per user in tasks of Celery, whose workers connect."""

import os
from typing import Any

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

import hutch

app = Celery("celery_app", broker=os.environ.get("BROKER"))
app.conf.result_backend = os.environ.get("BROKER")
store: hutch.Store
visits: hutch.Namespace


@worker_process_init.connect
def connect(**_: Any) -> None:
    global store, visits
    url = os.environ.get("HUTCH_STORAGE", "lmdb://state")
    store = hutch.connect(url)
    visits = store.open("visits")


@worker_process_shutdown.connect
def disconnect(**_: Any) -> None:
    visits.close()
    store.close()


@app.task
def visit(user: str) -> int:
    return int(visits.modify(user, lambda n: n + 1, default=0))

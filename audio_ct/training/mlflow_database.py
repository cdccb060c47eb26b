"""The sqlite database of mlflow: made beside its place and renamed into it, and set aside where it is broken.

mlflow makes its tables in some forty steps. A process that is killed in between, or a second one that makes them at the
same time, leaves a database that mlflow can never open again.
"""

import logging
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from filelock import FileLock

from audio_ct.durable import synchronise

# To make the tables takes seconds; whoever waits for another process to do it gives up then, and tries again later.
LOCK_SECONDS = 60.0
# What sqlite answers where mlflow is about to make what is there.
HALF_MADE = ("duplicate column name", "already exists")
MALFORMED = "malformed"

logger = logging.getLogger("audio_ct")


def database_path(uri: str) -> Path | None:
    """The file of an address like sqlite:///runs/mlflow.db; None for other stores and for one in memory."""
    if not uri.startswith("sqlite:///"):
        return None
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    return None if path in ("", ":memory:") else Path(path).resolve()


def ensure_database(path: Path) -> None:
    """Make mlflow's database where there is none that is whole.

    A broken one is renamed, with a warning: nothing is deleted.

    Raises:
        Exception: Whatever mlflow, sqlite and the file system raise, and filelock's Timeout: to be tried again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_SECONDS):
        if path.exists() and (fault := _fault(path)) is not None:
            aside = _set_aside(path)
            logger.warning("%s: broken (%s); set aside as %s, a new one is made", path, fault, aside.name)
        # sqlite makes an empty file before anything else.
        if not path.exists() or path.stat().st_size == 0:
            _make(path)


def _make(path: Path) -> None:
    from mlflow import MlflowClient

    making = f".{path.name}.making-"
    # Of processes that were killed: whoever has the lock is the only one to make it.
    for leftover in path.parent.glob(f"{making}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=making, dir=path.parent) as folder:
        made = Path(folder, path.name)
        MlflowClient(tracking_uri=f"sqlite:///{made}", registry_uri=f"sqlite:///{made}")
        synchronise(made)
        made.replace(path)
    synchronise(path.parent)


def _fault(path: Path) -> str | None:
    """What is wrong with a database for good; None if it can be opened, or may be later."""
    from sqlalchemy.exc import DatabaseError

    tables: set[str] = set()
    try:
        # mlflow would try for minutes to open what is no database.
        with closing(sqlite3.connect(path)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if tables:
            _complete(path)
    except (sqlite3.DatabaseError, DatabaseError) as error:
        reason = str(error.orig if isinstance(error, DatabaseError) else error)
        # The database of another program may have tables of the same names, but not the steps that mlflow has done.
        is_half_made = "alembic_version" in tables and any(answer in reason for answer in HALF_MADE)
        if is_half_made or MALFORMED in reason:
            return reason
        raise
    return None


def _complete(path: Path) -> None:
    """Make the tables that are missing, as mlflow's client would.

    Not by a client: one keeps its connections by address, and would find them again once the file is another.
    """
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine(f"sqlite:///{path}")
    try:
        if not utils._all_tables_exist(engine):
            utils._initialize_tables(engine)
    finally:
        engine.dispose()


def _set_aside(path: Path) -> Path:
    """Rename a database, with sqlite's own files beside it, to the first name that is free."""
    number = 1
    while (aside := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    for ending in ("-journal", "-wal", "-shm", ""):
        part = path.with_name(path.name + ending)
        if part.exists():
            part.rename(aside.with_name(aside.name + ending))
    return aside

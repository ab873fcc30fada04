"""Real servers on loopback, as a team uses them: S3 (moto), PostgreSQL, and MLflow with authentication.

Each context manager stops its server by process id. Servers that a killed test leaves behind exit after LIFE_S.
"""

from __future__ import annotations

import logging
import os
import pwd
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import psycopg2
import requests
from botocore.config import Config
from moto.server import ThreadedMotoServer
from psycopg2 import sql

from tests.commands.test_ui import free_port

LIFE_S = 900
START_S = 240  # time limit for a server to start, on a busy machine
POSTGRES_PLACES = "/usr/lib/postgresql/*/bin"  # Debian's server programs, which are not in PATH


class S3:
    """An S3 server; `variables` is the environment that its clients need."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.secret = secrets.token_urlsafe(20)
        self.variables = {
            "AWS_ACCESS_KEY_ID": "team",
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",  # no retries: a stopped server does not come back
            "NO_PROXY": "127.0.0.1,localhost",
        }
        self.client = boto3.client(
            "s3",
            endpoint_url=address,
            aws_access_key_id="team",
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
            config=Config(proxies={}),
        )

    def new_bucket(self) -> str:
        name = f"bucket-{secrets.token_hex(6)}"
        self.client.create_bucket(Bucket=name)
        return name

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Return the content of every object by key."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
        return {key: self.client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    def put(self, bucket: str, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=content)

    def empty(self, bucket: str) -> None:
        for key in self.objects(bucket):
            self.client.delete_object(Bucket=bucket, Key=key)


@contextmanager
def s3_server() -> Iterator[S3]:
    """Run moto's server in a thread; it keeps its objects in memory."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    s3 = S3("http://{}:{}".format(*server.get_host_and_port()))
    try:
        yield s3
    finally:
        s3.client.close()
        server.stop()


class Line:
    """A TCP proxy to a server that breaks after `cut_after(count)` bytes were sent, until `restore()` is called."""

    def __init__(self, server: str) -> None:
        host, port = server.rpartition("/")[2].split(":")
        self.server = (host, int(port))
        self.left: int | None = None  # bytes; None: unlimited
        self.open: set[socket.socket] = set()
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def is_cut(self) -> bool:
        return self.left == 0

    def cut_after(self, count: int) -> None:
        self.left = count

    def restore(self) -> None:
        self.left = None

    def close(self) -> None:
        self.left = 0
        for connection in [*self.open, self.listener]:
            _reset(connection)

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self.listener.accept()
                if self.is_cut:
                    _reset(client)
                    continue
                server = socket.create_connection(self.server)
                self.open |= {client, server}
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=(*ends, server), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):  # the other direction has closed both
            while data := source.recv(4096):
                target.sendall(self._allowed(data) if target is server else data)
                if self.is_cut:
                    break
        for connection in [*self.open] if self.is_cut else [source, target]:
            self.open.discard(connection)
            _reset(connection)

    def _allowed(self, data: bytes) -> bytes:
        with self.lock:
            if self.left is not None:
                data = data[: self.left]
                self.left -= len(data)
            return data


def _reset(connection: socket.socket) -> None:
    """Break the connection so that the other end sees a reset."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def postgres_programs(place: str = POSTGRES_PLACES) -> Path:
    """Find the folder of `initdb` and `postgres`. Raises FileNotFoundError, which says how to install them."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    if versions := sorted(Path("/").glob(f"{place.lstrip('/')}/initdb"), key=lambda path: int(path.parts[-3])):
        return versions[-1].parent
    raise FileNotFoundError(f"PostgreSQL's initdb is neither in PATH nor in {place}: apt-get install postgresql")


class Postgres:
    """A PostgreSQL server on loopback, whose user `mlflow` has a password."""

    def __init__(self, port: int, password: str) -> None:
        self.port = port
        self.password = password

    def connect(self, database: str) -> Any:
        connection = psycopg2.connect(
            host="127.0.0.1", port=self.port, user="mlflow", password=self.password, dbname=database
        )
        connection.autocommit = True
        return closing(connection)

    def uri(self, database: str) -> str:
        """URI without the password, which is in PGPASSWORD: command lines are visible to every user of the machine."""
        return f"postgresql+psycopg2://mlflow@127.0.0.1:{self.port}/{database}"

    def rows(self, database: str, query: str | sql.Composed) -> list[tuple[Any, ...]]:
        with self.connect(database) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())

    def text(self, database: str) -> str:
        """Return the content of all tables as text."""
        tables = self.rows(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        queries = [sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(name)) for (name,) in tables]
        return "\n".join(row for query in queries for (row,) in self.rows(database, query))


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """Run a new server with the empty databases `mlflow` and `mlflow_auth`."""
    programs = postgres_programs()
    postgres = Postgres(free_port(), secrets.token_urlsafe(20))
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        (folder / "password").write_text(postgres.password)
        user: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            nobody = pwd.getpwnam("nobody")
            user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            for path in (folder, folder / "password"):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        subprocess.run(
            [
                *(programs / "initdb", "--pgdata", folder / "data", "--username", "mlflow"),
                *("--pwfile", folder / "password", "--auth", "scram-sha-256"),
                *("--encoding", "UTF8", "--no-locale", "--no-sync"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            **user,
        )
        options = {"port": postgres.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": folder}
        flags = [f"--{key}={value}" for key, value in {**options, "fsync": "off"}.items()]
        command = [programs / "postgres", "-D", folder / "data", *flags]
        with _process(command, folder / "log", stop=signal.SIGINT, cwd=folder, **user) as up:
            up(lambda: postgres.rows("postgres", "SELECT 1"), psycopg2.OperationalError)
            with postgres.connect("postgres") as connection, connection.cursor() as cursor:
                cursor.execute("CREATE DATABASE mlflow")
                cursor.execute("CREATE DATABASE mlflow_auth")
            yield postgres


class TrackingServer:
    """`mlflow server` with authentication, an administrator and the users added by `add_user`."""

    def __init__(self, postgres: Postgres, s3: S3, log: Path) -> None:
        self.postgres = postgres
        self.s3 = s3
        self.bucket = s3.new_bucket()
        self.log = log
        self.address = f"http://127.0.0.1:{free_port()}"
        self.passwords = {"admin": secrets.token_urlsafe(20)}

    def add_user(self, name: str) -> None:
        self.passwords[name] = secrets.token_urlsafe(20)
        body = {"username": name, "password": self.passwords[name]}
        self.ask("users/create", "admin", self.passwords["admin"], json=body).raise_for_status()

    def ask(self, what: str, name: str = "", password: str = "", **options: Any) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False  # no proxies, no netrc
            session.auth = (name, password) if name else None
            method = "POST" if "json" in options else "GET"
            return session.request(method, f"{self.address}/api/2.0/mlflow/{what}", timeout=60, **options)

    def variables(self, user: str, password: str | None = None) -> dict[str, str]:
        """Environment variables that a team member sets."""
        return {
            "MLFLOW_TRACKING_URI": self.address,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": password or self.passwords[user],
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def secrets(self) -> list[str]:
        return [*self.passwords.values(), self.postgres.password, self.s3.secret]


@contextmanager
def tracking_server(folder: Path, postgres: Postgres, s3: S3) -> Iterator[TrackingServer]:
    """Run the server that docs/team.md describes, except for the hosts, with the users ann and bob."""
    server = TrackingServer(postgres, s3, folder / "server.log")
    settings = {
        "default_permission": "EDIT",  # every team member may write to every run
        "database_uri": postgres.uri("mlflow_auth"),
        "admin_username": "admin",
        "auth_cache_ttl_seconds": 60,  # otherwise every request hashes the password: 0.1 s
    }
    configuration = folder / "auth.ini"
    configuration.write_text("\n".join(["[mlflow]", *(f"{key} = {value}" for key, value in settings.items())]))
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PYTHONWARN"))}
    variables |= s3.variables | {
        "MLFLOW_AUTH_CONFIG_PATH": str(configuration),
        "MLFLOW_AUTH_ADMIN_PASSWORD": server.passwords["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        "MLFLOW_S3_ENDPOINT_URL": s3.address,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # processes for language models
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PGPASSWORD": postgres.password,
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "2"]
    command += ["--backend-store-uri", postgres.uri("mlflow"), "--artifacts-destination", f"s3://{server.bucket}"]
    command += ["--host", "127.0.0.1", "--port", server.address.rpartition(":")[2]]
    with _process(command, server.log, cwd=folder, env=variables) as up:
        up(lambda: server.ask("experiments/search?max_results=1"), requests.ConnectionError)
        server.add_user("ann")
        server.add_user("bob")
        yield server


@contextmanager
def model_server(uri: str, log: Path) -> Iterator[str]:
    """Run `mlflow models serve` for the model at `uri`; yields its address."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", uri, "--env-manager", "local"]
    variables = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # for uvicorn
    with _process([*command, "--host", "127.0.0.1", "--port", port], log, env=variables) as up:
        address = f"http://127.0.0.1:{port}"
        up(lambda: requests.get(f"{address}/ping", timeout=5), requests.ConnectionError)
        yield address


@contextmanager
def _process(command: list[Any], log: Path, stop: int = signal.SIGTERM, **options: Any) -> Iterator[Any]:
    """Run a server during the block; yields `up(ask, refusal)`, which waits until `ask()` stops raising `refusal`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["timeout", str(LIFE_S), *map(str, command)], stdout=output, stderr=subprocess.STDOUT, **options
        )

    def up(ask: Any, refusal: type[Exception]) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                ask()
                return
            except refusal:
                if process.poll() is not None or time.monotonic() > deadline:
                    text = log.read_text(errors="replace")
                    raise RuntimeError(f"{command[:4]} does not answer; its log ends: {text[-3000:]}") from None
                time.sleep(0.1)

    try:
        yield up
    finally:
        process.send_signal(stop)  # forwarded by `timeout`
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # `timeout` leads its own process group
            process.wait()

"""A team's servers, the real ones, on loopback: S3 (moto's), PostgreSQL, MLflow's with passwords.

Each ends with its block, by its own process id; one that a killed test leaves behind ends after LIFE_S.
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

from tests.test_ui import free_port

LIFE_S = 900
START_S = 240  # for a server to answer, on a busy machine
POSTGRES_PLACES = "/usr/lib/postgresql/*/bin"  # where Debian has its server programs, out of PATH


class S3:
    """An S3 server; `variables` are those with which its clients find it and sign their requests."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.secret = secrets.token_urlsafe(20)
        self.variables = {
            "AWS_ACCESS_KEY_ID": "team",
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",  # a dead server is dead: a dozen waits in turn would only take time
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
        """Every object's content by its key."""
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
    """Moto's server, in a thread of this process; it keeps its objects in memory."""
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
    """The line to a server: once `cut_after(count)` bytes went towards it, it breaks, and stays so until `mend()`."""

    def __init__(self, server: str) -> None:
        host, port = server.rpartition("/")[2].split(":")
        self.server = (host, int(port))
        self.left: int | None = None  # bytes; None: any number
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

    def mend(self) -> None:
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
        with suppress(OSError):  # the other direction has ended both
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
    """The folder of `initdb` and `postgres`; FileNotFoundError says how to install them."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    if versions := sorted(Path("/").glob(f"{place.lstrip('/')}/initdb"), key=lambda path: int(path.parts[-3])):
        return versions[-1].parent
    raise FileNotFoundError(f"PostgreSQL's initdb is neither in PATH nor in {place}: apt-get install postgresql")


class Postgres:
    """A PostgreSQL server on a port of loopback, whose user `mlflow` has a password."""

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
        """Without the password, which PGPASSWORD holds: a command line is seen by every user of a machine."""
        return f"postgresql+psycopg2://mlflow@127.0.0.1:{self.port}/{database}"

    def rows(self, database: str, query: str | sql.Composed) -> list[tuple[Any, ...]]:
        with self.connect(database) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())

    def text(self, database: str) -> str:
        """Everything that the database's tables hold."""
        tables = self.rows(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        queries = [sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(name)) for (name,) in tables]
        return "\n".join(row for query in queries for (row,) in self.rows(database, query))


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A new, empty server with the databases `mlflow` and `mlflow_auth`."""
    programs = postgres_programs()
    postgres = Postgres(free_port(), secrets.token_urlsafe(20))
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        (folder / "password").write_text(postgres.password)
        user: dict[str, Any] = {}
        if os.geteuid() == 0:  # which PostgreSQL refuses
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
    """`mlflow server` with passwords: the administrator, and the users that `add_user` makes."""

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
        """All that a person of the team sets."""
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
    """As README's section on it has it, but for the hosts; its users are ann and bob."""
    server = TrackingServer(postgres, s3, folder / "server.log")
    settings = {
        "default_permission": "EDIT",  # every user may write to every run: they are one team
        "database_uri": postgres.uri("mlflow_auth"),
        "admin_username": "admin",
        "auth_cache_ttl_seconds": 60,  # else a password's hash is computed anew with every request: 0.1 s
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
    """`mlflow models serve` of the model at `uri`; its address."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", uri, "--env-manager", "local"]
    with _process([*command, "--host", "127.0.0.1", "--port", port], log) as up:
        address = f"http://127.0.0.1:{port}"
        up(lambda: requests.get(f"{address}/ping", timeout=5), requests.ConnectionError)
        yield address


@contextmanager
def _process(command: list[Any], log: Path, stop: int = signal.SIGTERM, **options: Any) -> Iterator[Any]:
    """Run a server in the block, which gets `up(ask, refusal)`: it waits until `ask()` raises `refusal` no more."""
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
        process.send_signal(stop)  # which `timeout` hands on
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # `timeout` leads a group of its own
            process.wait()

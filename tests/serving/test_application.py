"""What the HTTP interface answers, from a real server on loopback."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import requests
from PIL import Image
from safetensors.numpy import load_file

from classifier.serving import bodies, protocol
from classifier.serving.answers import quick
from classifier.serving.bodies import File
from classifier.serving.card import same_answer
from tests.serving.conftest import png, until
from tests.serving.test_pyfunc import FORMS, NORMALIZED, PIXELS, WANTED

IMAGE = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def images(served):
    return load_file(served.folder / "data/normalized/test.safetensors")["images"][:40]


@pytest.fixture
def ask(address):
    """POST to /predict."""

    def ask(query="", **options):
        return requests.post(f"{address}/predict{query}", timeout=30, **options)

    return ask


def probabilities(prediction):
    return [each["probability"] for each in sorted(prediction["top"], key=lambda each: each["class"])]


def test_an_image_comes_as_the_body_as_files_of_a_form_or_as_base64(ask, model, images):
    files = [png(image) for image in images[:3]]
    texts = [base64.b64encode(file).decode() for file in files]
    form = [("image", (f"{number}.png", file)) for number, file in enumerate(files)]
    answers = [ask("?top=10", data=file, headers=IMAGE).json()["predictions"] for file in files]
    assert ask("?top=10", json={"image": texts[0]}).json()["predictions"][0] == answers[0][0] | {"file": "image 1"}
    several = [ask("?top=10", files=form), ask("?top=10", json={"images": texts})]
    for answer in several:
        assert answer.status_code == 200, answer.text
        assert [probabilities(each) for each in answer.json()["predictions"]] == [
            probabilities(each) for (each,) in answers
        ]
        assert answer.json()["model"] == model.identity
    assert [each["file"] for each in several[0].json()["predictions"]] == ["0.png", "1.png", "2.png"]
    for image, (answer,) in zip(images, answers, strict=False):
        expected = model.probabilities(image)
        assert probabilities(answer) == expected.tolist()
        assert answer["class"] == str(expected.argmax())
        assert answer["probability"] == expected.max()


def test_an_images_answer_has_the_same_bits_alone_and_among_31_others(ask, images):
    """In one request, and in requests at the same time."""
    files = [png(image) for image in images[:32]]
    alone = [probabilities(ask("?top=10", data=file, headers=IMAGE).json()["predictions"][0]) for file in files]
    together = ask("?top=10", files=[("image", (str(number), file)) for number, file in enumerate(files)])
    assert [probabilities(each) for each in together.json()["predictions"]] == alone
    with ThreadPoolExecutor(32) as pool:
        answers = pool.map(lambda file: ask("?top=10", data=file, headers=IMAGE).json(), files)
        assert [probabilities(answer["predictions"][0]) for answer in answers] == alone


def test_the_negative_and_what_the_model_sees(ask, images):
    black = png(255 - images[0])
    plain = ask("?show_input=true", data=black, headers=IMAGE).json()["predictions"][0]
    assert "unlike the training images: brighter" in plain["warning"]
    answer = ask("?show_input=true&invert=true&top=10", data=black, headers=IMAGE).json()["predictions"][0]
    seen = Image.open(io.BytesIO(base64.b64decode(answer["input"].partition(",")[2])))
    assert np.array_equal(np.asarray(seen), images[0, 0])
    right = ask("?top=10", data=png(images[0]), headers=IMAGE).json()["predictions"][0]
    assert answer | {"input": None} == right | {"input": None}
    assert right["warning"] is None


def test_what_takes_long_is_left_to_the_workers(model, monkeypatch):
    """So that it does not hold up the event loop."""
    assert quick(model, File("", GOOD))
    for content in (bomb(129, 128), GOOD[:8] + GOOD[8:33] + bomb(9999, 9999)[8:], b"", b"\xff\xd8" + GOOD):
        assert not quick(model, File("", content))
    assert not quick(model, File("", GOOD + bytes(10_000)))
    monkeypatch.setattr(model, "seconds", 0.01)
    assert not quick(model, File("", GOOD))


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises this many pixels."""

    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(bytes(99))) + part(b"IEND", b"")


GOOD = png(PIXELS[0])
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
FIELD = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--b--\r\n'
BAD = {
    "not JSON": (400, JSON, b"{", "not JSON"),
    "deep JSON": (400, JSON, b"[" * 100_000, "not JSON"),
    "other JSON": (400, JSON, b'{"picture": ""}', "an unknown form: allowed are"),
    "JSON without text": (400, JSON, b'{"images": [1]}', "an image that is not a string"),
    "no base64": (400, JSON, b'{"image": "//\\u00e4"}', "expected an image file in base64"),
    "no boundary": (400, {"Content-Type": "multipart/form-data"}, GOOD, "boundary"),
    "no form": (400, FORM, b"nothing", "form"),
    "a form without a file": (
        400,
        FORM,
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--b--\r\n',
        "no image",
    ),
    "many pixels": (413, IMAGE, bomb(60_000, 60_000), "60000 x 60000 pixels: allowed are"),
    "no type": (415, {}, GOOD, "the Content-Type is 'missing'"),
    "a form of curl": (415, {"Content-Type": "application/x-www-form-urlencoded"}, GOOD, "allowed are image/*"),
    "empty": (422, IMAGE, b"", "an empty file"),
    "text": (422, IMAGE, b"hello", "not an image"),
    "truncated": (422, IMAGE, GOOD[:-30], "damaged"),
    "no size": (422, IMAGE, bomb(0, 4), ""),
}


@pytest.mark.parametrize("name", BAD)
def test_a_refusal_has_its_status_and_one_reason(name, ask):
    status, headers, body, reason = BAD[name]
    answer = ask(data=body, headers=headers)
    assert (answer.status_code, [*answer.json()]) == (status, ["error"]), answer.text
    assert reason in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_the_servers_log_has_no_line_of_a_refusal(ask, caplog):
    assert ask(data=b"--b\r\n" * 9, headers=FORM).status_code == 400
    assert not [record for record in caplog.records if not record.name.startswith("urllib3")]


def test_too_many_bytes_are_refused_before_and_while_they_are_sent(ask, monkeypatch):
    monkeypatch.setattr(bodies, "LARGEST_BODY", 1000)
    assert ask(data=bytes(1001), headers=IMAGE).status_code == 413
    unannounced = ask(data=(bytes(100) for _ in range(11)), headers=IMAGE)
    assert (unannounced.status_code, unannounced.json()) == (413, {"error": "the body is larger than 1,000 bytes"})
    assert ask(data=GOOD[:1000], headers=IMAGE).status_code in (200, 422)


def test_too_many_images_are_refused(ask):
    many = [("image", (str(number), GOOD)) for number in range(bodies.MOST_IMAGES + 1)]
    assert ask(files=many).status_code == 413
    assert ask(json={"images": [base64.b64encode(GOOD).decode()] * (bodies.MOST_IMAGES + 1)}).status_code == 413
    assert ask(files=many[:-1]).status_code == 200


@pytest.mark.parametrize("query", ["?top=0", "?top=many", "?invert=perhaps"])
def test_a_wrong_parameter_is_named(ask, query):
    answer = ask(query, data=GOOD, headers=IMAGE)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(query[1:].partition("=")[0])


def test_what_would_hold_too_many_bytes_is_asked_to_come_again(ask, monkeypatch):
    monkeypatch.setattr(bodies, "LARGEST_BODIES", len(GOOD) - 1)
    answer = ask(data=GOOD, headers=IMAGE)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    monkeypatch.undo()
    assert ask(data=GOOD, headers=IMAGE).status_code == 200  # the place was given back


HALF = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 9999\r\n\r\n"


def connect(address):
    port = int(address.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def everything(connection):
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_body_that_does_not_arrive_is_refused(address, monkeypatch):
    monkeypatch.setattr(bodies, "SLOWEST_BODY_S", 0.2)
    with connect(address) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n1"
        )
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answer.endswith(b'{"error":"the body did not arrive within 0.2 s"}')


@pytest.mark.parametrize("sent", [b"", b"POST /predict HTTP/1.1\r\nHost: a\r\n"])
def test_headers_that_do_not_arrive_close_the_connection(address, monkeypatch, sent):
    monkeypatch.setattr(protocol, "SLOWEST_HEADERS_S", 0.2)
    with connect(address) as connection:
        connection.sendall(sent)
        assert everything(connection) == b""


def test_the_deadline_holds_for_every_request_of_a_connection(address, monkeypatch):
    monkeypatch.setattr(protocol, "SLOWEST_HEADERS_S", 0.3)
    with connect(address) as connection:
        for _ in range(2):
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            received = b""
            while not received.endswith(b'{"live":true}'):
                received += connection.recv(65536)
        connection.sendall(b"GET /health")
        assert everything(connection) == b""


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, "the headers are larger than 65,536 bytes"),
        (b"hello\r\n\r\n", "Invalid HTTP request received."),
    ],
)
def test_what_is_no_request_is_refused_with_a_reason(address, sent, reason):
    with connect(address) as connection:
        connection.sendall(sent)
        head, _, body = everything(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body) == {"error": reason}


CHUNKED = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        CHUNKED + b"0\r\n" + b"Trailer: of ten bytes\r\n" * 10_000,
        CHUNKED + b"1;" + b"an=extension;" * 10_000,
        b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 200,
        b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 70_000),
    ],
)
def test_what_no_limit_of_bodies_bounds_ends_the_connection(address, sent):
    """Trailers, extensions of chunks, requests that do not wait for answers, addresses."""
    with connect(address) as connection, suppress(ConnectionError):
        connection.sendall(sent)
        answer = everything(connection)
        assert b"HTTP/1.1 400 " in answer
        assert b"HTTP/1.1 500 " not in answer


def test_a_body_in_many_small_chunks_is_answered(address):
    parts = [GOOD[start : start + 16] for start in range(0, len(GOOD), 16)]
    with connect(address) as connection:
        for sent in (CHUNKED, b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts), b"0\r\n\r\n"):
            connection.sendall(sent)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_requests_that_do_not_wait_for_answers_are_answered_in_their_order(address):
    with connect(address) as connection:
        head = HALF.replace(b"9999", str(len(GOOD)).encode())
        connection.sendall(
            (head + GOOD + b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n") * 2
            + b"GET /model HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        answers = everything(connection)
    assert answers.count(b"HTTP/1.1 200 ") == 5
    assert re.findall(rb'"(predictions|live|classes)"', answers) == [
        *(b"predictions", b"live") * 2,
        b"classes",
    ]


def test_a_caller_who_hangs_up_is_not_an_error(address, ask):
    for how in (socket.SHUT_WR, socket.SHUT_RDWR):
        with connect(address) as connection:
            connection.sendall(HALF + GOOD[:50])
            connection.shutdown(how)
    until(lambda: 'path="/predict",status="400"' in requests.get(f"{address}/metrics", timeout=5).text)
    assert 'status="500"' not in requests.get(f"{address}/metrics", timeout=5).text
    assert ask(data=GOOD, headers=IMAGE).status_code == 200


def test_more_connections_than_allowed_are_told_to_come_again(address, monkeypatch):
    monkeypatch.setattr(protocol, "MOST_CONNECTIONS", 0)
    with connect(address) as connection:
        answer = everything(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in head
    assert f"Content-Length: {len(body)}".encode() in head


def test_every_answer_names_the_model(address, model):
    for path in ("/", "/model", "/docs", "/health/live", "/nowhere"):
        answer = requests.get(address + path, timeout=5)
        assert answer.headers["Model-Run-Id"] == model.card.run_id, path
        assert answer.headers["Model-Weights-Sha256"] == model.card.weights_sha256, path
    about = requests.get(f"{address}/model", timeout=5).json()
    assert about.items() >= {**model.identity, "classes": list("0123456789"), "channels": 1, "size": 32}.items()
    assert re.fullmatch("[0-9a-f]{40}", about["git_commit"])
    assert about["data_digest"].endswith(".dir")
    accuracy = about["accuracy"]
    assert 0.5 < accuracy["low"] < accuracy["value"] < accuracy["high"] < 1
    assert (accuracy["images"], accuracy["confidence"]) == (359, 0.95)


def test_invocations_answers_as_mlflow_does_and_refuses_scaled_pixels(address, model):
    def ask(images, form):
        return requests.post(f"{address}/invocations", json=FORMS[form](images.tolist()), timeout=30)

    expected = [model.probabilities(image) for image in PIXELS]
    for form in FORMS:
        answer = ask(PIXELS, form)
        assert answer.status_code == 200, (form, answer.text)
        rows = answer.json()["predictions"]
        assert [row.pop("predicted") for row in rows] == [str(each.argmax()) for each in expected]
        assert [list(row.values()) for row in rows] == [each.tolist() for each in expected]
        for images in (PIXELS / 255, NORMALIZED, PIXELS.astype(int) + 1, PIXELS[:, 0]):
            answer = ask(images, form)
            assert answer.status_code == 400, form
            assert answer.json().keys() == {"error_code", "message"}
            assert answer.json()["message"].startswith(WANTED)
    file = base64.b64encode(png(PIXELS[0])).decode()
    for body, status in (({"inputs": [file]}, 200), ({"inputs": ["x"]}, 400), ({"rows": []}, 400), ([], 400)):
        assert requests.post(f"{address}/invocations", json=body, timeout=30).status_code == status, body
    csv = requests.post(f"{address}/invocations", "1,2", headers={"Content-Type": "text/csv"}, timeout=30)
    assert csv.status_code == 415


def test_the_metrics_count_requests_and_classes(address, ask):
    def count(name):
        text = requests.get(f"{address}/metrics", timeout=5).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    names = 'classifier_requests_total{path="/predict",status="200"}', "classifier_images_total", "classifier_waiting "
    before = [count(name) for name in names]
    ask(files=[("image", ("a", GOOD)), ("image", ("b", GOOD))])
    assert [count(name) for name in names] == [before[0] + 1, before[1] + 2, 0]
    assert count("classifier_held_bytes ") == 0
    unknown = 'classifier_requests_total{path="unknown",status="404"}'
    known = count(unknown)
    requests.get(f"{address}/a/b", timeout=5)
    assert count(unknown) == known + 1


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_fetches_nothing_from_elsewhere(address, path):
    page = requests.get(address + path, timeout=5)
    assert page.status_code == 200
    addresses = re.findall(r"https?://[^\s<'\"]*", page.text)
    assert not [found for found in addresses if not found.startswith(address)]
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'; connect-src 'self';")


def test_the_openapi_page_describes_every_way(address):
    schema = requests.get(f"{address}/openapi.json", timeout=5).json()
    page = requests.get(f"{address}/docs", timeout=5).text
    assert schema["paths"].keys() == {
        *("/predict", "/invocations", "/model", "/health/live", "/health/ready", "/metrics")
    }
    assert all(f"{path}</code>" in page for path in schema["paths"])
    assert {"200", "400", "408", "413", "415", "422", "503"} == schema["paths"]["/predict"]["post"]["responses"].keys()


def test_the_answers_are_those_of_pytorch(served, ask, images):
    import pandas as pd

    table = pd.read_parquet(served.folder / "reports/evaluate/predictions.parquet").filter(regex=r"^p_\d")
    files = [("image", (str(number), png(image))) for number, image in enumerate(images)]
    found = [probabilities(each) for each in ask("?top=10", files=files).json()["predictions"]]
    assert same_answer(np.array(found), table.to_numpy()[: len(images)])

"""A thousand difficult files give the known pixels, or a reason."""

import hashlib
import os
import re
import subprocess
import sys
from collections import defaultdict

import pytest

from classifier.data.pixels import PINNED, BadImageError, Preprocessing, decode, decoder
from tests import difficult
from tests.samples import ROOT

RULES = [
    Preprocessing(image_size=24, margin=0, resize="pad", channels=3, invert=False),
    Preprocessing(image_size=40, margin=2, resize="crop", channels=1, invert=True),
]
KNOWN = {  # decoder -> SHA-256 of what it makes of all files by both rules
    "Pillow 13.0.0, libjpeg-turbo 3.2.0, libwebp 1.6.0, libtiff 4.7.2": (
        "457196903d5bc0e2b8a1e852ad3663cbf5d154398e10a56a774ec6012c4b42db"
    ),
}
REFUSED = {
    *("gray32_negative.tif", "float_wide.tif", "lab.tif", "huge.png", "huge.gif", "empty_dimensions.png"),
    *("truncated.jpg", "truncated.png", "truncated.webp", "truncated.gif", "truncated.tif"),
    *("photo.heic", "photo.avif", "photo.cr2", "preview.dng", "drawing.svg", "page.jpg", "document.pdf", "vector.eps"),
    *("nothing.jpg", "text.jpg"),
}


def outcome(content, rule):
    try:
        return decode(content, rule).tobytes()
    except BadImageError as error:
        return str(error)


def digest_of_all():
    found = hashlib.sha256()
    for _, content in difficult.files():
        for rule in RULES:
            result = outcome(content, rule)
            found.update(result.encode() if isinstance(result, str) else result)
    return found.hexdigest()


@pytest.fixture(scope="module")
def files():
    return list(difficult.files(3 * len(difficult.KINDS)))


def test_each_kind_gives_pixels_or_a_reason(files):
    found = defaultdict(set)
    for name, content in files:
        result = outcome(content, RULES[0])
        found[isinstance(result, str)].add(name[5:])
        assert len(result) == 3 * 24 * 24 or 10 < len(result) < 300
    assert found == {True: REFUSED, False: set(difficult.KINDS) - REFUSED}


def test_the_locked_decoder_is_the_pinned_one_and_its_pixels_are_known():
    (locked,) = re.findall(r"^pillow==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)
    assert locked == PINNED, "set PINNED, so that dvc repro decodes again and names the images whose pixels changed"
    assert any(name.startswith(f"Pillow {PINNED},") for name in KNOWN), "add what `digest_of_all` gives"


@pytest.fixture(scope="module")
def known():
    if (known := KNOWN.get(decoder())) is None:
        pytest.skip(f"the pixels are known of {', '.join(KNOWN)}, installed is {decoder()}")
    return known


def test_all_files_have_the_known_pixels(known):
    assert digest_of_all() == known


@pytest.mark.slow
def test_all_files_have_the_known_pixels_without_vector_instructions(known):
    command = [sys.executable, "-c", "from tests.data.test_difficult import digest_of_all as d; print(d())"]
    environment = os.environ | {"JSIMD_FORCENONE": "1"}  # of libjpeg-turbo
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == known

"""Portable arithmetic: published bits on every x86-64 processor with AVX2, and a refusal where they would be others."""

import math
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import mpmath
import pytest

from classifier import arithmetic
from classifier.arithmetic import CAPS
from classifier.errors import UserError
from tests.samples import ROOT
from tests.training.test_buffers import PROGRAM as NETWORKS

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64") or not arithmetic._has_avx2(), reason="for x86-64 with AVX2"
)

# The engine on 1,295 real digits. With one part an Intel Xeon and an AMD EPYC gave these bits to the engine that had
# no parts; those of two and four parts are an AMD EPYC's, where other processors must come to the same.
PUBLISHED = {1: "a8d81173215b900e", 2: "81cc3b4d0841bded", 4: "ca60bc1ce7f248cc"}
TRAINING = """
import sys
from pathlib import Path
from classifier import arithmetic
arithmetic.use("portable")
import hashlib
import numpy as np
import torch
from sklearn.datasets import load_digits
from classifier.data.dataset import Split
from classifier.networks.model import Classifier, LeNet5
from classifier.training.loop import fit
from classifier.params import load_params
digits = load_digits()
images = np.ascontiguousarray(np.kron((digits.images * 15.9).astype(np.uint8), np.ones((1, 4, 4), np.uint8))[:, None])
train, validation = (Split(images[part], digits.target[part].astype(np.int64)) for part in np.s_[:1295, 1295:1438])
torch.manual_seed(0)
classifier = Classifier(LeNet5(1, 10), [0.24], [0.33])
params = load_params(Path("params.yaml")).train
update = {"epochs": 5, "device": "cpu", "parts": int(sys.argv[1]), "processes": int(sys.argv[2])}
params = params.model_copy(update=update)
fit(classifier, train, validation, params, torch.device("cpu"), lambda seed, row: None)
weights = b"".join(value.detach().contiguous().numpy().tobytes() for value in classifier.network.parameters())
print(hashlib.sha256(weights).hexdigest()[:16])
"""


# SHA-256 of what the functions give that PyTorch computes by MKL, by its own vectors and by oneDNN.
FUNCTIONS_PUBLISHED = "311777becd729306"
FUNCTIONS = """
import hashlib, sys, torch
from classifier import arithmetic
arithmetic.use(sys.argv[1])
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
values = 6 * torch.rand(20_000, generator=generator) - 3
first, second = torch.rand(64, 300, generator=generator), torch.rand(300, 120, generator=generator)
whole = hashlib.sha256()
for kind in torch.float32, torch.float64:
    x = values.to(kind)
    positive, rows = x.abs() + 1e-3, x.view(-1, 100)
    found = [x.exp(), positive.log(), x.sin(), x.cos(), x.tanh(), x.erf(), positive.sqrt(), positive ** 1.3]
    found += [x.sigmoid(), torch.nn.functional.gelu(x), rows.softmax(1), rows.log_softmax(1), rows.var(1)]
    found += [first.to(kind) @ second.to(kind)]
    for each in found:
        whole.update(each.numpy().tobytes())
images, weights = values.view(2, 10, 25, 40), second[:8, :90].reshape(8, 10, 3, 3)
whole.update(torch.nn.functional.conv2d(images, weights).numpy().tobytes())
print(whole.hexdigest()[:16])
"""


def run(code, *arguments, **environment):
    """In a process in which nothing was chosen yet."""
    free = {name: value for name, value in os.environ.items() if name not in CAPS}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, env=free | environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("parts", "environment"),
    [
        (1, {"OMP_NUM_THREADS": "1"}),
        pytest.param(1, {"OMP_NUM_THREADS": "2"}, marks=pytest.mark.slow),
        pytest.param(2, {"OMP_NUM_THREADS": "1"}, marks=pytest.mark.slow),
        (2, {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "2"}),
        pytest.param(
            *(2, {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "SSE4_2"}),
            marks=pytest.mark.slow,
        ),
        (2, {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "ALL", "MKL_CBWR": "AVX512"}),
    ],
)
def test_a_training_has_the_published_bits(parts, environment):
    """Whatever threads, cores and caps, lower or higher than the machine's, the environment asks for."""
    done = run(TRAINING, str(parts), "2", **environment)
    assert (done.stdout.strip(), done.stderr) == (PUBLISHED[parts], "")


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "threads"), [(1, 1), (2, 5), (3, 2), (4, 3), (8, 1)])
def test_any_number_of_processes_has_the_published_bits(processes, threads):
    """More than there are cores or, the last, than there are parts."""
    done = run(TRAINING, "4", str(processes), OMP_NUM_THREADS=str(threads))
    assert (done.stdout.strip(), done.stderr) == (PUBLISHED[4], "")


@pytest.fixture(scope="module")
def as_on_intel(tmp_path_factory):
    """The environment in which MKL takes this machine's processor for one of Intel's, whoever made it."""
    if not (compiler := shutil.which("cc")):
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("intel") / "intel.so"
    source = "int mkl_serv_intel_cpu_true(void) { return 1; }"
    subprocess.run([compiler, "-shared", "-fPIC", "-xc", "-", "-o", library], input=source, text=True, check=True)
    return {"LD_PRELOAD": str(library)}


def is_intel():
    return "GenuineIntel" in Path("/proc/cpuinfo").read_text()


def test_functions_have_the_published_bits():
    assert run(FUNCTIONS, "portable").stdout.strip() == FUNCTIONS_PUBLISHED


@pytest.mark.slow
def test_the_maker_of_the_processor_changes_no_bit(as_on_intel):
    """MKL has kernels of its own for Intel's processors: in native arithmetic these give other bits."""
    assert run(FUNCTIONS, "portable", **as_on_intel).stdout.strip() == FUNCTIONS_PUBLISHED
    done = run(TRAINING, "2", "2", **as_on_intel)
    assert (done.stdout.strip(), done.stderr) == (PUBLISHED[2], "")
    networks = run(NETWORKS, "1")  # batch normalization, depthwise convolutions, attention
    assert (networks.stdout.count("\n"), networks.stderr) == (3, "")
    assert run(NETWORKS, "2", **as_on_intel).stdout == networks.stdout
    if not is_intel():
        assert run(FUNCTIONS, "native", **as_on_intel).stdout != run(FUNCTIONS, "native").stdout


@pytest.mark.parametrize("missing", CAPS)
def test_a_cap_that_is_not_in_force_is_noticed(missing):
    """Set too late, when torch was used already; oneDNN does not tell its caps, and the bits above depend on them."""
    code = (
        "import torch\n"
        "torch.rand(8, 8) @ torch.rand(8, 8)\n"
        "from classifier import arithmetic\n"
        "arithmetic.use('portable')\n"
        "print('in force')"
    )
    done = run(code, **{name: value for name, value in CAPS.items() if name != missing})
    if missing.startswith("ONEDNN"):
        assert done.stdout == "in force\n"
    else:
        assert "UserError: portable arithmetic is not in force, torch computes with" in done.stderr


def test_torch_that_computed_first_is_refused():
    choose = "from classifier import arithmetic\narithmetic.use('portable')\nprint(arithmetic.instructions())"
    assert run(f"import torch\n{choose}").stdout == "AVX2, compatible MKL\n"
    refused = run(f"import torch\ntorch.rand(8, 8) @ torch.rand(8, 8)\n{choose}").stderr
    assert "UserError: portable arithmetic is not in force, torch computes with" in refused
    assert "start a new process, and call classifier.arithmetic.use('portable') before torch computes" in refused


def test_the_engine_refuses_portable_arithmetic_that_is_not_in_force():
    code = TRAINING.replace('arithmetic.use("portable")', "")
    assert "portable arithmetic is not in force" in run(code, "2", "1").stderr


def test_native_arithmetic_leaves_the_libraries_as_they_are():
    code = (
        "from classifier import arithmetic\narithmetic.use('native')\n"
        "import os\nprint(*(name for name in arithmetic.CAPS if name in os.environ), arithmetic.instructions())"
    )
    said = run(code).stdout
    assert "ATEN_CPU_CAPABILITY" not in said
    assert "compatible MKL" not in said


def test_a_processor_without_avx2_is_refused(monkeypatch):
    monkeypatch.setattr(arithmetic, "_has_avx2", lambda: False)
    with pytest.raises(UserError, match=r"needs a processor with AVX2.*evaluate.arithmetic to native"):
        arithmetic.use("portable")
    arithmetic.use("native")


def test_other_processors_have_no_caps(monkeypatch):
    """As ARM's: the default trains there too."""
    monkeypatch.setattr(arithmetic, "is_x86", lambda: False)
    monkeypatch.setattr(arithmetic, "CAPS", {"NO_SUCH_CAP": "set"})
    arithmetic.use("portable")
    arithmetic.verify()
    assert "NO_SUCH_CAP" not in os.environ


def test_the_cosine_is_correctly_rounded():
    """The C library's is too, but for the last bit of a few; with mpmath's as the right value."""
    with mpmath.workprec(200):
        for step in range(2000):
            angle = math.pi * step / 1999
            assert arithmetic.cosine(angle) == float(mpmath.cos(angle)), angle
    assert [arithmetic.cosine(angle) for angle in (0.0, math.pi)] == [1.0, -1.0]
    assert arithmetic.cosine(1e-30) == 1.0

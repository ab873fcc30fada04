"""What the benchmarks' sections make of their samples; no process is run."""

from pathlib import Path

import pytest

from benchmarks import images
from benchmarks.bench import take_turns
from benchmarks.on_gpu import GpuNetworks, OnGpu, Replayed, WarmSpeedrun
from benchmarks.parts import ALONE, MOBILE, NATIVE, PORTABLE, Parts
from benchmarks.process import Sample
from benchmarks.results import Result
from benchmarks.sections import Contenders, Growth, Imports, Nothing, Recording
from benchmarks.several_seeds import SeedLoops, SeedStages, in_sequence

pytestmark = pytest.mark.slow


def sample(wall_s: float, loop_s: float) -> Sample:
    return Sample(wall_s, wall_s, 100.0, {"loop_s": loop_s})


class PreparedBench:
    """A bench whose processes are never run."""

    device, quick = "cpu", True

    def __getattr__(self, name: str) -> object:
        return (
            (lambda *_, **__: sample(5, 4))
            if name
            in (
                "tutorial",
                "contender",
                "ours",
                "unrecorded",
                "say",
                "python",
                "module",
                "normalize",
                "stage",
                "write_params",
            )
            else self
        )


def test_contenders_compares_loops() -> None:
    section = Contenders(PreparedBench())  # type: ignore[arg-type]
    samples = {name: [sample(20, 10)] * 3 for name in section.processes} | {
        "ours": [sample(9, loop) for loop in (3.0, 5.0, 3.0)]
    }
    for faster, slower, name in (("bare_nhwc", "bare_nchw", "channels-last"), ("bare_nchw", "bare_nhwc", "NCHW")):
        samples[slower] = [sample(5, loop) for loop in (5.0, 1.0, 8.0)]
        samples[faster] = [sample(5, loop) for loop in (4.0, 2.0, 9.0)]
        result = section.results(samples)
        assert [(bar.value, bar.limit, bar.met) for bar in result.bars] == [(0.75, 1.03, True), (0.3, 0.25, False)]
        assert result.bars[0].what == f"our loop / bare, {name} (the faster memory format)"
        assert len(result.tables[0].rows) == len(section.processes)


def test_growth_takes_the_whole_of_mnist_from_ours(tmp_path: Path) -> None:
    class Folder(PreparedBench):
        quick = False

        def __init__(self) -> None:
            self.project, self.folder = self, tmp_path

        def write_params(self, *arguments: object, **sections: object) -> None: ...

        def resize(self, images: int) -> None:
            (tmp_path / f"data/{images}").mkdir(parents=True)
            (tmp_path / f"data/{images}/train.safetensors").write_bytes(b"x" * images)

    section = Growth(Folder())  # type: ignore[arg-type]
    loops = {"images x1": 1, "images x2": 2, "epochs x2": 2, "epochs x4": 4, "images x8": 8, "epochs x8": 8, "ours": 5}
    assert list(section.processes) == list(loops)
    samples = {
        name: [Sample(9, 9, 100.0, {"loop_s": loop, "loop_peak_mib": 50 + loop})] for name, loop in loops.items()
    }
    images, epochs, _ = section.results(samples).bars
    assert images.value > 0.05
    assert epochs.value == pytest.approx(0)


def test_imports_compares_what_is_outside_the_loop() -> None:
    section = Imports(PreparedBench())  # type: ignore[arg-type]
    walls = {"import torch": 2, "import mlflow": 1, "import torch, mlflow": 2.5}
    samples = {name: [sample(wall, 4)] for name, wall in walls.items()}
    result = section.results(samples | {"ours": [Sample(10, 10, 100.0, {"loop_s": 4, "waiting": 0.5})]})
    assert [bar.value for bar in result.bars] == [2]


def test_recording_is_estimated_and_timed() -> None:
    section = Recording(PreparedBench())  # type: ignore[arg-type]
    said = [
        {"loop_s": loop, "unrecorded_s": 2.0, "waited_s": 0.01, "threads_s": 0.02, "recorder_s": 0.03}
        for loop in (4.0, 6.0, 2.0)
    ]
    result = section.results({"unrecorded": [Sample(9, 9, 100.0, figures) for figures in said]})
    assert [(bar.value, bar.met) for bar in result.bars] == [(pytest.approx(0.06 / 4), True), (2, False)]
    assert result.tables[0].rows[-1][1].startswith("2.000")


def test_several_seeds_are_compared_with_trainings_in_sequence_and_on_a_gpu_with_one() -> None:
    bench = PreparedBench()
    for device, stages, loops, limit in (
        (
            "cpu",
            ["2 train stages in sequence", "1 train stage, 2 seeds"],
            ["2 trainings in sequence in one process", "2 seeds, loops only"],
            0.75,
        ),
        (
            "cuda",
            ["1 train stage, 1 seed", "1 train stage, 64 seeds"],
            ["1 training, loop only", "64 seeds, loops only"],
            4,
        ),
    ):
        bench.device = device
        for section, names in ((SeedStages(bench), stages), (SeedLoops(bench), loops)):  # type: ignore[arg-type]
            assert list(section.processes) == names
            result = section.results({names[0]: [sample(8, 4)], names[1]: [sample(6, 3)]})
            assert [(bar.what, bar.value, bar.limit) for bar in result.bars] == [
                (f"{names[1]} / {names[0]}", 0.75, limit)
            ]


def test_stages_in_sequence_take_the_time_of_all_of_them() -> None:
    assert in_sequence([Sample(2, 3, 50), Sample(4, 5, 40)]) == Sample(6, 8, 50)


def test_every_seed_in_sequence_is_a_whole_stage_of_its_own() -> None:
    class Written(PreparedBench):
        project: object

        def __init__(self) -> None:
            self.project, self.written, self.ran = self, [], []

        def write_params(self, path: str, recipe: str, train: dict[str, object]) -> None:
            self.written.append((train["seed"], train["seeds"]))

        def module(self, name: str, *arguments: str) -> Sample:
            self.ran.append(name)
            return sample(5, 4)

    bench = Written()
    for process in SeedStages(bench).processes.values():  # type: ignore[arg-type]
        process()
    assert bench.written == [(0, 1), (1, 1), (0, 2)]
    assert bench.ran == ["stages.train"] * 3


@pytest.mark.parametrize("kind", [GpuNetworks, Replayed, WarmSpeedrun])
def test_without_a_gpu_nothing_of_it_is_run(kind: type[OnGpu]) -> None:
    section = kind(PreparedBench())  # type: ignore[arg-type]
    assert not section.processes
    assert section.results({}) == Result((), ())


def test_replays_are_compared_with_the_loop_and_with_compiled_kernels() -> None:
    bench = PreparedBench()
    bench.device = "cuda"
    section = Replayed(bench)  # type: ignore[arg-type]
    said = {
        "deterministic": {"loop_s": 4.4, "replay_s": 4.0},
        "free": {"loop_s": 4.0, "replay_s": 4.0},
        "compiled": {"loop_s": 3.0, "replay_s": 2.0, "compile_s": 20.0},
    }
    assert list(section.processes) == list(said)

    def result() -> Result:
        return section.results({name: [Sample(9, 9, 100.0, figures)] for name, figures in said.items()})

    assert [(bar.value, bar.met) for bar in result().bars] == [(pytest.approx(1.1), True)]
    assert [row[-2:] for row in result().tables[0].rows] == [["1.10", "-"], ["1.00", "-"], ["0.75", "20.0"]]
    said["compiled"] = {"problem": "no compiler"}  # type: ignore[dict-item]
    assert result().bars[0].met
    assert result().tables[0].rows[2] == ["compiled: no compiler", "-", "-", "-", "-", "-"]


def test_networks_on_a_gpu_are_compared_with_the_best_hand_written_loop() -> None:
    class Written(PreparedBench):
        device = "cuda"
        project: object

        def __init__(self) -> None:
            self.project, self.written = self, {}

        def write_params(self, path: str, recipe: str, train: dict[str, object]) -> None:
            self.written[path] = train

    bench = Written()
    section = GpuNetworks(bench)  # type: ignore[arg-type]
    assert {(each["compile"], each["data"], each.get("deterministic", True)) for each in bench.written.values()} == {
        (False, "resident", True),
        (True, "resident", True),
        (True, "streamed", True),
        (True, "resident", False),
    }
    seconds = {"bare, bfloat16": 3.0, "bare, compiled": 2.0, "bare, graphed": 2.5, "ours, compiled, streamed": 2.2}
    samples = {}
    samples["resnet18: bare, bfloat16"] = [Sample(9, 9, 100.0, {"loop_s": 0.1})]  # of another section
    for name in section.processes:
        way = name.partition(": ")[2]
        figures: dict[str, object] = {"loop_s": seconds.get(way, 2.1)} | (
            {} if "bare" in way else {"weights": "0" * 64}
        )
        samples[name] = [Sample(9, 9, 100.0, figures)]
    result = section.results(samples)
    assert [(round(bar.value, 3), bar.met) for bar in result.bars] == [(1.05, False), (1.048, False)] * 2
    assert result.tables[0].rows[3] == ["resnet18: ours", "2.100", "1.05", "000000000000"]


def test_warm_seeds_have_bars_on_their_means() -> None:
    bench = PreparedBench()
    bench.device = "cuda"
    section = WarmSpeedrun(bench)  # type: ignore[arg-type]
    warm, cold = section.processes
    figures = {"seconds": [0.04, 0.05], "accuracies": [0.98, 0.99]}
    result = section.results({warm: [Sample(9, 9, 100.0, figures)] * 2, cold: [sample(7, 1)]})
    assert [(bar.value, bar.met) for bar in result.bars] == [
        (pytest.approx(0.985), False),
        (pytest.approx(0.045), True),
    ]
    assert result.tables[0].rows == [["2", "98.50% (98.00% to 99.00%)", "0.0450 (0.0400 to 0.0500)", "7.00"]]


def test_every_section_has_its_rounds_and_shares_its_processes() -> None:
    calls: list[str] = []

    class Few(Nothing):
        rounds = 1

        def __init__(self, *names: str) -> None:
            self.processes = {name: lambda name=name: calls.append(name) or sample(2, 1) for name in names}  # type: ignore[misc]

    few, many = Few("a", "b"), Few("b", "c")
    many.rounds = 5
    samples = take_turns([few, many], 3, lambda line: None)
    assert "".join(calls) == "abc" + "bc" + "bc"
    assert {name: len(found) for name, found in samples.items()} == {"a": 1, "b": 3, "c": 3}


def test_parts_compares_each_way_with_its_own_kind() -> None:
    section = Parts(PreparedBench())  # type: ignore[arg-type]
    samples = {name: [sample(20, 10)] * 3 for name in section.processes}
    samples |= {NATIVE: [sample(9, 5)], PORTABLE: [sample(9, 6)], f"{MOBILE}{NATIVE}": [sample(9, 8)]}
    for name, peak in ((PORTABLE, 300.0), (ALONE, 200.0)):
        samples[f"memory: {name}"] = [Sample(9, 9, 1.0, {}, peak)]
    result = section.results(samples)
    assert [bar.value for bar in result.bars] == [0.5, 0.8, 1.2, 0.6, 0.5, 1.5]
    assert len(result.tables[0].rows) == len(section.processes) - 2


def test_images_compares_the_stages_with_decoding_and_large_data_with_small() -> None:
    section = images.Images.__new__(images.Images)
    section.count = 60_000
    names = ("WHOLE", "LARGE", "ALONE", "REPRO", "STATUS", "SMALL", "BIG")
    section.processes = {getattr(images, name): lambda: sample(2, 1) for name in names}
    samples = {name: [Sample(2, 2, 100, {"loop_s": 1}, 500)] for name in section.processes}
    samples[images.BIG] = [Sample(9, 9, 100, {"loop_s": 1.5}, 0)]
    result = section.results(samples)
    assert [(bar.value, bar.met) for bar in result.bars] == [(2, False), (500, True), (1, True), (1.5, False)]
    assert len(result.tables[0].rows) == len(section.processes)

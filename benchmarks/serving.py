"""Serving and predicting: `classifier serve` compared with MLflow's server, `predict` with decoding alone."""

from __future__ import annotations

from functools import partial
from statistics import median

from benchmarks.bench import Bench, Processes, Samples, Section
from benchmarks.results import Bar, Result, Table, summary

COUNT = 10_000  # requests, hostile requests, files


class Serving(Section):
    """Measured in one process, with the model of the digits and their test images as 28x28 PNG files."""

    rounds = 3

    def __init__(self, bench: Bench) -> None:
        bench.project.run("dvc", "repro")
        count = 200 if bench.quick else COUNT
        self.processes: Processes = {
            "serving": partial(bench.project.module, "benchmarks.contenders.served", str(count))
        }

    def results(self, samples: Samples) -> Result:
        said = [sample.said for sample in samples["serving"]]

        def of(value: str, over: str = "") -> float:
            return median(each[value] / (each[over] if over else 1) for each in said)

        parts = median(each["ours_ms"] / (each["bare_ms"] + each["empty_ms"]) for each in said)
        bad = sum(each["statuses"].get("500", 0) for each in said)
        bars = [
            Bar(
                "requests a second, 16 clients: classifier serve / mlflow models serve",
                of("rate", "mlflow_rate"),
                10,
                True,
            ),
            Bar("p50 of one request / (decoding + onnxruntime + an empty FastAPI answer)", parts, 1.5),
            Bar("p99 under 16 clients / p50 of one", of("p99_ms", "ours_ms"), 20),
            Bar("classifier serve: seconds from the start to ready", of("start_s"), 3),
            Bar("predict of 10,000 PNG files / decoding them alone", of("predict_s", "decode_s"), 1.5),
            Bar("10,000 hostile requests: responses with status 500", bad, 0),
            Bar("10,000 hostile requests: memory after / before", of("after_mib", "before_mib"), 1.05),
            Bar("10,000 hostile requests: p50 after / before", of("after_ms", "before_ms"), 1.2),
        ]
        words = {
            "rate": "requests a second, 16 clients",
            "mlflow_rate": "the same, mlflow models serve",
            "ours_ms": "p50 of one request, ms",
            "empty_ms": "p50 of an empty FastAPI answer, ms",
            "bare_ms": "p50 of decoding and onnxruntime, ms",
            "p99_ms": "p99 under 16 clients, ms",
            "start_s": "start to ready, s",
            "predict_s": "predict of the files, excluding imports, s",
            "decode_s": "decoding of the files, s",
            "command_s": "classifier predict of the files, the whole command, s",
            "before_mib": "memory before the hostile requests, MiB",
            "after_mib": "memory after them, MiB",
        }
        rows = [[text, summary([each[name] for each in said])] for name, text in words.items()]
        return Result(bars, [Table("Serving", ["what", "value"], rows)])

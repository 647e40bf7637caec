"""What each tracker has received, read back from its files: numbers, texts, pictures, settings and names of runs."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEAD = 2**15, 7  # bytes of LevelDB's log format


@dataclass
class Received:
    """What a tracker has of a run; the newest value of each name and step counts."""

    numbers: dict[tuple[str, int], float] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)  # health, by iteration
    pictures: set[int] = field(default_factory=set)  # iterations with a sample grid
    extremes: set[int] = field(default_factory=set)  # iterations with the best and the worst image
    settings: dict[str, Any] = field(default_factory=dict)
    runs: set[str] = field(default_factory=set)  # names of runs

    def take(self, name: str, step: int, value: Any) -> None:
        if name == "health":
            self.texts[step] = str(value)
        elif name.partition("/")[0] == "samples":  # W&B lists the parts of a picture
            self.pictures.add(step)
        elif name.partition("/")[0] == "best-worst":
            self.extremes.add(step)
        else:
            self.numbers[name, step] = float(value)


def tensorboard(run: Path) -> Received:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events, found = EventAccumulator(str(run / "tensorboard"), {"images": 0, "scalars": 0}).Reload(), Received()
    tags: Any = events.Tags()
    for name in tags["scalars"]:
        steps = [event.step for event in events.Scalars(name)]
        assert steps == sorted(set(steps)), name  # what an interrupted run had sent is gone
        for event in events.Scalars(name):
            found.take(name, event.step, event.value)
    for event in events.Tensors("health/text_summary"):
        found.take("health", event.step, event.tensor_proto.string_val[0].decode())
    for name in tags["images"]:
        for event in events.Images(name):
            found.take(name, event.step, None)
    found.settings = _hparams(next((run / "tensorboard").glob("*/hparams.yml")))
    found.runs = {path.name for path in run.glob("tensorboard")}
    return found


def _hparams(path: Path) -> dict[str, Any]:
    import yaml

    known: dict[str, Any] = yaml.safe_load(path.read_text())
    return known


def trackio(run: Path) -> Received:
    from trackio.sqlite_storage import SQLiteStorage

    found = Received(runs=set(SQLiteStorage.get_runs("flowward")))
    (name,) = found.runs
    for row in SQLiteStorage.get_logs("flowward", name):
        for key, value in row.items():
            if key not in ("step", "timestamp"):
                found.take(key, row["step"], value)
    found.settings = SQLiteStorage.get_run_config("flowward", name)
    return found


def wandb(run: Path) -> Received:
    from wandb.proto import wandb_internal_pb2

    found = Received()
    for path in sorted((run / "wandb").glob("offline-run-*/run-*.wandb")):
        for data in _records(path.read_bytes()):
            record: Any = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if not name.startswith("_"):
                    found.take(name, record.history.step.num, json.loads(item.value_json))
            for item in record.config.update:
                found.settings[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
            found.runs |= {record.run.run_id} - {""}
    return found


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log with a header of its own."""
    at, part = HEAD, b""
    while at + HEAD <= len(data):
        if (left := BLOCK - at % BLOCK) < HEAD:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + HEAD])
        at += HEAD + size
        part += data[at - size : at]
        if kind in (1, 4):  # whole, or the last part
            yield part
            part = b""


def swanlab(run: Path) -> Received:
    import yaml
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    found = Received()
    for path in sorted((run / "swanlog").glob("run-*/run-*.swanlab")):
        reader = DataStoreReader()
        reader.open(path)
        for data in reader:
            record: Any = Record()
            record.ParseFromString(data)
            found.runs |= {record.start.id} - {""}
            if record.HasField("scalar"):
                found.take(record.scalar.key, record.scalar.step, record.scalar.value.number)
            if record.HasField("media"):
                name = record.media.value.items[0].filename
                text = next(iter(path.parent.glob(f"media/text/{name}")), None)
                found.take(record.media.key, record.media.step, text.read_text() if text else name)
        known = yaml.safe_load((path.parent / "files" / "config.yaml").read_text())
        found.settings |= {key: value["value"] for key, value in known.items()}
    return found


def mlflow(run: Path) -> Received:
    from mlflow import MlflowClient
    from mlflow.artifacts import load_text

    client = MlflowClient()
    experiment = client.get_experiment_by_name("flowward")
    known = client.search_runs([experiment.experiment_id])
    name, found = known[0].info.run_id, Received(runs={each.info.run_id for each in known})
    for key in known[0].data.metrics:
        for each in client.get_metric_history(name, key):
            found.take(key, each.step, each.value)
    for each in client.list_artifacts(name, "samples"):
        step, _, what = Path(each.path).stem.partition("-")
        found.take(what or "samples", int(step), None)
    for each in client.list_artifacts(name, "health"):
        found.texts[int(Path(each.path).stem)] = load_text(f"{known[0].info.artifact_uri}/{each.path}")
    found.settings = known[0].data.params
    return found


READERS = {"tensorboard": tensorboard, "trackio": trackio, "wandb": wandb, "swanlab": swanlab, "mlflow": mlflow}

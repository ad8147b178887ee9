"""The columns of TensorBoard's HPARAMS page: what varies among the runs under a folder, variant and rate first.

A run's own events say its values, and which runs are seeds of one configuration; what varies only the folder knows. It
is written there as an event file of its own whenever TensorBoard is started, and only shows.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bnrepro.config import WHERE_NOT_WHAT, stored_values
from bnrepro.runs import record
from bnrepro.system.writing import write_whole

FILE = "events.out.tfevents.0000000001.bnrepro.hparams"
ALWAYS = ("optimizer.lr", "variant")
METRICS = ("accuracy/test", "accuracy/val", "loss/test", "loss/val")


def varying(configs: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    """The values of each key that are not the same in all ``configs``, and of `ALWAYS`; the seed is no such key."""
    found: dict[str, list[Any]] = {}
    for values in configs:
        for key, value in values.items():
            if isinstance(value, bool | int | float | str) and key not in (*WHERE_NOT_WHAT, "seed"):
                seen = found.setdefault(key, [])
                if value not in seen:
                    seen.append(value)
    return {key: seen for key, seen in found.items() if len(seen) > 1 or key in ALWAYS}


def write(folder: Path) -> None:
    """Write the columns for the runs in ``folder`` and below; nothing where there are none."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    configs = []
    for file in sorted(folder.rglob(f"seed*/{record.CONFIG}")):
        with suppress(OSError, ValueError):  # damaged: `bnrepro runs` says so
            configs.append(stored_values(file))
    if not configs:
        return
    experiment = api_pb2.Experiment()
    for key, seen in varying(configs).items():
        column = experiment.hparam_infos.add(name=key, differs=key in ALWAYS)  # those that differ come first
        if all(isinstance(value, bool) for value in seen):
            column.type = api_pb2.DATA_TYPE_BOOL
            column.domain_discrete.extend(seen)
        elif all(isinstance(value, int | float) for value in seen):
            column.type = api_pb2.DATA_TYPE_FLOAT64
            column.domain_interval.min_value, column.domain_interval.max_value = min(seen), max(seen)
        else:
            column.type = api_pb2.DATA_TYPE_STRING
            column.domain_discrete.extend(map(str, seen))
    for tag in METRICS:
        experiment.metric_infos.add(name=api_pb2.MetricName(tag=tag))
    content = plugin_data_pb2.HParamsPluginData(experiment=experiment, version=metadata.PLUGIN_DATA_VERSION)
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=content.SerializeToString())
    about = SummaryMetadata(plugin_data=plugin)
    value = Summary.Value(tag=metadata.EXPERIMENT_TAG, metadata=about, tensor=metadata.NULL_TENSOR)
    events = [Event(wall_time=1, file_version="brain.Event:2"), Event(wall_time=1, summary=Summary(value=[value]))]
    stream = io.BytesIO()
    for event in events:
        RecordWriter(stream).write(event.SerializeToString())
    write_whole(folder / FILE, stream.getvalue())

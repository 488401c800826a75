"""Measures shard files on a cluster of two workers, one of which dies half-way.

A program of its own, run by `test_scale.py`: `python cluster_measure.py dask FOLDER`.
"""

import functools
import os
import signal
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import joblib
import pandas as pd

import lrc
from lrc import trace_file


def arm(marker=None):
    """Let the process that is the first to read a fifth row group die there, with SIGKILL."""
    marker = marker or os.environ["MARKER"]
    trace_file.TraceFile.read = functools.partialmethod(
        read_or_die, trace_file.TraceFile.read, marker
    )


def read_or_die(self, read, marker, group):
    if group == 4:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return read(self, group)


@contextmanager
def dask(marker):
    from dask.distributed import Client, LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options, host="127.0.0.1") as cluster, Client(cluster) as client:
        client.run(arm, marker)
        with joblib.parallel_config(backend="dask"):
            yield


@contextmanager
def ray(marker):
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray
    from ray.util.joblib import register_ray

    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(
            num_cpus=2,
            object_store_memory=1 << 27,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={
                "worker_process_setup_hook": "cluster_measure.arm",
                "env_vars": {"MARKER": marker},
            },
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        try:
            register_ray()
            retry = {"max_restarts": 3, "max_task_retries": 3}
            with joblib.parallel_config(backend="ray", ray_remote_args=retry):
                yield
        finally:
            ray.shutdown()


def measure(source):
    options = {"level": "layer", "bootstrap": 50}
    return [lrc.srp(source, (4, 64), **options), lrc.hit_rates(source, "lru", **options)]


def main(backend, folder):
    paths = sorted(Path(folder).glob("*.parquet"))
    expected = measure([lrc.load_trace(path) for path in paths])
    marker = Path(folder) / "died"
    with {"dask": dask, "ray": ray}[backend](str(marker)):
        tables = measure(paths)
    for table, other in zip(tables, expected, strict=True):
        pd.testing.assert_frame_equal(table, other, check_exact=True)
    assert marker.exists(), "no worker died, so nothing was tested"


if __name__ == "__main__":
    # Workers import `arm` by name, so it must not be of __main__.
    import cluster_measure

    cluster_measure.main(*sys.argv[1:])

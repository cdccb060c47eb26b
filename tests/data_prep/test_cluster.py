"""Preparation on a Dask cluster and from and to object storage: the bytes are those of one machine."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio_ct.errors import InputError
from audio_ct.tokens.store import TokenStore
from data_prep import plan
from data_prep.folder import CORPUS
from data_prep.options import PrepOptions
from data_prep.skeleton import prepare

OPTIONS = {"split_by": "recording", "jobs": 1}


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty recordings, which make a dozen shards or more."""
    monkeypatch.setattr(plan, "MINIMUM_SHARD_BYTES", 20_000)
    (tmp_path / "corpus").mkdir()
    for index in range(40):
        waveform = 0.3 * np.random.default_rng(index).uniform(-1, 1, 4000 + 50 * index)
        soundfile.write(tmp_path / f"corpus/{index:02d}.flac", waveform, 16_000)
    return tmp_path / "corpus"


def content(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.iterdir()}


def listens(port: int) -> bool:
    with socket.socket() as test:
        return test.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as test:
        test.bind(("127.0.0.1", 0))
        port: int = test.getsockname()[1]
        return port


class Cluster:
    """A scheduler and two workers, each a process that can be killed."""

    def __init__(self, folder: Path) -> None:
        self.address = f"tcp://127.0.0.1:{(port := free_port())}"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",
        }
        common = ["--no-dashboard"]
        scheduler = ["dask.__main__", "scheduler", "--host", "127.0.0.1", "--port", str(port), *common]
        worker = ["dask.__main__", "worker", self.address, "--nthreads", "1", "--no-nanny", *common]
        worker += ["--local-directory", str(folder)]
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for arguments in (scheduler, worker, worker)
        ]
        deadline = time.monotonic() + 60
        while not listens(port):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    pytest.importorskip("distributed")
    made = Cluster(tmp_path / "dask")
    yield made
    made.end()


def test_a_cluster_gives_the_bytes_of_one_machine_though_a_worker_is_killed(
    corpus: Path, tmp_path: Path, cluster: Cluster
) -> None:
    prepare(CORPUS, corpus, tmp_path / "alone", options=PrepOptions(**OPTIONS))

    def kill_one() -> None:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob(".store.partial/work/*.bin.json"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        cluster.processes[1].send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    prepare(CORPUS, corpus, tmp_path / "store", options=PrepOptions(**OPTIONS, cluster=cluster.address))
    killer.join()
    assert cluster.processes[1].wait() == -signal.SIGKILL
    assert content(tmp_path / "store") == content(tmp_path / "alone")


def test_a_cluster_that_is_not_there_is_one_line(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    options = PrepOptions(**OPTIONS, cluster=f"tcp://127.0.0.1:{free_port()}")
    with pytest.raises(InputError, match="cannot be reached"):
        prepare(CORPUS, corpus, tmp_path / "store", options=options)


@pytest.fixture
def bucket(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The corpus in a bucket of an S3 server on this machine."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server")
    import s3fs

    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=(port := free_port()), verbose=False)
    running.start()
    for name, value in {
        "FSSPEC_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import fsspec.config

    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://127.0.0.1:{port}"})
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir("recordings")
    for path in corpus.iterdir():
        files.put_file(str(path), f"recordings/corpus/{path.name}")
    yield "s3://recordings"
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


def test_object_storage_gives_the_bytes_of_a_folder(corpus: Path, bucket: str, tmp_path: Path) -> None:
    import s3fs

    prepare(CORPUS, corpus, tmp_path / "here", options=PrepOptions(**OPTIONS))
    prepare(CORPUS, f"{bucket}/corpus", f"{bucket}/stores/there", options=PrepOptions(**OPTIONS))
    files = s3fs.S3FileSystem()
    found = {name.rpartition("/")[2]: files.cat_file(name) for name in files.find("recordings/stores/there")}
    assert found == content(tmp_path / "here")
    there, here = TokenStore.open(f"{bucket}/stores/there"), TokenStore.open(tmp_path / "here")
    assert there.digest == here.digest
    np.testing.assert_array_equal(there.tokens("train", 0), here.tokens("train", 0))
    with pytest.raises(InputError, match="exists already"):
        prepare(CORPUS, f"{bucket}/corpus", f"{bucket}/stores/there", options=PrepOptions(**OPTIONS))

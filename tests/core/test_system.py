"""What a machine gives a process: cores within a container's quota, threads, bfloat16, devices."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from perturbgen.core import system
from perturbgen.core.errors import ConfigError


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, float("inf")),
        # the tightest of a group and those around it
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2.0),
        # a container's own group, mounted as the root, under the name that the host gives it
        ("0::/docker/abc\n", {"cpu.max": "400000 100000\n"}, 4.0),
        (
            "5:memory:/m\n4:cpu,cpuacct:/x\n",
            {
                "cpu,cpuacct/x/cpu.cfs_quota_us": "300000\n",
                "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            "4:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            float("inf"),
        ),
    ],
)
def test_the_quota_of_a_container_is_read_in_both_versions(
    tmp_path: Path, own: str, files: dict[str, str], expected: float
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(own)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert system.quota(tmp_path) == expected


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert system.quota(tmp_path) == float("inf")


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (2.9, 2), (float("inf"), 8)])
def test_cores_are_whole_ones_within_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float, expected: int
) -> None:
    monkeypatch.setattr(system, "quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert system.cores() == expected


_SHOW = """
import sys
import threading
from perturbgen.cli import _run
from perturbgen.core.system import cores
import perturbgen.cli.data as data
import numba, torch  # one is loaded before the option is read, one after
code = _run(["data", "check", sys.argv[1], "--threads", sys.argv[2]])
import os
told = os.environ["OMP_NUM_THREADS"]
print(code, cores(), torch.get_num_threads(), told, numba.get_num_threads())
"""


@pytest.mark.parametrize("asked", ["1", "999"])
def test_threads_hold_for_all_libraries_and_never_exceed_the_cores(
    tmp_path: Path, asked: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SHOW, str(tmp_path / "none.h5ad"), asked],
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"},
    )
    most = system.cores()
    n = min(int(asked), most)
    assert done.stdout.split() == ["2", *[str(n)] * 4]
    assert (f"--threads {asked} on {most} cores" in done.stderr) == (int(asked) > most)


def test_threads_that_wait_for_each_other_sleep() -> None:
    """Spinning threads take the core that the one which is waited for needs."""
    show = "import perturbgen, os; print(os.environ['OMP_WAIT_POLICY'])"
    for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
        env |= {} if given is None else {"OMP_WAIT_POLICY": given}
        done = subprocess.run(
            [sys.executable, "-c", show], capture_output=True, text=True, check=True, env=env
        )
        assert done.stdout.strip() == expected


@pytest.mark.parametrize(
    ("level", "flags", "fast"),
    [
        ("AVX512", {"avx512f", "avx512_bf16"}, True),
        ("AVX512", {"avx512f", "amx_bf16"}, True),
        ("AVX512", {"avx512f"}, False),
        ("AVX2", {"avx2"}, False),
        # torch was told not to use what is there
        ("AVX2", {"avx2", "avx512_bf16"}, False),
        ("DEFAULT", {"asimd", "bf16"}, True),
    ],
)
def test_bfloat16_is_fast_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, level: str, flags: set[str], fast: bool
) -> None:
    import torch

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    monkeypatch.setattr(system, "_cpu_flags", lambda: frozenset(flags))
    found, why = system.fast_bf16("cpu")
    assert found is fast
    assert "processor" in why


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_is_fast_on_gpus_from_8_0_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fast: bool
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert system.fast_bf16("cuda")[0] is fast


def test_auto_takes_a_gpu_where_there_is_one_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    assert system.choose_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert system.choose_device() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a test's GPU")
    with caplog.at_level("INFO", logger="perturbgen"):
        assert [system.choose_device(), system.choose_device()] == ["cuda", "cuda"]
    assert caplog.text.count("a test's GPU") == 1
    with pytest.raises(ConfigError, match="abacus"):
        system.choose_device("abacus")


@pytest.mark.parametrize(("size", "shared"), [(100, False), (10**8, True), (None, True)])
def test_little_work_stays_in_its_thread(
    size: int | None, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "cores", lambda **_: 2)
    where, done = [], []

    def work(items: range) -> None:
        where.append(threading.get_ident())
        done.extend(items)

    system.spread(work, 10, step=2, size=size)
    assert sorted(done) == list(range(10))
    assert (threading.get_ident() not in where) == shared


def test_blas_has_one_thread_in_the_outermost_context() -> None:
    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        with system.ONE_BLAS_THREAD:
            with system.ONE_BLAS_THREAD:
                assert threads() == {1}
            assert threads() == {1}
        assert threads() == before

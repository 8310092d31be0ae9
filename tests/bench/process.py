"""Processes of a bench: free ports, waiting, memory, stopping."""

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil


def machine() -> dict[str, str]:
    """Processors, and the load before the bench begins."""
    cpu = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
    return {"cpus": str(os.cpu_count()), "cpu": cpu, "load": f"{os.getloadavg()[0]:.1f}"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, process: subprocess.Popen, timeout_s: float = 60.0) -> None:
    """Until something listens. Raises RuntimeError when the process ends first."""
    deadline = time.monotonic() + timeout_s
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            raise RuntimeError(f"exited with {process.returncode} before it listened")
        if time.monotonic() > deadline:
            raise RuntimeError(f"did not listen within {timeout_s:g} s")
        time.sleep(0.1)


def wait_for_http(url: str, process: subprocess.Popen, timeout_s: float = 90.0) -> None:
    """Until the URL answers 200. Raises RuntimeError."""
    deadline = time.monotonic() + timeout_s
    told = "nothing"
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError as error:
            told = f"HTTP {error.code}"
        except OSError as error:
            told = str(error)
        if process.poll() is not None:
            raise RuntimeError(f"exited with {process.returncode} before it was ready")
        time.sleep(0.2)
    raise RuntimeError(f"not ready after {timeout_s:g} s: {told}")


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def memory_mb(processes: list[psutil.Process]) -> float:
    """Memory of the processes, pages they share counted once (PSS)."""
    return sum(process.memory_full_info().pss for process in processes) / 1e6


def cpu_s(processes: list[psutil.Process]) -> float:
    """CPU seconds the processes have used so far."""
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


def stop(process: subprocess.Popen, timeout_s: float = 40.0) -> None:
    if process.poll() is not None:
        return
    children = family(process.pid)[1:]
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:  # of a parent that does not take its children along
        try:
            child.kill()
        except psutil.NoSuchProcess:
            pass

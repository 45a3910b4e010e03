"""How many CPUs this process may really use, by affinity and cgroup quota, not the host's core count; whether they add up int8 exactly."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
SELF_CGROUP = Path("/proc/self/cgroup")
CPUINFO = Path("/proc/cpuinfo")


def available_cpus(*, root: Path = CGROUP_ROOT, self_cgroup: Path = SELF_CGROUP) -> int:
    """CPUs this process may use: the smaller of its affinity mask and its cgroup's quota, 1 at least.

    A quota of 1.5 CPUs counts as 1: a second busy thread would only be throttled.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota_cpus(root, self_cgroup)
    return max(1, min(affinity, math.floor(quota)) if quota is not None else affinity)


def adds_int8_exactly(*, cpuinfo: Path = CPUINFO) -> bool:
    """False on x86 without VNNI: its instruction for unsigned times signed bytes adds two products into 16 bits, and saturates.

    True also where the system does not say, as it does not on other machines than x86 with Linux.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return True
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)
    return flags is None or "avx512_vnni" in flags or "avx_vnni" in flags


def cgroup_quota_cpus(root: Path, self_cgroup: Path) -> float | None:
    """The tightest CPU quota from this process's cgroup up to the root, in CPUs; None where there is none.

    Reads cgroup v2 (`cpu.max`) and v1 (`cpu.cfs_quota_us`), see the kernel's cgroup-v2.rst and sched-bwc.rst.
    """
    quotas = [quota for folder in _cgroup_folders(root, self_cgroup) if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def _cgroup_folders(root: Path, self_cgroup: Path) -> list[Path]:
    folders = [root, root / "cpu"]
    try:
        lines = self_cgroup.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root
        elif "cpu" in controllers.split(","):
            base = root / "cpu"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        folders += [base.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    return folders


def _quota_of(folder: Path) -> float | None:
    try:
        if (v2 := folder / "cpu.max").is_file():
            quota, period = v2.read_text(encoding="ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        if quota in ("max", "-1"):
            return None
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None

"""CPU counting on fake cgroup trees of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ortserve.cpus import adds_int8_exactly, available_cpus, cgroup_quota_cpus


class Tree:
    """A cgroup file system and the /proc/self/cgroup that points into it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cgroup"
        self.root.mkdir()
        self.membership = folder / "self"

    def member(self, *lines: str) -> Tree:
        self.membership.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
        return self

    def v2(self, path: str, text: str) -> Tree:
        return self._write(path, "cpu.max", text)

    def v1(self, path: str, quota: int, period: int = 100_000) -> Tree:
        self._write(f"cpu/{path}", "cpu.cfs_quota_us", f"{quota}\n")
        return self._write(f"cpu/{path}", "cpu.cfs_period_us", f"{period}\n")

    def _write(self, path: str, file: str, text: str) -> Tree:
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text, encoding="ascii")
        return self

    @property
    def quota(self) -> float | None:
        return cgroup_quota_cpus(self.root, self.membership)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def sixteen_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)), raising=False)


def test_no_cgroup_means_no_quota(tree: Tree) -> None:
    assert tree.quota is None


def test_v2_quota_of_the_own_group(tree: Tree) -> None:
    tree.member("0::/pod/box").v2("pod/box", "250000 100000\n")
    assert tree.quota == 2.5


def test_v2_tightest_ancestor_counts(tree: Tree) -> None:
    tree.member("0::/pod/box").v2("pod/box", "400000 100000\n").v2("pod", "150000 100000\n")
    assert tree.quota == 1.5


def test_v2_max_is_no_quota(tree: Tree) -> None:
    tree.member("0::/").v2(".", "max 100000\n")
    assert tree.quota is None


def test_v2_root_of_a_namespace(tree: Tree) -> None:
    tree.member("0::/").v2(".", "300000 100000\n")
    assert tree.quota == 3.0


def test_v1_quota_of_the_own_group(tree: Tree) -> None:
    tree.member("4:memory:/box", "3:cpu,cpuacct:/box").v1("box", 300_000)
    assert tree.quota == 3.0


def test_v1_minus_one_is_no_quota(tree: Tree) -> None:
    tree.member("3:cpu,cpuacct:/box").v1("box", -1)
    assert tree.quota is None


def test_v1_container_sees_its_group_as_the_root(tree: Tree) -> None:
    # Without a cgroup namespace the path is the host's and does not exist inside the container: the mount's root is the own group.
    tree.member("3:cpu,cpuacct:/docker/0123").v1(".", 200_000)
    assert tree.quota == 2.0


@pytest.mark.parametrize("text", ["", "words\n", "100000\n", "100000 0\n", "x 100000\n"])
def test_a_file_that_makes_no_sense_is_no_quota(tree: Tree, text: str) -> None:
    tree.member("0::/").v2(".", text)
    assert tree.quota is None


def test_a_path_outside_the_namespace_stays_inside_the_root(tree: Tree) -> None:
    tree.member("0::/../../box").v2("box", "100000 100000\n")
    assert tree.quota == 1.0


@pytest.mark.usefixtures("sixteen_cpus")
@pytest.mark.parametrize(("quota", "cpus"), [("150000", 1), ("50000", 1), ("400000", 4), ("6400000", 16), ("max", 16)])
def test_the_smaller_of_affinity_and_quota_rounded_down_and_one_at_least(tree: Tree, quota: str, cpus: int) -> None:
    tree.member("0::/").v2(".", f"{quota} 100000\n")
    assert available_cpus(root=tree.root, self_cgroup=tree.membership) == cpus


def test_this_machine_has_at_least_one() -> None:
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("text", "exactly"),
    [
        ("processor : 0\nflags\t\t: fpu sse4_1 avx2 avx512f avx512bw\n", False),
        ("processor : 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n", True),
        ("processor : 0\nflags\t\t: fpu avx2 avx_vnni\n", True),
        ("processor : 0\nFeatures\t: fp asimd asimddp\n", True),  # ARM
    ],
)
def test_int8_is_added_up_exactly_wherever_x86_has_vnni(tmp_path: Path, text: str, exactly: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text, encoding="utf-8")
    assert adds_int8_exactly(cpuinfo=cpuinfo) is exactly
    assert adds_int8_exactly(cpuinfo=tmp_path / "none")

"""Which limits are set on a cgroup v2 group itself, by the texts of the kernel's files."""

import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("about cgroups", allow_module_level=True)

from sandrun.backends import cgroup2_placement

UNSET = {
    "cgroup.max.depth": "max",
    "cgroup.max.descendants": "max",
    "cpu.idle": "0",
    "cpu.max": "max 100000",
    "cpu.max.burst": "0",
    "cpu.uclamp.max": "max",
    "cpu.weight": "100",
    "cpu.weight.nice": "0",
    "cpuset.cpus": "",
    "cpuset.cpus.effective": "0-1",
    "cpuset.cpus.partition": "member",
    "cpuset.mems": "",
    "hugetlb.2MB.max": "max",
    "io.bfq.weight": "default 100",
    "io.latency": "",
    "io.max": "",
    "io.weight": "default 100",
    "memory.current": "4096",
    "memory.high": "max",
    "memory.low": "0",
    "memory.max": "max",
    "memory.min": "0",
    "memory.swap.max": "max",
    "misc.max": "res_a max\nres_b max",
    "pids.max": "max",
    "rdma.max": "mlx4_0 hca_handle=max hca_object=max",
}
"""The files of a group with default values."""

SET = {
    "cpu.idle": "1",
    "cpu.max": "50000 100000",
    "cpu.weight": "50",
    "cpuset.cpus": "0-1",
    "cpuset.mems": "0",
    "hugetlb.2MB.max": "2097152",
    "io.bfq.weight": "default 100\n8:0 50",
    "io.latency": "8:0 target=75000",
    "io.max": "8:0 rbps=max wbps=1048576 riops=max wiops=max",
    "io.weight": "default 50",
    "memory.high": "1048576",
    "memory.low": "4096",
    "memory.max": "0",
    "memory.swap.max": "0",
    "misc.max": "res_a max\nres_b 3",
    "pids.max": "77",
    "rdma.max": "mlx4_0 hca_handle=2 hca_object=max",
}


def write(group: Path, files: "dict[str, str]") -> None:
    for name, text in files.items():
        (group / name).write_text(text + "\n")


def test_a_group_with_default_values_has_no_limits(tmp_path: Path) -> None:
    write(tmp_path, UNSET)
    assert cgroup2_placement.limits_of(str(tmp_path)) == {}


@pytest.mark.parametrize("name", SET)
def test_each_kind_of_limit_is_found(tmp_path: Path, name: str) -> None:
    write(tmp_path, UNSET | {name: SET[name]})
    assert cgroup2_placement.limits_of(str(tmp_path)) == {name: " ".join(SET[name].split())}

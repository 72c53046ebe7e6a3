import os
import time

import psutil

from fmnist_tracking.training.system_metrics import SystemMeter


def test_a_busy_process_is_seen_to_be_busy() -> None:
    meter = SystemMeter()
    end = time.process_time() + 0.5
    while time.process_time() < end:
        pass
    busy = meter.read()
    time.sleep(0.5)
    idle = meter.read()
    assert busy["system/process_cpu_percentage"] > idle["system/process_cpu_percentage"]
    memory = psutil.Process(os.getpid()).memory_info().rss / 1e6
    assert 0.5 * memory < busy["system/process_memory_megabytes"] < 2 * memory
    for name in ("system/cpu_utilization_percentage", "system/system_memory_usage_percentage"):
        assert 0 <= busy[name] <= 100
    assert all(name.startswith("system/") for name in busy)

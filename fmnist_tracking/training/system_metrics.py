"""How a training uses its machine while it runs."""

import psutil
import tensorflow as tf


class SystemMeter:
    """Reads processor and memory use, of the system and of this process.

    The names are MLflow's system metrics where it has one, so that its page shows them together.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._gpus = tf.config.list_logical_devices("GPU")
        self.read()  # processor shares are measured since the last reading

    def read(self) -> dict[str, float]:
        """Return the measurements by metric name.

        Processor use is a mean since the last reading, in percent: of all cores for the system, of
        one core for the process, so that two busy cores are 200. Memory is in megabytes of
        1,000,000 bytes.
        """
        memory = psutil.virtual_memory()
        figures = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_cpu_percentage": self._process.cpu_percent(),
            "system/process_memory_megabytes": self._process.memory_info().rss / 1e6,
        }
        for number, gpu in enumerate(self._gpus):
            taken = tf.config.experimental.get_memory_info(gpu.name.removeprefix("/device:"))
            figures[f"system/process_gpu_{number}_memory_megabytes"] = taken["current"] / 1e6
        return figures

"""Benchmarks: one file each, found by its `TASK`."""

import importlib
import pkgutil

from ross3d.tasks.task import Task


def find_tasks() -> dict[str, Task]:
    """Every benchmark of this room by its name."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    tasks = (module.TASK for module in modules if hasattr(module, "TASK"))
    return {task.name: task for task in tasks}


__all__ = ["find_tasks"]

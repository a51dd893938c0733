"""Benchmarks: one file each, found by its `TASK`."""

import importlib
import pkgutil

from ross3d.tasks.task import Task


def find_tasks() -> dict[str, Task]:
    """Every benchmark of this room by its name."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    tasks: dict[str, Task] = {}
    for module in modules:
        task = getattr(module, "TASK", None)
        if task is None:
            continue
        if not isinstance(task, Task) or task.name in tasks:
            raise ValueError(
                f"{module.__file__}: expected TASK = Task(...) with a name of its own, got {str(task)[:60]}; names so"
                f" far: {sorted(tasks)}."
            )
        tasks[task.name] = task
    return tasks


__all__ = ["find_tasks"]

"""Benchmarks: one file each, found by its `TASK`."""

import importlib
import pkgutil

from ross3d.tasks.task import Task


def find_tasks() -> dict[str, Task]:
    """Every benchmark of this folder by its name.

    Raises:
        ValueError: names the file that cannot be imported, whose TASK is not a `Task`, or whose task name is taken.
    """
    tasks: dict[str, Task] = {}
    files: dict[str, str] = {}
    for name in list_modules():
        module = import_task(name)
        task = getattr(module, "TASK", None)
        if task is None:
            continue
        if not isinstance(task, Task):
            raise ValueError(f"{module.__file__}: expected TASK = Task(...), got {str(task)[:60]}; correct it.")
        if task.name in tasks:
            raise ValueError(
                f"{module.__file__}: expected TASK = Task(...) with a unique name, got {task.name!r}, which"
                f" {files[task.name]} uses too; change NAME in one of them."
            )
        tasks[task.name], files[task.name] = task, module.__file__
    return tasks


def list_modules() -> list[str]:
    """Names of all Python files of this folder."""
    return [found.name for found in pkgutil.iter_modules(__path__)]


def import_task(name: str):
    """Import one file of this folder as a module.

    Raises:
        ValueError: names the file and its fault.
    """
    try:
        return importlib.import_module(f"{__name__}.{name}")
    # A user's file may raise any error when it is imported.
    except Exception as error:
        raise ValueError(
            f"tasks/{name}.py: expected a task module that can be imported, got {type(error).__name__}: {error};"
            " correct the file, or move it out of tasks/."
        ) from error


__all__ = ["find_tasks", "list_modules"]

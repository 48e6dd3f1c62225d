"""Acts when a program imports a module of torch that few programs need, and `import fastrnn` leaves out."""

import importlib.util
import sys
from collections.abc import Callable

__all__ = ["when_imported"]


def when_imported(name: str, act: Callable[[], None]) -> None:
    """Call `act()` as soon as the module `name` is imported: now, if it is already."""
    if name in sys.modules:
        act()
    else:
        sys.meta_path.insert(0, _Watch(name, act))


class _Watch:
    """An entry of sys.meta_path that leaves the finding of the one module to the others."""

    def __init__(self, name, act):
        self.name, self.act = name, act

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_act(module):
                execute(module)
                self.act()

            spec.loader.exec_module = execute_and_act
        return spec

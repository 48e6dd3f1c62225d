"""What there is to know of each cell beside its equations, as its kernels have it (csrc/cells/)."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from . import _C

__all__ = ["CELLS", "CellInfo", "Parameter"]


class Parameter(NamedTuple):
    """A parameter of a layer, one for each direction.

    Attributes:
        symbol: in equations and messages, `W_ih`
        name: in modules, before `_l0` and `_reverse`: `weight_ih`
        kind: its shape and use, with G gates, H units, I inputs and P projected units:
            `input_matrix` `[G*H, I]`, `state_matrix` `[G*H, P]`, `input_bias` and `state_bias` `[G*H]`,
            `unit_vectors` `[rows, H]`, `[H]` if rows is 0, `gate_vector` `[G*H]`, `projection` `[P, H]`
        needs: which layers have it: `always`, those with `bias`, or those with a `projection`
        rows: of unit_vectors
    """

    symbol: str
    name: str
    kind: str
    needs: str
    rows: int = 0


class CellInfo(NamedTuple):
    """A cell.

    Attributes:
        name: as the operators call it
        layer: the class of its layer
        gates: their letters, in the order of their rows in the weights
        saved: how many numbers a unit keeps of a step for the backward, beside the states
        whole_gates: the first so many gates use only the sum of their shares from input and state
        reads_h: whether the state before a step is used beside its product with W_hh
        late_gates: the last so many gates multiply W_hh with what the cell makes of the state, not with it
        normalised: whether the product with W_hh is normalised, and the states beside h before they make h
        states: their letters, h first
        parameters: in the order in which the operators take them
        nonlinearity: where the cells of a layer differ in it, else None
    """

    name: str
    layer: str
    gates: tuple[str, ...]
    saved: int
    whole_gates: int
    reads_h: bool
    late_gates: int
    normalised: bool
    states: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    nonlinearity: str | None

    @property
    def can_project(self) -> bool:
        return any(p.needs == "projection" for p in self.parameters)

    def has(self, kind: str) -> bool:
        """Whether there is a parameter of this kind. Without an `input_matrix` the input of the operators
        holds the gates' shares, `D*G*H` numbers a row, direction by direction."""
        return any(p.kind == kind for p in self.parameters)

    def sizes_of(self, weights: Sequence[Tensor]) -> tuple[int, int]:
        """P and H, by the weights of a layer and direction, or of all."""
        H = weights[0].shape[0] // len(self.gates)
        return weights[1].shape[1] if self.can_project else H, H

    def parameters_of(self, bias: bool, projected: bool) -> tuple[Parameter, ...]:
        """Those that a layer has."""
        there = {"always": True, "bias": bias, "projection": projected}
        return tuple(p for p in self.parameters if there[p.needs])

    def shape_of(self, parameter: Parameter, I: int, H: int, P: int) -> tuple[int, ...]:
        """The shape of a parameter; P = H without a projection."""
        GH = len(self.gates) * H
        return {
            "input_matrix": (GH, I),
            "state_matrix": (GH, P),
            "input_bias": (GH,),
            "state_bias": (GH,),
            "unit_vectors": (parameter.rows, H) if parameter.rows else (H,),
            "gate_vector": (GH,),
            "projection": (P, H),
        }[parameter.kind]


def _read(row: dict[str, Any]) -> CellInfo:
    parameters = tuple(Parameter(**p) for p in row["parameters"])
    return CellInfo(
        **row | {"gates": tuple(row["gates"]), "states": tuple(row["states"]), "parameters": parameters}
    )


_cells = {row["name"]: _read(row) for row in _C.cells()}
CELLS: Mapping[str, CellInfo] = MappingProxyType(_cells)


def add(row: dict[str, Any]) -> CellInfo:
    """Add a cell to CELLS, as `_C.add_cell` returns it."""
    info = _read(row)
    return _cells.setdefault(info.name, info)

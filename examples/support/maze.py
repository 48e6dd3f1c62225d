"""The T-maze of rl_memory.py: a sign, a corridor, a junction where the sign counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

SIGHTS, CORRIDOR, JUNCTION = 4, 2, 3  # sights 0 and 1 are the signs, left and right
ACTIONS, AHEAD = 3, 2  # actions 0 and 1 are the turns, left and right


class Mazes:
    """B mazes with N steps to the junction. Where an episode ends, the next one begins."""

    def __init__(self, N: int, B: int, generator: torch.Generator):
        self.N, self.generator = N, generator
        self.place = torch.zeros(B, dtype=torch.int64)
        self.sign = torch.randint(2, (B,), generator=generator)

    def look(self) -> Tensor:
        """What each agent sees, `[B, 4]`."""
        sight = self.sign.where(self.place == 0, CORRIDOR).where(self.place < self.N, JUNCTION)
        return one_hot(sight, SIGHTS).float()

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rewards, which episodes ended, and which of those well; each `[B]`."""
        at_junction, ahead = self.place == self.N, action == AHEAD
        turned, well = at_junction & ~ahead, at_junction & (action == self.sign)
        reward = 2.0 * well - 1.0 * turned - 0.1 * (at_junction == ahead)
        self.place = (self.place + (ahead & ~at_junction)).masked_fill(turned, 0)
        self.sign = torch.randint(2, turned.shape, generator=self.generator).where(turned, self.sign)
        return reward, turned, well

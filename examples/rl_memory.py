"""Turn at the end of a corridor as a sign at its beginning said: an agent with a memory.

A T-maze. At the start the agent sees a sign, left or right. Then it walks along a corridor where every place
looks the same, and at the junction it must turn as the sign said: reward 1, otherwise -1. A bump costs 0.1.
What comes in is one of four sights a step; out go the probabilities of three actions, and the reward that the
agent expects.

It learns by policy gradient (advantage actor-critic) from rollouts of T steps in B mazes at once. The state
goes on from rollout to rollout, the gradient does not. Episodes end and begin in the middle of a rollout. A
layer of fastrnn takes the rollout in one call with resets=, a mask of the steps before which the state is
zero. With torch.nn one loops over the steps and clears the state by hand. Beside it learns an agent whose
state is cleared before every step: at the junction it can only guess.
"""

from __future__ import annotations

import time
from argparse import Namespace

import common
import torch
from support.maze import ACTIONS, CORRIDOR, JUNCTION, SIGHTS, Mazes
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

import fastrnn

T, B, H = 48, 128, 32  # steps of a rollout, mazes, units
UPDATES, RATE, DISCOUNT, ENTROPY = 300, 0.01, 0.98, 0.01


class Agent(nn.Module):
    """A recurrent layer, which Stateful runs step by step, and over its state a policy and a value."""

    def __init__(self, library, forgets: bool):
        super().__init__()
        self.rnn, self.forgets = fastrnn.Stateful(library.GRU(SIGHTS, H)), forgets
        self.policy, self.value = nn.Linear(H, ACTIONS), nn.Linear(H, 1)

    @torch.no_grad()
    def act(self, x: Tensor, begins: Tensor) -> Tensor:
        """The probabilities of the actions, `[B, 3]`. x: `[B, 4]`; begins: `[B]`, where an episode begins."""
        self.rnn.reset(begins | self.forgets)
        return self.policy(self.rnn(x.unsqueeze(0))[0]).softmax(-1)


def unroll(layer: nn.Module, x: Tensor, hx: Tensor, resets: Tensor) -> Tensor:
    """The states `[T, B, H]` of a rollout. resets: `[T, B]`, the steps before which the state is zero."""
    if isinstance(layer, fastrnn.GRU):
        return layer(x, hx, resets=resets)[0]
    states = []
    for x_t, reset in zip(x.split(1), resets, strict=True):
        state, hx = layer(x_t, hx.masked_fill(reset.unsqueeze(-1), 0))
        states.append(state)
    return torch.cat(states)


def loss_of(agent: Agent, rollout: tuple[Tensor, ...]) -> Tensor:
    """Of advantage actor-critic. The value of the last step stands for all rewards from there on."""
    hx, x, begins, action, reward, ended = rollout
    h = unroll(agent.rnn.layer, x, hx, begins | agent.forgets)
    value, log_p = agent.value(h).squeeze(-1), agent.policy(h).log_softmax(-1)
    returns = value.detach().clone()
    for t in reversed(range(T - 1)):
        returns[t] = reward[t] + DISCOUNT * returns[t + 1] * ~ended[t]
    chosen = log_p.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    surplus = (chosen * (returns - value.detach())).mean()
    entropy = -(log_p.exp() * log_p).sum(-1).mean()
    return 0.5 * mse_loss(value, returns) - surplus - ENTROPY * entropy


def play(agent: Agent, mazes: Mazes, steps: int, begins: Tensor, greedy: bool = False) -> list[Tensor]:
    """x `[steps, B, 4]`; begins, action, reward, ended, well `[steps, B]`. begins: of step 0, `[B]`."""
    rollout = []
    for _ in range(steps):
        x = mazes.look()
        p = agent.act(x, begins)
        action = p.argmax(-1) if greedy else torch.multinomial(p, 1, generator=mazes.generator).squeeze(-1)
        rollout.append((x, begins, action, *mazes.step(action)))
        begins = rollout[-1][4]
    return [torch.stack(each) for each in zip(*rollout, strict=True)]


class Trainee:
    """An agent that learns: `run` has its success in each rollout as scores. acting: seconds."""

    def __init__(self, args, library: str, forgets: bool = False):
        one = Namespace(libraries=[library], seed=args.seed)
        (self.run,) = common.begin(one, lambda library: Agent(library, forgets), rate=RATE)
        self.mazes = Mazes(args.corridor, B, torch.Generator().manual_seed(args.seed))
        self.run.model.rnn.state, self.begins = torch.zeros(1, B, H), torch.ones(B, dtype=torch.bool)
        self.acting = 0.0

    def update(self) -> None:
        """Act for T steps, then learn from them."""
        start, hx = time.perf_counter(), self.run.model.rnn.state
        *rollout, well = play(self.run.model, self.mazes, T, self.begins)
        self.begins = rollout[-1][-1]
        self.acting += time.perf_counter() - start
        self.run.step(loss_of, (hx, *rollout))
        self.run.scores.append(float(well.sum() / rollout[-1].sum().clamp(min=1)))

    def test(self) -> float:
        """In which share of new mazes the agent goes straight to the right arm, by its likeliest actions."""
        mazes = Mazes(self.mazes.N, 1000, self.mazes.generator)
        self.run.model.rnn.reset()
        *_, well = play(self.run.model, mazes, mazes.N + 1, torch.ones(1000, dtype=torch.bool), greedy=True)
        return float(well[-1].float().mean())


def plot(args, trainees: dict[str, Trainee]) -> None:
    """The success over training, and the units that tell the signs apart at the junction."""
    title = f"A T-maze with {args.corridor} steps to the junction, GRU({H})"
    figure, (left, right) = common.new_figure(title, 1, 2, size=(13, 5))
    for name, trainee in trainees.items():
        success = trainee.run.scores
        steps = [(k + 1) * T * B / 1e6 for k in range(len(success))]
        colour, width = common.COLOURS.get(name, "grey"), common.WIDTHS.get(name, 1.5)
        left.plot(steps, success, color=colour, linewidth=width, label=name)
    left.set(xlabel="million steps of all mazes", ylabel="share of episodes", title="success in training")
    sights = torch.tensor([[sign, *[CORRIDOR] * (args.corridor - 1), JUNCTION] for sign in (0, 1)]).T
    with torch.no_grad():  # [N + 1, 2, H]
        h, _ = trainees[args.libraries[-1]].run.model.rnn.layer(one_hot(sights, SIGHTS).float())
    units = (h[-1, 0] - h[-1, 1]).abs().topk(3).indices.tolist()
    for unit, colour in zip(units, ("#2166ac", "#e08214", "#1b7837"), strict=True):
        right.plot(h[:, 0, unit], "-", color=colour, label=f"unit {unit}, left")
        right.plot(h[:, 1, unit], "--", color=colour, label=f"unit {unit}, right")
    right.set(xlabel="steps from the start", ylabel="h", title="units that differ most at the junction")
    right.locator_params(axis="x", integer=True)
    for ax in (left, right):
        ax.grid(alpha=0.25)
        common.legend_below(ax)
    common.save(figure, args.out)


def main() -> None:
    parser = common.make_parser(__doc__, "rl_memory")
    parser.add_argument("--corridor", type=common.positive, default=20, help="steps to the junction (20)")
    args = common.parse(parser)
    if args.quick:
        args.corridor = 2
    trainees = {name: Trainee(args, name) for name in args.libraries}
    trainees["no memory"] = Trainee(args, args.libraries[-1], forgets=True)
    for _ in common.track(range(25 if args.quick else UPDATES), "training"):
        for trainee in trainees.values():
            trainee.update()
    table = common.Table("", "success in the test", "acting, s", "learning, s")
    for name, trainee in trainees.items():
        table.add_row(name, f"{trainee.test():.3f}", f"{trainee.acting:.1f}", f"{trainee.run.seconds:.1f}")
    common.console.print(table)
    if len(args.libraries) == 2:
        ratio = trainees["torch"].run.seconds / trainees["fastrnn"].run.seconds
        print(f"fastrnn learns {ratio:.2f}x as fast as a loop over steps of torch.nn")
    plot(args, trainees)


if __name__ == "__main__":
    main()

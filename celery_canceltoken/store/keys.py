"""Every key name, in one place."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Keys"]


@dataclass(frozen=True)
class Keys:
    """Key names under one prefix. An *owner* is an agent's id and incarnation, `agent.incarnation`."""

    prefix: str

    def record(self, task_id: str) -> str:
        """The hash of one task id."""
        return f"{self.prefix}:task:{task_id}"

    def lease(self, owner: str) -> str:
        """The heartbeat: there as long as the owner is alive."""
        return f"{self.prefix}:lease:{owner}"

    def inbox(self, owner: str) -> str:
        """The stream that wakes an agent; the same for all its incarnations."""
        return f"{self.inbox_prefix}{_agent(owner)}"

    @property
    def inbox_prefix(self) -> str:
        """What an agent's id is put behind to name its inbox."""
        return f"{self.prefix}:inbox:"

    def owned(self, owner: str) -> str:
        """The set of task ids whose records an agent may own: what to look at when it is dead."""
        return f"{self.prefix}:owned:{_agent(owner)}"

    @property
    def owners(self) -> str:
        """The sorted set of all owners, by the time they were last seen to change."""
        return f"{self.prefix}:owners"

    def stopped(self, task_id: str) -> str:
        """The channel on which the end of a task that was asked something is announced."""
        return f"{self.prefix}:stopped:{task_id}"


def _agent(owner: str) -> str:
    return owner.rpartition(".")[0]

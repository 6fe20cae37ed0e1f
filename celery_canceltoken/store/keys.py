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

    def mark(self, root_id: str) -> str:
        """What is asked of a whole workflow, for those of it that are still to be claimed."""
        return f"{self.prefix}:mark:{root_id}"

    def members(self, root_id: str) -> str:
        """The sorted set of the ids that were seen of a workflow."""
        return f"{self.prefix}:members:{root_id}"

    @property
    def standing_orders(self) -> str:
        """The hash of what is asked of all tasks of a kind that are still to be claimed."""
        return f"{self.prefix}:standing-orders"

    @property
    def outbox(self) -> str:
        """The sorted set of the ids that wait to be published again, by the time they began to."""
        return f"{self.prefix}:outbox"

    def listed(self, field: str, value: str) -> str:
        """The sorted set of ids by their last change: of one state, task name or worker."""
        return f"{self.prefix}:list:{field}:{value}"

    def stopped(self, task_id: str) -> str:
        """The channel on which the end of a task that was asked something is announced."""
        return f"{self.prefix}:stopped:{task_id}"


def _agent(owner: str) -> str:
    return owner.rpartition(".")[0]

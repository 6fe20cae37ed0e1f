"""What can be asked of tasks from outside: each order as steps that a thread or an event loop can take."""

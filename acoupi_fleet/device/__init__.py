"""device: the agent that runs on a device. Standard library only, syntax of Python 3.7; only `apply` writes.

Nothing of it is installed: `remote` sends the text of these files, which import each other under their own names
there too. They write no .pyc and, except for `apply`, nothing at all. `agent.py` holds the table of verbs.
"""

"""A local Phantom: its two HTTP interfaces, the state behind them, and the controller that keeps
domains at their size.

It stands in for the real service in tests and on one host, and is as strict as that was seen to be
(docs/facts/phantom.md). docs/phantom.md is for its users.
"""

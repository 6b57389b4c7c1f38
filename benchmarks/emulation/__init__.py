"""Counting the instructions of a compiled network for 64-bit Arm under emulation."""

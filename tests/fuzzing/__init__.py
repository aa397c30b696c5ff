"""Inputs of the fuzzer: valid ones of every kind, and what is made of them; see fuzz.py.

A maker is `make(random) -> argv`: it writes its input below the working folder, `in/` by habit, and returns the command
line for it. What it starts from stands in VALID. The same random numbers make the same input. Nothing here does harm
when it is read by a careful program: each payload calls `fuzzing.canary.call`, or would write a file EXECUTED into the
working folder.
"""

"""What payloads of the fuzzer call: `calls` stays empty as long as nothing in a file is executed."""

calls: list[str] = []


def call(*arguments, **named):
    calls.append(f"call{arguments!r}"[:200])


class Thing:
    """A class that a file may name, make or fill."""

    def __new__(cls, *arguments, **named):
        calls.append("Thing()")
        return super().__new__(cls)

    def __setstate__(self, state):
        calls.append("Thing.__setstate__")

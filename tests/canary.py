"""Code that somebody else's file would like to run: it writes a file, the `canary` of the tests."""


def code(canary):
    return f"open({str(canary)!r}, 'w').write('sang')\n"


class Bomb:
    """Unpickled, it writes the canary."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return exec, (code(self.canary),)

"""A program of the protocol of docs/any-language.md, for its tests: python answers.py MODE.

An op's name answers by minigrad's own op; every other mode negates x, right but for what its name says.
"""
import array
import contextlib
import json
import os
import signal
import sys
import time

INPUT, OUTPUT = sys.stdin.buffer, sys.stdout.buffer
SIZES = {"float32": ("f", 4), "float64": ("d", 8)}


def question():
    """(call, settings, arrays by name as (dtype, shape, bytes)), or None at the end."""
    call, settings, arrays = INPUT.readline().decode().strip(), {}, {}
    while call and (line := INPUT.readline().decode().split(" ", 2))[0] != "end\n":
        if line[0] == "setting":
            settings[line[1]] = json.loads(line[2])
        else:
            dtype, _, *shape = line[2].split()
            size = {"bool": 1, "int32": 4, "float16": 2, "bfloat16": 2, "float32": 4}.get(dtype, 8)
            for n in map(int, shape):
                size *= n
            arrays[line[1]] = dtype, [int(n) for n in shape], INPUT.read(size)
    return (call, settings, arrays) if call else None


def write(name, dtype, shape, data, end=True):
    OUTPUT.write(" ".join(map(str, ["array", name, dtype, len(shape), *shape])).encode() + b"\n" + data + b"end\n" * end)
    OUTPUT.flush()


def negated(dtype, data):
    return array.array(SIZES[dtype][0], [-v for v in array.array(SIZES[dtype][0], data)]).tobytes()


def negate(mode):
    """x ↦ −x, with one kind of misbehaviour, from the third question on if the mode ends with "-later"."""
    mode, later, _ = mode.partition("-later")
    count = 0
    while asked := question():
        count += 1
        call, _, arrays = asked
        dtype, shape, data = arrays["x" if call == "value" else "cotangent"]
        name, data = "value" if call == "value" else "x", negated(dtype, data)
        bad = mode if not later or count > 2 else "right"
        if mode == "no-bias" and "bias" in arrays:
            sys.exit(7)
        elif bad == "dies":
            print("out of luck", file=sys.stderr)
            sys.exit(7)
        elif bad == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif bad == "hangs":
            time.sleep(60)
        elif bad == "no-flush":
            sys.stdout.write("array ")                  # and waits for the next question
            continue
        elif bad == "closes":
            os.close(1)
            time.sleep(60)
        elif bad == "chatters":
            OUTPUT.write(b"computing\n")
        elif bad == "binary":
            OUTPUT.write(bytes(range(128, 256)) * 100)
        elif bad == "endless":
            while True:
                OUTPUT.write(b"y\n")
        elif bad == "error":
            OUTPUT.write(b"error no memory\n")
            OUTPUT.flush()
            continue
        elif bad == "skips":
            OUTPUT.write(b"skip not today\n")
            OUTPUT.flush()
            continue
        elif bad == "shape":
            shape = [*shape, 1]
        elif bad == "huge":
            shape = [10**15]
        elif bad == "dtype":
            dtype, data = "float64", array.array("d", array.array(SIZES[dtype][0], data)).tobytes()
        elif bad == "no-dtype":
            dtype = "complex64"
        elif bad == "name":
            name = "y"
        elif bad == "empty":
            OUTPUT.write(b"end\n")
            OUTPUT.flush()
            continue
        elif bad == "twice":
            write(name, dtype, shape, data, end=False)
        elif bad == "line":
            OUTPUT.write(b"array x float32 2 3\nend\n")
            OUTPUT.flush()
            continue
        elif bad == "short":
            write(name, dtype, shape, data[:-1], end=False)
            sys.exit(0)
        elif bad == "sign" and call == "vjp":
            data = negated(dtype, data)
        write(name, dtype, shape, data)
        if bad == "once":
            sys.exit(0)


def compute(op):
    """The op itself, by minigrad."""
    import numpy as np

    import minigrad as mg

    with contextlib.suppress(mg.DTypeError):
        mg.backend.dtype("bfloat16")
    f = (lambda *xs: mg.concat(xs, axis=-1)) if op == "concat" else getattr(mg, op)
    while asked := question():
        _, settings, arrays = asked
        given = {n: np.frombuffer(data, np.dtype(mg.backend.dtype(dtype))).reshape(shape) for n, (dtype, shape, data) in arrays.items()}
        u = given.pop("cotangent", None)
        wanted = [n for n, a in given.items() if a.dtype.kind in "fV"]
        settings = {**settings, **{n: a for n, a in given.items() if n not in wanted}}
        settings = {n: tuple(v) if isinstance(v, list) else v for n, v in settings.items()}

        def value(*xs, settings=settings):
            y = f(*xs, **settings)
            return mg.concat([part.reshape(-1) for part in y], axis=0) if isinstance(y, tuple) else y

        y, pull = mg.vjp(value, *[mg.tensor(given[n]) for n in wanted])
        found = {"value": y.numpy()} if u is None else dict(zip(wanted, [g.numpy() for g in pull(mg.tensor(u))]))
        for name, a in found.items():
            write(name, a.dtype.name, a.shape, a.tobytes(), end=False)
        OUTPUT.write(b"end\n")
        OUTPUT.flush()


if __name__ == "__main__":
    compute(sys.argv[2]) if sys.argv[1] == "op" else negate(sys.argv[1])

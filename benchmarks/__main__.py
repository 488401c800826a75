"""Run the benchmarks: each in a process of its own, results kept as soon as they are there."""

import argparse
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import benchmarks
from benchmarks import machine, page
from lrc.errors import LrcError

ROOT = Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("only", nargs="*", help="benchmarks to run (default: all)")
    parser.add_argument("--paper", metavar="PATH", help="checkout of the paper's scripts")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and stop")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.only[0])
    if options.paper:
        if not (Path(options.paper) / "src" / "41_sch_calc.py").exists():
            parser.error(
                f"{options.paper} is no checkout of the paper's scripts (no src/41_sch_calc.py)"
            )
        os.environ["LRC_PAPER"] = str(Path(options.paper).resolve())
    names = available()
    if options.list:
        print(*names, sep="\n")
        return 0
    if unknown := set(options.only) - set(names):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return run(options.only or names)


def available():
    """Modules that have rows, by what their text says: importing them may be slow."""
    modules = pkgutil.iter_modules(benchmarks.__path__)
    folder = Path(benchmarks.__file__).parent
    return [
        module.name
        for module in modules
        if "\ndef rows(" in (folder / f"{module.name}.py").read_text(encoding="utf-8")
    ]


def run(names):
    """Run benchmarks one after the other; what one finds is written before the next starts."""
    results = page.read()
    here = machine.describe()
    if results.get("machine") != here:
        results = {"machine": here, "benchmarks": {}}
    failed = []
    for name in names:
        print(f"\n{name}", flush=True)
        try:
            rows = list(rows_of(name))
        except LrcError as error:
            print(f"  {error}", flush=True)
            failed.append(name)
            continue
        if rows:
            about = importlib.import_module(f"benchmarks.{name}").__doc__.strip().splitlines()[0]
            results["benchmarks"][name] = {"about": about, "date": str(date.today()), "rows": rows}
            page.write(results)
    print(f"\nwritten: {page.RESULTS.relative_to(ROOT)}, {page.PAGE.relative_to(ROOT)}")
    if failed:
        print(f"failed, and left as they were: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


def rows_of(name):
    """Rows of one benchmark, printed as they come."""
    command = [sys.executable, "-m", "benchmarks", "--child", name]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("{"):
                row = json.loads(line)
                print("  " + page.in_words(row), flush=True)
                yield row
    if process.returncode:
        raise LrcError(f"benchmark {name} ended with {process.returncode}")


def child(name):
    for row in importlib.import_module(f"benchmarks.{name}").rows() or ():
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Ours beside other engines on the same model file, turn by turn (A B A B A B), as tables in Markdown.

A turn is a process of its own. A figure is the best of its repeats within a turn, and the median over the turns;
a ratio is the median of the turns' ratios, each of two turns that ran one after the other.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
VARIANTS = ("prefill", "alone", "many")

# Figure, what it is, unit, whether more is better, target against the same file, target against its Q4_0.
ROWS = [
    ("prefill-128", "prefill 128", "tokens/s", True, None, None),
    ("prefill-512", "prefill 512", "tokens/s", True, 2.8, 1.4),
    ("decode-1", "decode alone", "tokens/s", True, 1.6, 1.3),
    ("decode-4", "decode, 4 agents on a shared prompt", "tokens/s", True, None, None),
    ("decode-8", "decode, 8 agents", "tokens/s", True, 3.5, 2.6),
    ("decode-16", "decode, 16 agents", "tokens/s", True, None, None),
    ("decode-32", "decode, 32 agents", "tokens/s", True, 4.0, 2.8),
    ("agent", "one agent, prompt and draft", "s", False, None, None),
    ("contemplation", "contemplation, a client's calls", "s", False, 0.2, 0.3),
    ("contemplation-batched", "contemplation, batched by hand", "s", False, None, None),
    ("peak", "peak memory", "MiB", False, 1.2, 1.2),
    ("load", "load", "s", False, None, None),
]


class Peer:
    """A command that prints a line of JSON for each figure."""

    def __init__(self, name, command):
        self.name, self.command = name, [str(part) for part in command]
        self.turns, self.notes = [], {}

    def run(self, *extra):
        output = subprocess.run([*self.command, *extra], stdout=subprocess.PIPE, text=True, timeout=1800)
        if output.returncode != 0:
            raise SystemExit(f"{self.name}: {' '.join(self.command)} ended with {output.returncode}")
        return [json.loads(line) for line in output.stdout.splitlines() if line.startswith("{")]

    def turn(self, *extra):
        figures = {}
        for line in self.run(*extra):
            if "figure" in line:
                figures[line["figure"]] = line["value"]
            else:
                self.notes |= line
        # We drive the batch ourselves either way: there is one figure for both comparisons.
        if self.name == "ours" and "contemplation" in figures:
            figures["contemplation-batched"] = figures["contemplation"]
        self.turns.append(figures)

    def median(self, figure):
        values = [turn[figure] for turn in self.turns if figure in turn]
        return statistics.median(values) if values else None


def ratio(ours, theirs, figure):
    pairs = [(a[figure], b[figure]) for a, b in zip(ours.turns, theirs.turns) if figure in a and figure in b]
    return statistics.median(a / b for a, b in pairs) if pairs else None


def number(value):
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(title, ours, theirs, column):
    print(f"\n### {title}\n\n| | ours | {theirs.name} | ratio | spread | target | |\n|---|---|---|---|---|---|---|")
    for figure, what, unit, more, *targets in ROWS:
        value, target = ratio(ours, theirs, figure), targets[column]
        if value is None:
            continue
        ratios = sorted(a[figure] / b[figure] for a, b in zip(ours.turns, theirs.turns))
        spread = f"{ratios[0]:.2f}-{ratios[-1]:.2f}"
        bound, verdict = "", ""
        if target is not None:
            bound = f"{'at least' if more else 'at most'} {target} x"
            verdict = "yes" if (value >= target if more else value <= target) else "**no**"
        cells = [f"{what}, {unit}", number(ours.median(figure)), number(theirs.median(figure))]
        print("| " + " | ".join([*cells, f"**{value:.2f} x**", spread, bound, verdict]) + " |")


def floor_table(ours):
    print("\n### The model step beside the bare micro-kernel, same file\n")
    print("| rows | bare kernel, ms | whole step, ms | ratio | target | |\n|---|---|---|---|---|---|")
    for rows in (1, 8, 32):
        pairs = [(t[f"step-{rows}"], t[f"bare-{rows}"]) for t in ours.turns if f"bare-{rows}" in t]
        if not pairs:
            continue
        value = statistics.median(a / b for a, b in pairs)
        step, bare = ours.median(f"step-{rows}"), ours.median(f"bare-{rows}")
        verdict = "yes" if value <= 1.35 else "**no**"
        print(f"| {rows} | {bare:.2f} | {step:.2f} | **{value:.2f} x** | at most 1.35 x | {verdict} |")


def agreement(ours, theirs):
    """How far the greedy tokens of both are the same: they compute the same model."""
    if ours.notes.get("digest") != theirs.notes.get("digest"):
        print(f"\nthe tokenizers differ: {ours.notes.get('digest')} and {theirs.notes.get('digest')}")
    a, b = ours.notes.get("greedy"), theirs.notes.get("greedy")
    if not (a and b):
        return
    same = [next((i for i, (x, y) in enumerate(zip(p, q)) if x != y), len(p)) for p, q in zip(a, b)]
    drafts = ", ".join(map(str, same[:-1]))
    print(f"\nGreedy tokens in common from the start, of {len(a[0])} a draft: {drafts}; of the chair: {same[-1]}.")
    print(f"Ours: “{' '.join(ours.notes['text'].split())[:160]}…”  ")
    print(f"{theirs.name}: “{' '.join(theirs.notes['text'].split())[:160]}…”")


def machine():
    cpu = next(l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name"))
    flags = next(l for l in open("/proc/cpuinfo") if l.startswith("flags")).split()
    isa = [f for f in ("avx2", "avx512f", "avx512_vnni", "avx_vnni") if f in flags]
    return f"{cpu}, {os.cpu_count()} cores, {' '.join(isa)}, {platform.system()} {platform.release()}"


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="where environments and Q4_0 files lie")
    parser.add_argument("--ours", type=pathlib.Path, required=True, help="the release binary `peer`")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="a GGUF file, Q4_1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--isa", help="instruction set: avx2, avx512; by default the best")
    parser.add_argument("--formats", nargs="+", choices=["Q4_1", "Q4_0"], default=["Q4_1", "Q4_0"])
    parser.add_argument("--no-mistralrs", action="store_true", help="without the second peer")
    return parser.parse_args()


def requantized(args):
    """The same weights in the format that llama.cpp computes fastest with."""
    target = args.cache / f"{args.model.stem}.requantized-Q4_0.gguf"
    if not target.exists():
        part = target.with_suffix(".part")
        script = [sys.executable, HERE / "llama_cpp_peer.py", args.model, "--requantize", part]
        subprocess.run(script, check=True, stdout=subprocess.DEVNULL)
        part.rename(target)
    return target


def side_by_side(args, path):
    """Ours and llama.cpp on one file, in turn."""
    isa = ["--isa", args.isa] if args.isa else []
    threads = ["--threads", args.threads]
    ours = Peer("ours", [args.ours, path, "--workload", HERE, *threads, *isa])
    theirs = Peer("llama.cpp", [sys.executable, HERE / "llama_cpp_peer.py", path, *threads])
    best = {line["variant"]: line["value"] for line in theirs.run("--tune") if "variant" in line}
    variants = ",".join(f"{name}={best[name]}" for name in VARIANTS)
    for turn in range(args.turns):
        print(f"{path.name}: turn {turn + 1} of {args.turns}", file=sys.stderr)
        ours.turn()
        theirs.turn("--variants", variants)
    theirs.notes["variants"] = variants
    return ours, theirs


def mistralrs(args, ours):
    """The second peer, one turn: it is slower by so much that a median would tell nothing more."""
    python = args.cache / "mistralrs/bin/python"
    print("\n### mistral.rs 0.9.5 (a wheel) on the same file\n")
    if not (args.cache / "mistralrs/installed").exists():
        return print("It does not install here.")
    peer = Peer("mistral.rs", [python, HERE / "mistralrs_peer.py", args.model, "--threads", args.threads])
    peer.turn()
    print("| | ours | mistral.rs | ratio |\n|---|---|---|---|")
    for figure, what, unit, *_ in ROWS:
        theirs = peer.median(figure)
        if theirs is not None:
            mine = ours.median(figure)
            print(f"| {what}, {unit} | {number(mine)} | {number(theirs)} | {mine / theirs:.1f} x |")
    print("\nIts Python package takes one request at a time, so there are no figures for agents side by side.")


def main():
    args = parse()
    files = {"Q4_1": args.model}
    if "Q4_0" in args.formats:
        files["Q4_0"] = requantized(args)
    print(f"{datetime.date.today()}; {machine()}; {args.threads} threads each; turns: {args.turns}, in alternation", flush=True)
    runs = {}
    for name in args.formats:
        ours, theirs = runs[name] = side_by_side(args, files[name])
        title = f"{files[name].name} ({ours.notes['built']})"
        table(title, ours, theirs, column=0 if name == "Q4_1" else 1)
        print(f"\nllama.cpp's fastest contexts: {theirs.notes['variants']}.")
        agreement(ours, theirs)
        sys.stdout.flush()
    ours, theirs = next(iter(runs.values()))
    floor_table(ours)
    if not args.no_mistralrs:
        mistralrs(args, ours)
    built = theirs.notes["built"]
    print(f"\nllama.cpp is llama-cpp-python 0.3.36 built here from source: {built}")


if __name__ == "__main__":
    main()

"""The command: its arguments, and what is written."""

import argparse
import json
import signal
import sys

from . import chart, instructions, measure, processes, report, scenes, tools


def main(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of short samples")
    parser.add_argument("--rounds", type=int, help="rounds of samples (3)")
    parser.add_argument("--only", default="", metavar="NAME", help="targets whose names contain NAME")
    parser.add_argument("--instructions", action="store_true", help="count instructions instead")
    parser.add_argument("--update", action="store_true", help="with --instructions: write the counts")
    parser.add_argument("--no-build", action="store_true", help="measure the release as it was built before")
    options = parser.parse_args()
    # Processes are stopped when an exception leaves their test bed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if len(processes.CPUS) < 2:
        raise SystemExit("two CPUs are needed")
    if not options.no_build:
        tools.build()
    try:
        if options.instructions:
            return instructions.check(options.only, options.update)
        return compare(options)
    except tools.Failed as error:
        raise SystemExit(str(error)) from None


def compare(options):
    rounds, seconds = options.rounds or (1 if options.quick else 3), 1 if options.quick else 2
    results = []
    for scene in scenes.scenes(options.quick):
        targets = measure.measure(scene, rounds, seconds, options.only)
        if targets:
            results.append((scene, targets))
    if not results:
        raise SystemExit(f'no target\'s name contains "{options.only}"')
    text = report.page(results, rounds, seconds, options.quick)
    folder = tools.CACHE if options.only else tools.ROOT / "docs/explanation"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "performance.md").write_text(text)
    (folder / "performance.svg").write_text(chart.draw(results))
    samples = {f"{scene.title}: {target.name}": target.samples for scene, targets in results for target in targets}
    (tools.CACHE / "samples.json").write_text(json.dumps(samples, indent=1))
    print(report.table(results))
    print(f"\nwritten: {folder}/performance.md, performance.svg; all samples: {tools.CACHE}/samples.json")
    return 1 if report.errors(results) or report.failed(results) else 0

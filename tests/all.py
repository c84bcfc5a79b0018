"""`make test`: its parts side by side, each in processes of its own, with a line of each as it comes.

Three lanes keep two cores busy, since each waits now and then: the tests, the pages, and what has an environment of its own. What
a part that failed has said stands once more at the end, together. The exit status is 0 if all parts passed."""

import os
import signal
import subprocess
import sys
import threading
import time

LANES = (("pytest",), ("pages",), ("unsloth", "verifiers"))  # targets of make, test-pages and so on
GRACE = 15  # seconds that a part has to end by itself


class Part:
    "A target of make that runs, what it has said and how it ended."

    def __init__(self, name: str, make: str):
        self.name, self.said, self.began = name, [], time.time()
        self.process = subprocess.Popen(
            [make, "--no-print-directory", f"test-{name}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # one signal reaches all that it has started
        )

    def read(self):
        "Keep what it says, and print it as it comes."
        for line in self.process.stdout:
            self.said.append(line)
            print(f"{self.name:9} | {line.rstrip()}\n", end="", flush=True)  # in one piece

    def follow(self):
        "Wait until it ends, and end what it has left running."
        reader = threading.Thread(target=self.read, daemon=True)
        reader.start()
        self.process.wait()
        self.seconds = time.time() - self.began
        reader.join(GRACE)
        self.end(signal.SIGKILL)
        reader.join(GRACE)

    def end(self, number: int):
        "Send a signal to all its processes."
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass


def run_lane(names: tuple[str, ...], make: str, parts: list[Part], stopped: threading.Event):
    "Run parts one after another, whether or not one fails."
    for name in names:
        if not stopped.is_set():
            parts.append(Part(name, make))
            parts[-1].follow()


def stop(parts: list[Part], lanes: list[threading.Thread]):
    "End all that runs: as Ctrl-C does, and what is left some seconds later by force."
    for number, patience in ((signal.SIGINT, GRACE), (signal.SIGKILL, 5)):
        for part in parts:
            part.end(number)
        deadline = time.time() + patience
        for lane in lanes:
            lane.join(max(0, deadline - time.time()))


def report(parts: list[Part]) -> int:
    "Print what failed and how long each part took; return the exit status."
    failed = [p for p in parts if p.process.returncode]
    for part in failed:
        print(f"\n{'=' * 30} {part.name} failed and said {'=' * 30}\n{''.join(part.said)}")
    for part in parts:
        print(f"{part.name:9} | {'FAILED' if part in failed else 'passed'} in {part.seconds:.0f} s")
    return int(bool(failed) or len(parts) < sum(map(len, LANES)))


def main(make: str) -> int:
    parts, stopped = [], threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    lanes = [threading.Thread(target=run_lane, args=(l, make, parts, stopped)) for l in LANES]
    try:
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
    except BaseException:
        stopped.set()
        stop(parts, lanes)
        raise
    return report(parts)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("stopped")

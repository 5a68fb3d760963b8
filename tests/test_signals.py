"""When a training is asked to stop, and when it only seems so."""

import os
import signal
import subprocess
import sys
import time

import pytest

from timm_arat.engine.signals import Signals

# Tells its number, waits until it is to stop, and tells that.
CHILD = """
import os, time
from timm_arat.engine.signals import Signals
with Signals() as signals:
    print(os.getpid(), flush=True)
    for _ in range(600):
        if signals.stop:
            print("stopped", flush=True)
            break
        time.sleep(0.05)
    else:
        print("still there", flush=True)
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.mark.skipif(sys.platform == "win32", reason="a process keeps its parent there")
@pytest.mark.parametrize("launched", [True, False])
def test_a_killed_launcher_stops_its_process_and_a_shell_that_ends_does_not(launched):
    env = {key: value for key, value in os.environ.items() if key != "ACCELERATE_MIXED_PRECISION"}
    env |= {"ACCELERATE_MIXED_PRECISION": "no"} if launched else {}
    words = [sys.executable, "-c", LAUNCHER, CHILD]
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        if not launched:
            time.sleep(0.5)
            os.kill(child, signal.SIGTERM)
        assert parent.stdout.readline() == "stopped\n"


def test_the_second_signal_interrupts():
    with Signals() as signals:
        assert not signals.stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)

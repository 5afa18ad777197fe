"""What stands in for Python where `distributed.warm` starts workers: `-m MODULE ...` is handed to its server.

It imports next to nothing, for it is started often. Anything else than those modules it hands to Python itself.
"""

import array
import json
import os
import signal
import socket
import sys


def main(address, python, modules, *arguments):
    """Ask, wait, and end as the fork did."""
    if arguments[:1] != ("-m",) or arguments[1] not in modules.split(","):
        os.execv(python, [python, *arguments])
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    told = {
        "module": arguments[1],
        "arguments": arguments[2:],
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "group": os.getpgrp(),
    }
    data = json.dumps(told).encode()
    descriptors = array.array("i", [0, 1, 2, os.open("/proc/self/ns/net", os.O_RDONLY)])
    server.sendmsg([len(data).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
    server.sendall(data)
    # A pipe on standard input ends when its last reader is gone; the fork is to be the only one.
    os.close(0)
    code = int(server.recv(16) or 1)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])

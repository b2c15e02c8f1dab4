"""Health check of the image: exit code 0 where the container's Ray node is up, else 1 and one line.

A container that runs a job or the demo without `ray start` has a Ray node only while the job needs one: disable the check for
it (`docker run --no-healthcheck`).
"""

import os
import sys
import urllib.error
import urllib.request

PORT = os.environ.get("REFBERT_AGENT_PORT", "52365")  # ray start --dashboard-agent-listen-port


def main() -> int:
    """Ask the node's agent for the health of the raylet."""
    address = f"http://127.0.0.1:{PORT}/api/local_raylet_healthz"
    try:
        with urllib.request.urlopen(address, timeout=4) as answer:
            return 0 if answer.status == 200 else 1
    except (urllib.error.URLError, TimeoutError) as error:
        print(f"{address}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

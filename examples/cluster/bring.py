"""Bring a bundle to an agent and have it served: bring.py HOST:PORT BUNDLE TARGET.

What is there already does not travel.
"""

from __future__ import annotations

import sys
from pathlib import Path

from runtime.client import AgentClient
from runtime.errors import RuntimeFault

if __name__ == "__main__":
    address, bundle, target = sys.argv[1:]
    name = Path(bundle).name
    try:
        with AgentClient(address) as agent:
            agent.upload(Path(bundle), name)
            agent.load(f"{name}/{target}")
    except RuntimeFault as fault:
        sys.exit(f"bring.py: {fault}")

"""Exit code 0 if the list of known weaknesses of packages can be reached, 1 if not."""

import json
import sys
import urllib.request

KNOWN = "PYSEC-2018-28"  # an entry that exists

try:
    with urllib.request.urlopen(f"https://api.osv.dev/v1/vulns/{KNOWN}", timeout=10) as answer:
        sys.exit(0 if json.load(answer).get("id") == KNOWN else 1)
except (OSError, ValueError):
    sys.exit(1)

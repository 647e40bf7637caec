"""python -m flowward"""

import sys

from .cli import main

sys.exit(main())

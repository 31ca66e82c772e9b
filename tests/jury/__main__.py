"""python -m tests.jury: see table.py, which processes of a pool can import, as they cannot import this."""
from .table import main

raise SystemExit(main())

"""`python -m launch`: see launch/pool.py."""

from kit.errors import run_script
from launch.pool import main

run_script(main, writes_to="--logs")

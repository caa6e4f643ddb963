"""KernelBench-style problem files: load them, export a solution, check any solution.

A problem file defines ``Model``, ``get_inputs()`` and ``get_init_inputs()``; a solution file
defines ``ModelNew``. ``problem`` loads both, ``export`` writes a solution, ``check`` judges one.
"""

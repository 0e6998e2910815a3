"""The claims study: what tutorials say about batch norm and layer norm, measured (`python -m benchmarks claims`).

A claim is a function in `speed`, `stability`, `accuracy`, `batches` or `networks`: its docstring is the method, its
decorator has the sentence, the tests with the smallest effect that counts, and the grids of runs that it reads. Around
them: `study` (what a claim is), `common` (what measures share), `runs` (what a run is), `data`, `layers`, `models`,
`training`, `probes` (the experiment), `pool` (runs in processes), `clock` (seconds of a step), `decide` (from effects
to verdicts), `checks` (gradients, and the kernels beside the NumPy reference), `command` and `page` (what
reports/claims.html shows).
"""

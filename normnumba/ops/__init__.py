"""The public functions: check the arguments, view them as the kernels do, call, and put the results into shape.

Every function takes x in float16, bfloat16, float32 or float64. Halves are computed in float32, the others in their own
type, with sums beyond a few thousand values in float64. Inputs are never changed except the running statistics, and
`out` where it is one of them.

What is said of an ndarray holds for arrays of torch, CuPy, JAX or numba on a CUDA device: they are used where they are,
on a stream of their library (docs/cuda.md says which), and results are arrays of that library. JAX's arrays are never
written to.
"""
